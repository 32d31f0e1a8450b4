# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""mini-MIAS's traps: the origin at the bottom left, rows without a circle, sides and patients."""

import numpy as np
import pytest

from detrex_mammo.data.convert.mini_mias import convert
from detrex_mammo.errors import UserError
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

INFO = """\
INFORMATION: the 1st column is the reference number, e.g. mdb001
mdb001 G CIRC B 535 425 197
mdb002 G CIRC B 522 280 69
mdb003 D NORM
mdb005 F CIRC B 477 133 30
mdb005 F CIRC B 500 168 26
mdb216 D CALC M *NOTE 3*
mdb059 F CIRC B
mdb223 D SPIC B 523 482 29
mdb223 D CALC B 591 529 6
mdb300 F ASYM M 10 1014 20
"""


def _write(root, names, info=INFO):
    (root / "Info.txt").write_bytes(info.replace("\n", "\r\n").encode())
    film = np.zeros((1024, 1024), np.uint8)
    for name in names:
        write_picture(root / "all-mias" / f"{name}.pgm", film)
    return root


def test_circles_from_the_bottom_left(tmp_path):
    names = ["mdb001", "mdb002", "mdb003", "mdb005", "mdb059", "mdb216", "mdb223", "mdb300"]
    dataset = convert(_write(tmp_path, names), tmp_path)
    keys = ("patient_id", "laterality", "view", "tissue", "bits_stored", "pixel_spacing")
    tail = (8, [0.2, 0.2])
    assert images_of(dataset, *keys) == {
        "all-mias/mdb001.pgm": ("mias_001", "R", "MLO", "G", *tail),
        "all-mias/mdb002.pgm": ("mias_001", "L", "MLO", "G", *tail),
        "all-mias/mdb003.pgm": ("mias_002", "R", "MLO", "D", *tail),
        "all-mias/mdb005.pgm": ("mias_003", "R", "MLO", "F", *tail),
        "all-mias/mdb223.pgm": ("mias_112", "R", "MLO", "D", *tail),
        "all-mias/mdb300.pgm": ("mias_150", "L", "MLO", "F", *tail),
    }
    # the first by hand: centre (535, 1024 - 425 = 599), radius 197
    assert boxes_of(dataset, "pathology", "mias_class", "source") == [
        ("all-mias/mdb001.pgm", "mass", (338, 402, 394, 394), "benign", "CIRC", "circle"),
        ("all-mias/mdb002.pgm", "mass", (453, 675, 138, 138), "benign", "CIRC", "circle"),
        ("all-mias/mdb005.pgm", "mass", (447, 861, 60, 60), "benign", "CIRC", "circle"),
        ("all-mias/mdb005.pgm", "mass", (474, 830, 52, 52), "benign", "CIRC", "circle"),
        ("all-mias/mdb223.pgm", "mass", (494, 513, 58, 58), "benign", "SPIC", "circle"),
        ("all-mias/mdb223.pgm", "calcification", (585, 489, 12, 12), "benign", "CALC", "circle"),
        ("all-mias/mdb300.pgm", "asymmetry", (0, 0, 30, 30), "malignant", "ASYM", "circle"),
    ]
    assert reported(dataset, "dropped") == {"films with a lesion that has no circle": 2}
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}


def test_damaged_films_and_rows_are_one_line_each(tmp_path):
    info = INFO + "mdb310 X WHAT\nmdb007 G CIRC B 1 2 x\nmdb301 G NORM\nmdb302 G CIRC B 9 9 9\n"
    root = _write(tmp_path, ["mdb001", "mdb007", "mdb320"], info)
    (root / "all-mias/mdb002.pgm").write_bytes(b"")
    (root / "all-mias/mdb003.pgm").write_bytes(b"P5\n1024 1024\n255\nabc")
    write_picture(root / "all-mias/mdb301.pgm", (1, 1))
    write_picture(root / "all-mias/mdb302.pgm", (100, 100))
    dataset = convert(root, tmp_path)
    assert [row[0] for row in boxes_of(dataset)] == ["all-mias/mdb001.pgm"]
    assert list(images_of(dataset)) == ["all-mias/mdb001.pgm"]
    assert reported(dataset, "dropped") == {
        "rows that cannot be read": 1,
        "films without a row": 1,
        "films that are missing": 5,
        "films with a lesion that has no circle": 1,
        "images: file is empty": 1,
        "images: pixel data are cut off or of another kind": 1,
        "images: smaller than 16 pixels": 1,
        "films with a circle, but not of 1024 pixels": 1,
    }


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="holds no table of mini-MIAS"):
        convert(tmp_path, tmp_path)
