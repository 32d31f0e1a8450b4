# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""BCS-DBT's traps: the box's slice, sides that the header has wrong, paths of two layouts."""

import cv2
import numpy as np
import pydicom
import pytest

from detrex_mammo.data.convert.bcs_dbt import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    counts_of,
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
)

SIZE = (5, 60, 40)  # slices, rows, columns
BOX = "PatientID,StudyUID,View,Subject,Slice,X,Y,Width,Height,Class,AD,VolumeSlices"


def volume(side, seed=0):
    """Bright at the chest wall; slice k is about 100 k brighter."""
    values = np.random.default_rng(seed).integers(0, 50, SIZE)
    values += 100 * np.arange(SIZE[0])[:, None, None]
    values[:, :, 0 if side == "L" else -1] += 400
    return values.astype(np.uint16)


class Tree:
    def __init__(self, root):
        self.root = root
        self.rows = {"boxes": {}, "file-paths": {}, "labels": {}}

    def add(self, patient, view, *boxes, split="train", pixels=None, path=None, normal=0, **tags):
        """A volume and boxes (slice, x, y, width, height, class)."""
        place = path or f"Breast-Cancer-Screening-DBT/{patient}/{view}/1-1.dcm"
        if pixels is not False:
            pixels = volume(view[0].upper()) if pixels is None else pixels
            write_dicom(self.root / place, pixels, **tags)
        key = f"{patient},1.2.{patient[-1]},{view}"
        classic = f"manifest-2/{place}"
        self._row("file-paths", split, f"{key},manifest-1/missing/{place[1:]},{classic}")
        self._row("labels", split, f"{key},{normal},0,0,0")
        for index, *rest, kind in boxes:
            box = ",".join(map(str, rest))
            self._row("boxes", split, f"{key},x,{index},{box},{kind},0,{SIZE[0]}")

    def _row(self, name, split, row):
        self.rows[name].setdefault(split, []).append(row)

    def convert(self, **options):
        headers = {
            "boxes": BOX,
            "file-paths": "PatientID,StudyUID,View,descriptive_path,classic_path",
            "labels": "PatientID,StudyUID,View,Normal,Actionable,Benign,Cancer",
        }
        for name, splits in self.rows.items():
            for split, rows in splits.items():
                path = self.root / f"BCS-DBT-{name}-{split}-v2.csv"
                path.write_text("\n".join([headers[name], *rows]))
        return convert(self.root, self.root / "out", **options)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_the_box_is_on_its_slice(tree):
    tree.add("DBT-P1", "lcc", (3, 2, 3, 10, 20, "cancer"), (3, 20, 30, 5, 6, "benign"))
    tree.add("DBT-P2", "rmlo2", (0, 1, 1, 4, 4, "benign"), split="validation")
    dataset = tree.convert()
    first, second = "images/DBT-P1_1_2_1_lcc_003.png", "images/DBT-P2_1_2_2_rmlo2_000.png"
    keys = ("patient_id", "laterality", "view", "split", "slice", "num_slices", "study_id")
    assert images_of(dataset, *keys) == {
        first: ("DBT-P1", "L", "CC", "train", 3, 5, "1.2.1"),
        second: ("DBT-P2", "R", "MLO", "val", 0, 5, "1.2.2"),
    }
    assert boxes_of(dataset, "pathology") == [
        (first, "cancer", (2, 3, 10, 20), "malignant"),
        (first, "benign", (20, 30, 5, 6), "benign"),
        (second, "benign", (1, 1, 4, 4), "benign"),
    ]
    written = cv2.imread(str(tree.root / "out" / first), cv2.IMREAD_UNCHANGED)
    stored = volume("L")[3].astype(float)
    expected = (stored - stored.min()) / np.ptp(stored) * 65535
    assert written.dtype == np.uint16 and np.abs(written - expected).max() <= 1
    assert reported(dataset, "dropped") == reported(dataset, "fixed") == {}


def test_a_slice_of_the_wrong_side_is_turned(tree):
    pixels = volume("R", seed=3)
    tree.add("DBT-P1", "lcc", (1, 2, 3, 10, 20, "cancer"), pixels=pixels, ImageLaterality="R")
    dataset = tree.convert()
    (name,) = images_of(dataset)
    assert dataset.images[0]["laterality"] == "L"
    written = cv2.imread(str(tree.root / "out" / name), cv2.IMREAD_UNCHANGED).astype(float)
    turned = pixels[1, ::-1, ::-1].astype(float)
    assert np.abs(written - (turned - turned.min()) / np.ptp(turned) * 65535).max() <= 1
    assert boxes_of(dataset)[0][2] == (2, 3, 10, 20)
    assert reported(dataset, "fixed") == {"slices turned to the side of the table": 1}


def test_the_window_of_all_frames(tree):
    voi = pydicom.Dataset()
    voi.WindowCenter, voi.WindowWidth = 150.5, 101  # PS3.3 C.11.2.1.2: 100 to 200
    group = pydicom.Dataset()
    group.FrameVOILUTSequence = [voi]
    tree.add("DBT-P1", "lcc", (1, 2, 3, 9, 9, "cancer"), SharedFunctionalGroupsSequence=[group])
    dataset = tree.convert()
    name = tree.root / "out" / dataset.images[0]["file_name"]
    written = cv2.imread(str(name), cv2.IMREAD_UNCHANGED)
    expected = np.clip((volume("L")[1].astype(float) - 100) / 100, 0, 1) * 65535
    assert np.abs(written - expected).max() <= 1


def test_negatives_are_middle_slices_of_normal_volumes(tree):
    tree.add("DBT-P1", "lcc", (1, 2, 3, 10, 20, "cancer"))
    for number in (2, 3, 4):
        tree.add(f"DBT-P{number}", "rcc", normal=1)
    dataset = tree.convert(negatives=2)
    assert [(i["patient_id"], i["slice"]) for i in dataset.images] == [
        ("DBT-P1", 1),
        ("DBT-P2", 2),
        ("DBT-P3", 2),
    ]
    assert len(dataset.annotations) == 1


def test_damaged_and_hostile_rows_are_one_line_each(tree):
    box = (1, 2, 3, 10, 20, "cancer")
    tree.add("DBT-P1", "lcc", box, (9, 2, 3, 10, 20, "cancer"), ("x", 2, 3, 4, 5, "cancer"))
    tree.add("DBT-P2", "lcc", box, pixels=False)
    tree.add("DBT-P3", "up", box)
    tree.add("DBT-P4", "lcc", box)
    tree.add("../../P5", "lcc", box, path="a/1-1.dcm")
    tree.add("DBT-P6", "lcc", box, path="../../../etc/passwd", pixels=False)
    tree.add("DBT-P7", "lcc", (1, 500, 3, 10, 20, "cancer"))
    cut = tree.root / "Breast-Cancer-Screening-DBT/DBT-P4/lcc/1-1.dcm"
    cut.write_bytes(cut.read_bytes()[:-10])
    dataset = tree.convert()
    names = sorted(images_of(dataset))
    assert names[0] == "images/DBT-P1_1_2_1_lcc_001.png"
    assert [n for n in names if "P5" in n] == ["images/______P5_1_2_5_lcc_001.png"]
    assert reported(dataset, "dropped") == {
        "boxes that cannot be read": 1,
        "slices: slice that the volume does not have": 1,
        "slices of a missing volume": 2,
        "slices of an unknown view": 1,
        "slices: pixel data are cut off": 1,
        "boxes of a slice that was dropped": 5,
        "boxes without area in the image": 1,
        "images with a box that cannot be used": 1,
    }


def test_each_damaged_volume_is_one_line(tree):
    tree.add("DBT-P1", "lcc", (1, 2, 3, 10, 20, "cancer"))
    expected = write_broken_dicoms(tree.root)
    for number, name in enumerate(expected, 2):
        tree.add(f"DBT-P{number}", "lcc", (0, 2, 3, 10, 20, "cancer"), path=name, pixels=False)
    dataset = tree.convert()
    assert list(images_of(dataset)) == ["images/DBT-P1_1_2_1_lcc_001.png"]
    assert reported(dataset, "dropped") == {
        **{r.replace("images:", "slices:"): n for r, n in counts_of(expected).items()},
        "boxes of a slice that was dropped": len(expected),
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no table of paths"):
        convert(tmp_path, tmp_path)
