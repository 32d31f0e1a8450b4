# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DMID, whose layout is not confirmed: several are read, and nothing is guessed silently."""

import numpy as np
import pytest

from detrex_mammo.data.convert.dmid import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    boxes_of,
    counts_of,
    images_of,
    mask,
    reported,
    write_broken_dicoms,
    write_dicom,
    write_picture,
)

SIZE = (100, 60)


def _write(root, lines, images=(), boxes=None, list_name="Info.txt"):
    (root / list_name).write_text("Number tissue class\n" + "\n".join(lines) + "\n")
    for number in images:
        noise = np.random.default_rng(number).integers(0, 65536, SIZE).astype(np.uint16)
        write_picture(root / f"TIFF Images/IMG{number:03d}.tif", noise)
    for number, box in (boxes or {}).items():
        write_picture(root / f"ROI Masks/IMG{number:03d}.tif", mask(SIZE, *box))
    return root


def test_masks_go_before_circles_and_pictures_before_dicom(tmp_path):
    lines = ["IMG001 F CIRC B 12 20 6 MLO LT", "IMG002 G NORM", "IMG003 D CALC+CIRC M"]
    boxes = {1: [(5, 70, 14, 16)], 3: [(1, 2, 10, 12), (30, 40, 8, 9)]}
    root = _write(tmp_path, lines, [1, 2], boxes)
    write_dicom(root / "DICOM Images/IMG002.dcm", SIZE)
    write_dicom(root / "DICOM Images/IMG003.dcm", SIZE, bits=14)
    dataset = convert(root, tmp_path)
    one, two, three = "TIFF Images/IMG001.tif", "TIFF Images/IMG002.tif", "DICOM Images/IMG003.dcm"
    assert images_of(dataset, "laterality", "view", "tissue", "bits_stored") == {
        one: ("L", "MLO", "F", 16),
        two: (None, None, "G", 16),
        three: (None, None, "D", 14),
    }
    assert boxes_of(dataset, "pathology", "source") == [
        (one, "mass", (5, 70, 14, 16), "benign", "mask"),
        (three, "lesion", (1, 2, 10, 12), "malignant", "mask"),
        (three, "lesion", (30, 40, 8, 9), "malignant", "mask"),
    ]
    assert reported(dataset, "dropped") == {}


@pytest.mark.parametrize("origin", ["top", "bottom"])
@pytest.mark.parametrize("separator", [" ", ",", "\t", " ; "])
def test_the_origin_of_circles_is_decided_where_there_is_a_mask_too(tmp_path, origin, separator):
    y = 20 if origin == "top" else 80
    lines = [f"IMG1 F CIRC B 12 {y} 6", "IMG2 F SPIC M 30 30 10"]
    lines = [line.replace(" ", separator) for line in lines]
    dataset = convert(_write(tmp_path, lines, [1, 2], {1: [(6, 14, 12, 12)]}), tmp_path)
    second = [row[1:] for row in boxes_of(dataset, "pathology", "source")][1]
    assert second == ("mass", (20, 20 if origin == "top" else 60, 20, 20), "malignant", "circle")


def test_circles_of_unknown_origin_are_not_guessed(tmp_path):
    root = _write(tmp_path, ["IMG001 F CIRC B 12 20 6"], [1])
    dataset = convert(root, tmp_path)
    assert dataset.images == []
    reason = "images with circles of unknown origin (give --origin top or bottom)"
    assert reported(dataset, "dropped") == {reason: 1}
    assert boxes_of(convert(root, tmp_path, origin="bottom"))[0][2] == (6, 74, 12, 12)


def test_damaged_files_and_lines_are_one_line_each(tmp_path):
    lines = ["IMG001 F CIRC B", "IMG002 F CIRC B", "IMG003 F CIRC B", "IMG004 ?", "IMG005 G NORM"]
    lines += ["IMG006 G NORM", "IMG009 F CIRC B"]
    root = _write(tmp_path, lines, [1, 2, 3, 4, 5, 6, 7], {1: [(5, 5, 20, 20)], 2: [(0, 0, 2, 2)]})
    write_picture(root / "TIFF Images/cover.png", SIZE)
    (root / "ROI Masks/IMG003.tif").write_bytes(b"II*\0")
    (root / "TIFF Images/IMG005.tif").write_bytes(b"")
    write_picture(root / "TIFF Images/IMG006.tif", (1, 1))
    dataset = convert(root, tmp_path)
    assert [row[0] for row in boxes_of(dataset)] == ["TIFF Images/IMG001.tif"]
    assert len(dataset.images) == 1
    assert reported(dataset, "dropped") == {
        "files without an image's number": 1,
        "images without a line in the list": 1,
        "lines without a class": 1,
        "images with a lesion without mask or circle": 3,
        "masks that cannot be read (no picture, or damaged)": 1,
        "images: file is empty": 1,
        "images: smaller than 16 pixels": 1,
        "images that are missing": 1,
    }


def test_each_damaged_dicom_is_one_line(tmp_path):
    expected = write_broken_dicoms(tmp_path)
    (tmp_path / "DICOM Images").mkdir()
    lines = ["IMG100 G NORM"]
    write_dicom(tmp_path / "DICOM Images/IMG100.dcm", SIZE)
    for number, name in enumerate(expected, 1):
        (tmp_path / name).replace(tmp_path / f"DICOM Images/IMG{number:03d}.dcm")
        lines.append(f"IMG{number:03d} G NORM")
    dataset = convert(_write(tmp_path, lines), tmp_path)
    assert list(images_of(dataset)) == ["DICOM Images/IMG100.dcm"]
    assert reported(dataset, "dropped") == counts_of(expected)


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no list of DMID as text"):
        convert(tmp_path, tmp_path)
