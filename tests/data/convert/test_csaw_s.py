# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-S's traps: one mask a class, three readers of the test set, specks, broken masks."""

import pytest

from detrex_mammo.data.convert.csaw_s import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import boxes_of, images_of, mask, reported, write_picture

SIZE = (60, 40)


def _write(root, *boxes, image="099_0", tissue="cancer", folder="anonymized_dataset", size=SIZE):
    base = root / "CsawS" / folder / image.split("_")[0]
    if folder.startswith("anonymized") or not list(root.rglob(f"{image}.png")):
        write_picture(base / f"{image}.png", SIZE)
    if boxes:
        write_picture(base / f"{image}_{tissue}.png", mask(size, *boxes))


def test_components_of_the_chosen_classes(tmp_path):
    _write(tmp_path, (2, 3, 10, 20), (20, 30, 6, 7), (39, 0, 1, 1))
    _write(tmp_path, (1, 1, 8, 8), tissue="axillary_lymph_nodes")
    _write(tmp_path, (0, 0, 40, 50), tissue="mammary_gland")
    _write(tmp_path, image="100_1")
    dataset = convert(tmp_path, tmp_path)
    first, second = (f"CsawS/anonymized_dataset/{n}.png" for n in ("099/099_0", "100/100_1"))
    assert images_of(dataset, "patient_id", "split", "bits_stored") == {
        first: ("csaws_099", "train", 8),
        second: ("csaws_100", "train", 8),
    }
    cancers = [(first, "cancer", (2, 3, 10, 20), "mask"), (first, "cancer", (20, 30, 6, 7), "mask")]
    assert boxes_of(dataset, "source") == cancers
    assert reported(dataset, "dropped") == {"components of fewer than 20 pixels": 1}
    both = convert(tmp_path, tmp_path, classes=["axillary_lymph_nodes", "cancer"])
    assert [row[1] for row in boxes_of(both)] == ["axillary_lymph_nodes", "cancer", "cancer"]


@pytest.mark.parametrize("annotator, box", [(1, (1, 2, 9, 9)), (2, (3, 2, 9, 9)), (3, None)])
def test_three_readers_of_the_test_images(tmp_path, annotator, box):
    _write(tmp_path, (1, 2, 9, 9), image="150_0", folder="test_data/annotator_1")
    _write(tmp_path, (3, 2, 9, 9), image="150_0", folder="test_data/annotator_2")
    dataset = convert(tmp_path, tmp_path, annotator=annotator)
    assert [i["split"] for i in dataset.images] == ["test"]
    assert [row[2] for row in boxes_of(dataset)] == ([box] if box else [])


def test_mask_of_another_size(tmp_path):
    _write(tmp_path, (4, 6, 20, 40), size=(120, 80))
    dataset = convert(tmp_path, tmp_path)
    assert [row[2] for row in boxes_of(dataset)] == [(2, 3, 10, 20)]
    assert reported(dataset, "fixed") == {"masks of another size than their image, scaled": 1}


def test_damaged_files_are_one_line_each(tmp_path):
    _write(tmp_path, (2, 3, 10, 20))
    for image in ("001_0", "002_0", "003_0"):
        _write(tmp_path, (2, 3, 10, 20), image=image)
    base = tmp_path / "CsawS/anonymized_dataset"
    (base / "001/001_0_cancer.png").write_bytes(b"")
    (base / "002/002_0.png").write_bytes((base / "002/002_0.png").read_bytes()[:-30])
    write_picture(base / "003/003_0.png", (1, 1))
    write_picture(base / "004/004_0_cancer.png", SIZE)
    dataset = convert(tmp_path, tmp_path)
    assert [row[0][-9:] for row in boxes_of(dataset)] == ["099_0.png"]
    assert len(dataset.images) == 1
    assert reported(dataset, "dropped") == {
        "images with a mask that cannot be read (file is empty)": 1,
        "images: pixel data are cut off": 1,
        "images: smaller than 16 pixels": 1,
        "masks without an image": 1,
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no PNG"):
        convert(tmp_path, tmp_path)
