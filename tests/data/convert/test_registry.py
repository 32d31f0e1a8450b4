# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every registered converter has its two functions; the tool runs one from folder to training."""

import argparse
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detrex_mammo.data.convert.registry import CONVERTERS, load
from detrex_mammo.data.convert.source import Source
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from tests.data.convert.trees import write_dicom, write_picture

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", CONVERTERS)
def test_options_of_the_parser_are_arguments_of_convert(name):
    module = load(name)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parameters = inspect.signature(module.convert).parameters
    assert list(parameters)[:2] == ["root", "out"]
    for action in parser._actions[1:]:
        assert action.help or action.metavar, action.dest
        if action.dest not in parameters:  # the common formats share an argument's meaning
            assert any(p.kind is p.VAR_KEYWORD for p in parameters.values()), action.dest
        found = parameters.get(action.dest) or inspect.signature(Source).parameters[action.dest]
        same = list(found.default) if isinstance(found.default, tuple) else found.default
        assert same == action.default, action.dest


def _run(*arguments):
    tool = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), *map(str, arguments)]
    return subprocess.run(tool, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def vindr(tmp_path):
    """One image with a mass, one normal one, one damaged one."""
    root = tmp_path / "vindr"
    header = "study_id,image_id,laterality,view_position,height,width,split"
    rows = [
        f"s1,{name},L,CC,200,100,{split}"
        for name, split in (("a", "training"), ("b", "test"), ("c", "training"))
    ]
    (root / "images/s1").mkdir(parents=True)
    (root / "breast-level_annotations.csv").write_text("\n".join([header, *rows]))
    found = [f"{rows[0]},['Mass'],-10,20,50,70", *(f"{row},['No Finding'],,,," for row in rows[1:])]
    columns = f"{header},finding_categories,xmin,ymin,xmax,ymax"
    (root / "finding_annotations.csv").write_text("\n".join([columns, *found]))
    pixels = np.random.default_rng(0).integers(0, 4096, (200, 100)).astype(np.uint16)
    for name in "ab":
        write_dicom(root / f"images/s1/{name}.dicom", pixels)
    (root / "images/s1/c.dicom").write_bytes(b"")
    return root


def test_from_a_folder_to_training(vindr, tmp_path):
    out = tmp_path / "out"
    done = _run("vindr-mammo", "--root", vindr, "--out", out)
    assert done.returncode == 0, done.stderr
    for words in (
        "2 images, 1 boxes",
        "images: file is empty",
        "boxes cut at the image's border",
        f"image_root: {vindr}",
    ):
        assert words in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["dropped"]["images: file is empty"]["examples"] == ["images/s1/c.dicom"]
    (record,) = load_coco_json("convert_registry_train", str(out / "train.json"), str(vindr))
    assert record["patient_id"] == "s1" and record["laterality"] == "L"
    mapped = MammographyMapper(
        is_train=True, preprocessing=Preprocessing(crop_breast=False, chest_wall="")
    )(record)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 20, 50, 70]]
    (normal,) = load_coco_json("convert_registry_test", str(out / "test.json"), str(vindr))
    assert normal["annotations"] == []


@pytest.mark.parametrize("inner", [".", "annotations", "mine"])
def test_what_is_read_is_never_replaced(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text("{}")
    (folder / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    options = ["--json", "mine/a.json"] if inner == "mine" else []
    done = _run("coco", "--root", tmp_path, "--out", folder, "--overwrite", *options)
    assert done.returncode == 2 and "would replace what is read" in done.stderr
    assert (folder / "a.json").is_file()


def test_an_earlier_conversion_stays_if_this_one_fails(vindr, tmp_path):
    out = tmp_path / "out"
    assert _run("vindr-mammo", "--root", vindr, "--out", out).returncode == 0
    assert _run("vindr-mammo", "--root", tmp_path, "--out", out, "--overwrite").returncode == 2
    assert (out / "train.json").is_file() and (out / "test.json").is_file()


def test_a_folder_with_files_is_not_overwritten(vindr, tmp_path):
    out = tmp_path / "out"
    arguments = ("vindr-mammo", "--root", vindr, "--out", out)
    assert _run(*arguments).returncode == 0
    again = _run(*arguments)
    assert again.returncode == 2 and "is not empty" in again.stderr
    (out / "old.json").write_text("{}")
    assert _run(*arguments, "--overwrite").returncode == 0
    assert not (out / "old.json").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.json").write_text("{}")
    foreign = _run("vindr-mammo", "--root", vindr, "--out", tmp_path / "own", "--overwrite")
    assert foreign.returncode == 2 and "holds no conversion" in foreign.stderr
    assert (tmp_path / "own/thesis.json").exists()


def test_a_wrong_folder_is_one_sentence(tmp_path):
    done = _run("inbreast", "--root", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "holds no DICOM" in done.stderr


def test_not_one_image_is_an_error_with_the_report(tmp_path):
    (tmp_path / "Info.txt").write_text("mdb001 G NORM\n")
    write_picture(tmp_path / "mdb002.pgm", (20, 20))
    done = _run("mini-mias", "--root", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "gave not one image" in done.stderr and "films that are missing" in done.stderr
    assert not (tmp_path / "out").exists()
