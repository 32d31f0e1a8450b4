# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A woman on two sides is found whatever the files, the splits and the ids are called."""

import json
from pathlib import Path

import pytest

from detrex_mammo.data.check import check_datasets, fix_datasets
from detrex_mammo.data.checks.patients import normal_split, patient_key, split_of_file
from detrex_mammo.data.coco_table import read_table
from tests.data.coco_files import box, image, write

LEAK = "patients on two sides of a split"
DDSM = "data sets made of DDSM, with other patient ids, on two sides of a split"
FILES = "files on two sides of a split"


def errors(*paths):
    rows = check_datasets(paths, pixels=False).findings.to_list()
    return {row["what"]: row["count"] for row in rows if row["level"] == "error"}


def warnings(*paths):
    rows = check_datasets(paths, pixels=False).findings.to_list()
    return {row["what"]: row["count"] for row in rows if row["level"] == "warning"}


def sides(folder, first, second, **names):
    """Two files of one image each, whose entries have these keys beside the common ones."""
    names = {"one": "train.json", "other": "val.json", **names}
    return [
        write(folder / names["one"], [image(1, **{"file_name": "a.png", **first})], [box(1, 1)]),
        write(folder / names["other"], [image(2, **{"file_name": "b.png", **second})], [box(2, 2)]),
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"patient": "P1"}, {"patient": "P2"}, {}),
        ({"patient": "P1"}, {"patient": "P1"}, {LEAK: 1}),
        ({"patient": 7}, {"patient": " 7 "}, {LEAK: 1}),  # a number, and the same as text
        # The same name in two data sets is two women.
        ({"patient": "P1", "dataset": "INbreast"}, {"patient": "P1", "dataset": "VinDr"}, {}),
        ({"patient": "1", "dataset": "IN-Breast"}, {"patient": "1", "dataset": "inbreast"},
         {LEAK: 1}),
        # CBIS-DDSM: the folder's name is no patient.
        ({"patient": "Mass-Training_P_00173_LEFT_CC", "dataset": "CBIS-DDSM"},
         {"patient": "Calc-Test_P_00173_RIGHT_MLO", "dataset": "CBIS-DDSM"}, {LEAK: 1}),
        ({"patient": "Mass-Training_P_00173_LEFT_CC"}, {"patient": "P_00173"}, {LEAK: 1}),
        ({"patient": "Mass-Training_P_00173_LEFT_CC"}, {"patient": "P_00174"}, {}),
        # DDSM and mini-DDSM name a case alike, CBIS-DDSM renamed it.
        ({"patient": "A-1141-1", "dataset": "DDSM"},
         {"patient": "A_1141_1.LEFT_CC", "dataset": "mini-DDSM"}, {LEAK: 1}),
        ({"patient": "A-1141-1", "dataset": "DDSM"},
         {"patient": "A_1142_1", "dataset": "MiniDDSM"}, {}),
        ({"patient": "P_00173", "dataset": "CBIS-DDSM"},
         {"patient": "A_1141_1", "dataset": "mini-DDSM"}, {DDSM: 2}),
        ({"patient": ..., "dataset": "DDSM"}, {"patient": "P_00001", "dataset": "CBIS-DDSM"},
         {DDSM: 2}),
    ],
)  # fmt: skip
def test_who_is_who(first, second, expected, tmp_path):
    assert errors(*sides(tmp_path, first, second)) == expected


@pytest.mark.parametrize(
    ("one", "other", "first", "second", "is_leak"),
    [
        ("train.json", "val.json", "x", "x", True),  # the files' names count more
        ("a.json", "b.json", "training", "test", True),
        ("a.json", "b.json", "training", "train", False),
        ("a.json", "b.json", ..., ..., True),
        ("cbis_train.json", "instances_train2017.json", ..., ..., False),
        ("train.json", "validation_set.json", ..., ..., True),
        ("train_and_test.json", "b.json", "val", "valid", False),
    ],
)
def test_what_is_a_side(one, other, first, second, is_leak, tmp_path):
    same = {"patient": "P1"}
    paths = sides(
        tmp_path, {**same, "split": first}, {**same, "split": second}, one=one, other=other
    )
    assert errors(*paths) == ({LEAK: 1} if is_leak else {})


def test_a_leak_inside_of_one_file(tmp_path):
    images = [image(n, "P1", split=split) for n, split in ((1, "train"), (2, "test"), (3, "train"))]
    path = write(tmp_path / "all.json", images, [box(1, 1)])
    assert errors(path) == {LEAK: 1}


def test_the_measuring_side_keeps_the_patient(tmp_path):
    paths = [
        write(tmp_path / f"{split}.json", [image(n, "P1"), image(n + 9, f"Q{n}")], [box(n, n)])
        for n, split in ((1, "train"), (2, "val"), (3, "test"))
    ]
    checked = check_datasets(paths, pixels=False)
    fixed = fix_datasets(checked, tmp_path / "fixed")
    assert errors(*fixed) == {}
    kept = [[i["patient_id"] for i in json.loads(p.read_text())["images"]] for p in fixed]
    assert kept == [["Q1"], ["Q2"], ["P1", "Q3"]]
    assert f"image 0 (1.png) left out: {LEAK}" in (tmp_path / "fixed/train.json.log").read_text()


def test_one_file_on_two_sides(tmp_path):
    paths = sides(tmp_path, {"file_name": "x.png"}, {"file_name": "x.png"})
    assert errors(*paths) == {FILES: 1}
    paths = sides(tmp_path, {"file_name": "x.png", "frame": 3}, {"file_name": "x.png", "frame": 4})
    assert errors(*paths) == {FILES: 1}  # one volume is one breast
    paths = sides(tmp_path, {"file_name": "x.png"}, {"file_name": "x.png"}, other="b/val.json")
    assert errors(*paths) == {}  # another folder; the pixels tell


def test_unknown_patients_and_a_split_that_contradicts_its_file_are_warned_of(tmp_path):
    paths = sides(tmp_path, {"patient": ...}, {"split": "training"})
    assert errors(*paths) == {}
    told = warnings(*paths)
    assert told["images whose split is not that of their file"] == 1
    what = "images without patient_id: whether a patient is on two sides cannot be told"
    assert told[what] == 1


def test_names_of_splits():
    assert [normal_split(n) for n in ("Training", "VALID", "testing", "fold3", None, "")] == [
        "train", "val", "test", "fold3", None, None
    ]  # fmt: skip
    names = ("train.json", "my_val.json", "instances_val2017.json", "TEST-2.json", "contest.json")
    assert [split_of_file(Path(n)) for n in names] == ["train", "val", "val", "test", None]


def test_a_patient_of_strange_kind_is_none(tmp_path):
    images = [image(1, []), image(2, {}), image(3, ""), image(4, 0)]
    table = read_table(write(tmp_path / "a.json", images))
    assert [patient_key(i) for i in table.images] == [None, None, None, ("", "0")]
