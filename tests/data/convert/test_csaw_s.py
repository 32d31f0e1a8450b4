# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-S's traps: one mask a class, three readers of the test set, specks, broken masks."""

import json

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


RANDOM = {"1": {"0": [99], "1": ["100"]}, "2": {"0": ["099", "100_1"]}}
SUBSETS = "training_random_splits.json"


def _write_patients(root, **files):
    """Patients 099 to 101 to train on, 150 to test; files of splits by their names."""
    for image in ("099_0", "100_1", "101_0"):
        _write(root, (2, 3, 10, 20), image=image)
    _write(root, (2, 3, 10, 20), image="150_0", folder="test_data/annotator_1")
    for name, text in files.items():
        (root / "CsawS" / f"{name}.json").write_text(text)
    return root


def _splits(dataset):
    keys = ("split", "training_subsets")
    return {file[-9:-4]: found for file, found in images_of(dataset, *keys).items()}


def test_the_authors_random_subsets_are_kept_and_one_can_be_taken(tmp_path):
    root = _write_patients(tmp_path, training_random_splits=json.dumps(RANDOM))
    dataset = convert(root, root)
    assert _splits(dataset) == {
        "099_0": ("train", ["1/0", "2/0"]),
        "100_1": ("train", ["1/1", "2/0"]),
        "101_0": ("train", None),
        "150_0": ("test", None),
    }
    assert reported(dataset, "kept")["files of the authors' splits"] == 1
    one = convert(root, root, training_subset="1/1")
    assert list(_splits(one)) == ["100_1", "150_0"]
    assert reported(one, "dropped") == {"training images not in the subset": 2}
    with pytest.raises(UserError, match="'3/0' is not in .* which has 1/0, 1/1, 2/0"):
        convert(root, root, training_subset="3/0")


def test_the_authors_validation_patients_are_val(tmp_path):
    root = _write_patients(tmp_path, suggested_validation_split='["100"]')
    assert [s for s, _ in _splits(convert(root, root)).values()] == [
        "train",
        "val",
        "train",
        "test",
    ]
    (root / "CsawS" / SUBSETS).write_text(json.dumps(RANDOM))
    chosen = _splits(convert(root, root, training_subset="1/0"))
    assert chosen == {
        "099_0": ("train", ["1/0", "2/0"]),
        "100_1": ("val", ["1/1", "2/0"]),
        "150_0": ("test", None),
    }
    # the same, said in the other file; a test image stays one
    (root / "CsawS/suggested_validation_split.json").unlink()
    text = json.dumps({"train": ["099", "101"], "validation": ["100", "150"]})
    (root / "CsawS" / SUBSETS).write_text(text)
    assert [s for s, _ in _splits(convert(root, root)).values()] == [
        "train",
        "val",
        "train",
        "test",
    ]


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", "3", '{"1": {"0": [["099"]]}}', "[" * 99999, "{}"]
)
def test_damaged_splits_are_one_line_and_the_images_are_converted(tmp_path, text):
    dataset = convert(_write_patients(tmp_path, training_random_splits=text), tmp_path)
    assert [split for split, _ in _splits(dataset).values()] == ["train"] * 3 + ["test"]
    assert reported(dataset, "dropped") == {"files of splits that cannot be read": 1}


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no PNG"):
        convert(tmp_path, tmp_path)
