# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A sheet shows every image, its boxes where they are, and the augmentation as training sees it."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detrex_mammo.config import find_config
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError
from detrex_mammo.inference.canvas import stretch
from detrex_mammo.inference.contact_sheet import (
    annotation_sheet,
    augmentation_sheet,
    choose,
    lay_out,
    write_sheet,
)

ROOT = Path(__file__).resolve().parents[2]
LINE = np.array([0x56, 0xB4, 0xE9])


def lines(picture):
    """x0, y0, x1, y1 of what has the colour of a box's line; None if nothing has."""
    rows, columns = np.nonzero(np.abs(picture.astype(int) - LINE).max(axis=-1) < 12)
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


@pytest.fixture
def record(tmp_path):
    """400x420 pixels are drawn one to one; the box has no label, so only lines have its colour."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((420, 400), 90, np.uint8))
    annotation = {"bbox": [100, 200, 50, 80], "category_id": 0, "iscrowd": 0}
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 420,
        "width": 400,
        "image_id": 1,
        "annotations": [annotation],
    }


class Mirror:
    """A mapper that mirrors its image, or not, and makes it brighter."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, record):
        pixels = torch.full((3, 420, 400), 90.0 * self.factor)
        instances = Instances((420, 400))
        x = 250.0 if np.random.uniform() < 0.5 else 100.0
        instances.gt_boxes = Boxes(torch.tensor([[x, 200.0, x + 50, 280.0]]))
        instances.gt_classes = torch.tensor([0])
        return {"image": pixels, "instances": instances}


def test_a_box_is_drawn_where_it_is(record):
    sheet = annotation_sheet([record], [""])
    x0, y0, x1, y1 = lines(sheet)
    left, top = (sheet.shape[1] - 400) // 2, 68  # the canvas's header
    assert np.allclose([x0 - left, y0 - top, x1 - left, y1 - top], [100, 200, 150, 280], atol=4)
    empty = annotation_sheet([{**record, "annotations": []}], [""])
    assert empty.shape == sheet.shape and lines(empty) is None


def test_grey_and_colour_pictures_and_a_preprocessing(record):
    grey = annotation_sheet([record], ["mass"], Preprocessing())
    assert np.array_equal(grey, annotation_sheet([record], ["mass"]))


def test_simulated_lesions_are_told(record):
    plain = annotation_sheet([record], ["mass"])
    assert not np.array_equal(plain, annotation_sheet([{**record, "simulated": True}], ["mass"]))


def test_augmented_tiles_show_what_the_mapper_made(record):
    sheet = augmentation_sheet([record], [""], Mirror(), repeats=8, seed=0)
    width = sheet.shape[1] // 9
    tiles = [sheet[:, number * width : (number + 1) * width] for number in range(9)]
    found = [lines(tile)[0] - (width - 400) // 2 for tile in tiles]
    assert abs(found[0] - 100) <= 4
    sides = {int(round(x / 50) * 50) for x in found[1:]}
    assert sides == {100, 250}
    assert np.array_equal(sheet, augmentation_sheet([record], [""], Mirror(), repeats=8, seed=0))
    other = augmentation_sheet([record], [""], Mirror(), repeats=8, seed=1)
    assert not np.array_equal(sheet, other)


def test_a_change_of_brightness_is_seen(record):
    sheet = augmentation_sheet([record], [""], Mirror(0.5), repeats=1)
    first, second = np.split(sheet, 2, axis=1)
    place = (68 + 50, first.shape[1] // 2)
    assert second[place].mean() < first[place].mean() - 20
    image = np.full((50, 50), 90, np.float32)
    assert stretch(image / 2, like=image).mean() < stretch(image).mean() - 20
    assert np.array_equal(stretch(image / 2, like=image / 2), stretch(image / 2))


def test_a_missing_or_damaged_image_is_one_sentence(record, tmp_path):
    for name, content in (("b.png", None), ("c.png", b"no picture")):
        if content:
            (tmp_path / name).write_bytes(content)
        broken = {**record, "file_name": str(tmp_path / name)}
        for preprocessing in (None, Preprocessing()):
            with pytest.raises(UserError, match=name):
                annotation_sheet([broken], ["mass"], preprocessing)


def test_images_are_chosen_evenly_and_some_are_negative():
    records = [{"image_id": n, "annotations": [1] if n % 2 else []} for n in range(100)]
    chosen = choose(records, 8)
    assert [bool(r["annotations"]) for r in chosen] == [True] * 6 + [False] * 2
    assert [r["image_id"] for r in chosen] == [1, 21, 41, 59, 79, 99, 0, 98]
    assert len(choose(records[:3], 8)) == 3
    assert len(choose([r for r in records if r["annotations"]], 8)) == 8
    assert len(choose([r for r in records if not r["annotations"]], 8)) == 8


def test_tiles_of_any_size_lie_in_rows():
    tiles = [np.full((n, 2 * n, 3), n, np.uint8) for n in (10, 20, 30)]
    sheet = lay_out(tiles, 2)
    assert sheet.shape == (60, 120, 3)
    assert (sheet[:10, :20] == 10).all() and (sheet[:20, 60:100] == 20).all()
    assert (sheet[30:, :60] == 30).all()
    assert lay_out(tiles[:1], 4).shape == (10, 20, 3)


def test_a_sheet_is_written_or_a_sentence_says_why_not(tmp_path):
    sheet = np.zeros((4, 5, 3), np.uint8)
    sheet[..., 0] = 200
    write_sheet(tmp_path / "new" / "a.png", sheet)
    assert (cv2.imread(str(tmp_path / "new" / "a.png"))[0, 0] == [0, 0, 200]).all()
    with pytest.raises(UserError, match="must end in .png"):
        write_sheet(tmp_path / "a.gif", sheet)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_sheet(tmp_path / "b.png", sheet)


def test_the_tool(record, tmp_path, monkeypatch, capsys):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 420, "width": 400}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [100, 200, 50, 80]}],
        "categories": [{"id": 3, "name": "mass"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    out = tmp_path / "a_sheet.png"

    def tool(*words):
        """Exit code and stderr."""
        monkeypatch.setattr(sys, "argv", ["visualize_data.py", *map(str, words), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "tools/visualize_data.py"), run_name="__main__")
        return end.value.code, capsys.readouterr().err

    assert tool("--json", tmp_path / "train.json")[0] == 0
    assert lines(cv2.imread(str(out))[..., ::-1]) is not None
    config = find_config("projects/mammography/configs/demo.py")
    dataset = "dataloader.train.dataset"
    overrides = [f"{dataset}.json_file={tmp_path}/train.json", f"{dataset}.image_root={tmp_path}"]
    overrides.append(f"{dataset}.name=contact_sheet_test")
    assert tool("--config-file", config, "--repeats", 2, *overrides) == (0, "")
    assert cv2.imread(str(out)).shape[1] % 3 == 0
    # One that pastes lesions: the mapper is given the dataset, or it would refuse.
    own = tmp_path / "own.py"
    up = "." * len(tmp_path.parts) + ".".join(Path(config).parent.parts[1:])
    names = "dataloader, lr_multiplier, model, optimizer, train"
    own.write_text(
        f"from {up}.demo import {names}\n"
        "from detectron2.config import LazyCall\n"
        "from detrex_mammo.data.copy_paste import LesionCopyPaste\n"
        "dataloader.train.mapper.copy_paste = LazyCall(LesionCopyPaste)(prob=1.0)\n"
    )
    assert tool("--config-file", own, "--repeats", 2, *overrides) == (0, "")
    code, told = tool("--json", tmp_path / "none.json")
    assert code == 2 and told.startswith("error: annotation file")
    code, told = tool("--json", tmp_path / "train.json", "--count", 0)
    assert code == 2 and "--count is 0" in told
