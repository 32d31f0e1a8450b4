# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dataset folder is whole, or the user is told what it is."""

import json

import cv2
import numpy as np
import pytest

from detrex_mammo.data import dataset_folder
from detrex_mammo.errors import UserError

PARAMETERS = {"seed": 0, "sizes": [1, 2]}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    dataset_folder.start(path, overwrite=False)
    (path / "images" / "a.png").write_bytes(b"12345")
    dataset_folder.write_json(path / "train.json", {"images": []})
    dataset_folder.finish(path, PARAMETERS, {"images": 1})
    return path


def test_complete_only_when_whole(folder, tmp_path):
    assert dataset_folder.is_complete(folder, PARAMETERS)
    assert not dataset_folder.is_complete(tmp_path / "nothing", PARAMETERS)
    (tmp_path / "empty").mkdir()
    assert not dataset_folder.is_complete(tmp_path / "empty", PARAMETERS)


def test_tuples_and_lists_are_the_same_settings(folder):
    assert dataset_folder.is_complete(folder, {"seed": 0, "sizes": (1, 2)})


def test_other_settings_are_named(folder):
    with pytest.raises(UserError, match="seed: 0 there, 1 now.*--overwrite"):
        dataset_folder.is_complete(folder, {**PARAMETERS, "seed": 1})


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "no image", "short image"])
def test_half_a_dataset_is_told(folder, damage):
    manifest, image = folder / dataset_folder.MANIFEST, folder / "images" / "a.png"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "no image":
        image.unlink()
    else:
        image.write_bytes(b"123")
    with pytest.raises(UserError, match="--overwrite"):
        dataset_folder.is_complete(folder, PARAMETERS)


def test_overwrite_removes_a_dataset_and_nothing_else(folder):
    dataset_folder.start(folder, overwrite=True)
    assert not (folder / "images" / "a.png").exists()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        dataset_folder.start(folder, overwrite=True)
    assert (folder / "thesis.tex").exists()


def test_overwrite_spares_what_hides_among_the_images(folder):
    (folder / "images" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        dataset_folder.start(folder, overwrite=True)
    assert (folder / "images" / "thesis.tex").exists()


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        dataset_folder.is_complete(tmp_path / "file", PARAMETERS)
    with pytest.raises(UserError, match="cannot be made"):
        dataset_folder.start(tmp_path / "file" / "below", overwrite=False)


def test_png_text_leaves_the_pixels_alone(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 65536, (7, 5), dtype=np.uint16)
    coded = cv2.imencode(".png", pixels)[1].tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(dataset_folder.png_with_text(coded, "Comment", "simulated lesions"))
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), pixels)
    with Image.open(path) as image:
        image.verify()
        assert image.info["Comment"] == "simulated lesions"


def test_manifest_holds_sizes_and_hashes(folder):
    data = json.loads((folder / dataset_folder.MANIFEST).read_text())
    assert data["files"]["images/a.png"] == 5
    assert len(data["sha256"]["train.json"]) == 64
