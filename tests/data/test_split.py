# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Splits: no woman on two sides, every stratum shared out, official splits untouched."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detrex_mammo.data.check import check_datasets
from detrex_mammo.data.split import SplitOptions, assign, split_dataset
from detrex_mammo.errors import UserError
from tests.data.coco_files import box, image, write

ROOT = Path(__file__).resolve().parents[2]


def cohort(path, num_patients=60, **more):
    """Two to four images a patient; every tenth has a calcification, every third a mass."""
    images, boxes = [], []
    for patient in range(num_patients):
        for _ in range(2 + patient % 3):
            number = len(images) + 1
            density = "ABCD"[patient % 4]
            images.append(image(number, f"P{patient}", density=density, **more))
            if patient % 10 == 0:
                boxes.append(box(len(boxes) + 1, number, category_id=2, pathology="MALIGNANT"))
            if patient % 3 == 0:
                boxes.append(box(len(boxes) + 1, number, (1, 2, 30, 40)))
    return write(path, images, boxes)


def read(path):
    return json.loads(path.read_text())


def patients(path):
    return {i["patient_id"] for i in read(path)["images"]}


def ids(path, key="images"):
    return [entry["id"] for entry in read(path)[key]]


def test_a_greedy_share_of_hand(tmp_path):
    """Six patients of one image each, of two classes 4:2, in two folds: 2 and 1 in each."""
    counts = np.array([[1, 1, 0]] * 4 + [[1, 0, 1]] * 2)
    folds = assign(counts, [1, 1], seed=3)
    for fold in (0, 1):
        assert counts[folds == fold].sum(axis=0).tolist() == [3, 2, 1]
    # One large patient is as much as five small ones.
    folds = assign(np.array([[5]] + [[1]] * 5), [1, 1], seed=0)
    assert folds[1:].tolist() == [1 - folds[0]] * 5
    # Shares of 3 to 1.
    assert np.bincount(assign(np.ones((40, 1)), [3, 1], seed=0)).tolist() == [30, 10]


def test_greedy_is_near_the_best_of_all_assignments():
    """Ten patients in two folds: all 2^10 assignments are tried."""
    rng = np.random.default_rng(0)
    gaps = []
    for seed in range(20):
        counts = np.column_stack([np.zeros((10, 1)), rng.integers(0, 3, (10, 2))])
        counts[:, 0] = 1 + counts[:, 1:].max(axis=1)

        def distance(folds, counts=counts):
            shares = counts[np.array(folds) == 0].sum(axis=0) / counts.sum(axis=0)
            return ((shares - 0.5) ** 2).sum()

        best = min(map(distance, itertools.product((0, 1), repeat=10)))
        gaps.append(distance(assign(counts, [1, 1], seed)) - best)
        chance = np.mean([distance(rng.integers(0, 2, 10)) for _ in range(200)])
        assert gaps[-1] < chance / 3
    assert np.mean(gaps) < 0.01


def test_folds(tmp_path):
    source = cohort(tmp_path / "all.json")
    out = tmp_path / "out"
    split = split_dataset([source], out, SplitOptions(folds=5))
    everyone = patients(source)
    seen = []
    for fold in range(5):
        train, val = out / f"fold{fold}/train.json", out / f"fold{fold}/val.json"
        assert patients(train) | patients(val) == everyone
        assert not patients(train) & patients(val)
        assert sorted(ids(train) + ids(val)) == ids(source)
        boxes = ids(train, "annotations") + ids(val, "annotations")
        assert sorted(boxes) == ids(source, "annotations")
        for path in (train, val):
            mine = set(ids(path))
            assert {a["image_id"] for a in read(path)["annotations"]} <= mine
            assert {i["split"] for i in read(path)["images"]} == {path.stem}
        seen += ids(val)
        counts = split.counts[f"fold{fold}"]
        assert abs(counts["all"] - 36) <= 2  # 180 images
        assert abs(counts["mass"] - 8) <= 2  # 40
        assert abs(counts["MALIGNANT"] - 3.6) <= 2  # 18
        assert all(abs(counts[f"density {d}"] - 9) <= 3 for d in "ABCD")
    assert sorted(seen) == ids(source)
    checked = check_datasets([out / "fold0/train.json", out / "fold0/val.json"], pixels=False)
    assert checked.findings.num_errors == 0


def test_entries_are_as_they_were_but_for_their_split(tmp_path):
    source = cohort(tmp_path / "all.json", odd_key={"a": [1, None]}, file_name="ä/b.png")
    split_dataset([source], tmp_path / "out", SplitOptions())
    before = read(source)
    for name in ("train", "val"):
        after = read(tmp_path / "out" / f"{name}.json")
        assert (after["info"], after["categories"]) == (before["info"], before["categories"])
        assert all(a in before["annotations"] for a in after["annotations"])
        assert all({**i, "split": name} == i for i in after["images"])
        without = [{k: v for k, v in i.items() if k != "split"} for i in after["images"]]
        assert all(i in before["images"] for i in without)


def test_shares_and_a_test_set(tmp_path):
    source = cohort(tmp_path / "all.json")
    split_dataset([source], tmp_path / "out", SplitOptions(val=0.1, test=0.3))
    sizes = [len(ids(tmp_path / "out" / f"{n}.json")) for n in ("train", "val", "test")]
    assert sum(sizes) == 180
    assert np.allclose(sizes, [108, 18, 54], atol=4)


def test_the_seed_decides_and_nothing_else(tmp_path):
    source = cohort(tmp_path / "all.json")
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        split_dataset([source], tmp_path / str(number), SplitOptions(folds=3, seed=seed))
        texts.append((tmp_path / str(number) / "fold0/val.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_an_official_test_set_stays_and_its_patients_do_not_train(tmp_path):
    content = read(cohort(tmp_path / "all.json"))
    for entry in content["images"]:
        number = int(entry["patient_id"][1:])
        entry["split"] = "test" if number < 12 else "training"
    # The trap of CBIS-DDSM: a patient in both official splits.
    leak = [i for i in content["images"] if i["patient_id"] == "P3"][0]
    leak["split"] = "training"
    path = write(tmp_path / "all.json", content["images"], content["annotations"])
    split = split_dataset([path], tmp_path / "out", SplitOptions(folds=4))
    official = [i["id"] for i in content["images"] if i["split"] == "test"]
    assert ids(tmp_path / "out" / "test.json") == official
    for fold in range(4):
        for name in ("train", "val"):
            mine = patients(tmp_path / "out" / f"fold{fold}" / f"{name}.json")
            assert not mine & {f"P{n}" for n in range(12)}
    assert split.counts["left out"]["all"] == 1
    assert any("left out: 1 images of 1 patients" in note for note in split.notes)
    anew = split_dataset([path], tmp_path / "anew", SplitOptions(folds=4, ignore_official=True))
    assert sum(counts["all"] for counts in anew.counts.values()) == 180
    assert "test.json" not in anew.files() and "left out" not in anew.counts


def test_official_training_and_validation_sets_stay_unless_folds_are_asked_for(tmp_path):
    train = cohort(tmp_path / "train.json", 20)
    content = read(cohort(tmp_path / "val.json", 10))
    for entry in [*content["images"], *content["annotations"]]:
        entry["id"] += 1000
        if "image_id" in entry:
            entry["image_id"] += 1000
        else:
            entry["patient_id"] = "V" + entry["patient_id"]
    val = write(tmp_path / "val.json", content["images"], content["annotations"])
    split = split_dataset([train, val], tmp_path / "same", SplitOptions())
    assert ids(tmp_path / "same/train.json") == ids(train)
    assert ids(tmp_path / "same/val.json") == ids(val)
    assert ids(tmp_path / "same/val.json", "annotations") == ids(val, "annotations")
    assert any("nothing was divided" in note for note in split.notes)
    split = split_dataset([train, val], tmp_path / "folds", SplitOptions(folds=2))
    assert sorted(split.files()) == [
        "fold0/train.json", "fold0/val.json", "fold1/train.json", "fold1/val.json", "val.json"
    ]  # fmt: skip
    assert ids(tmp_path / "folds/val.json") == ids(val)


def test_an_official_training_image_of_a_measured_patient_is_left_out(tmp_path):
    images = [image(n, f"P{n}", split=("train", "val", "test")[n % 3]) for n in range(12)]
    images += [image(20, "P1", split="train"), image(21, "P2", split="train")]
    images += [image(22, "P1", split="test"), image(23, "P3")]
    path = write(tmp_path / "all.json", images, [])
    split = split_dataset([path], tmp_path / "out", SplitOptions())
    assert ids(tmp_path / "out/train.json") == [0, 3, 6, 9]
    assert {20, 21} & {*ids(tmp_path / "out/val.json"), *ids(tmp_path / "out/test.json")} == set()
    assert any(note.startswith("left out: 3 images of 3 patients") for note in split.notes)
    # Both were measured on before: that stays, and is told.
    assert any("1 patients are in two official splits" in note for note in split.notes)


@pytest.mark.parametrize("seed", range(5))
def test_a_study_whose_patient_one_image_names_stays_with_her(tmp_path, seed):
    images = [image(n, f"P{n // 2}", study_id=f"s{n // 2}") for n in range(20)]
    for entry in images[1::2]:
        del entry["patient_id"]
    path = write(tmp_path / "all.json", images, [])
    split_dataset([path], tmp_path / "out", SplitOptions(seed=seed))
    sides = [{n // 2 for n in ids(tmp_path / f"out/{side}.json")} for side in ("train", "val")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_files_of_an_earlier_split_do_not_stay(tmp_path):
    path, out = cohort(tmp_path / "all.json"), tmp_path / "out"
    split_dataset([path], out, SplitOptions(folds=4, test=0.2))
    (out / "fold3/notes.txt").write_text("mine")
    (out / "fold3/other.json").write_text("mine")
    split_dataset([path], out, SplitOptions(folds=2), overwrite=True)
    left = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    folds = [f"fold{n}/{name}.json" for n in (0, 1) for name in ("train", "val")]
    assert left == [*folds, "fold3/notes.txt", "fold3/other.json", "splits.json"]
    # A file that is read is not removed, nor is any that a record of someone else names.
    record = read(out / "splits.json")
    record["files"] |= {"../all.json": "", "/etc/hosts": "", str(path): ""}
    (out / "splits.json").write_text(json.dumps(record))
    split_dataset([out / "fold0/train.json"], out, SplitOptions(), overwrite=True)
    assert path.is_file() and (out / "fold0/train.json").is_file()
    assert not (out / "fold0/val.json").exists()


def test_images_without_patient_are_told_and_studies_stay_together(tmp_path):
    images = [image(n, patient=..., study_id=f"S{n // 4}") for n in range(1, 41)]
    split = split_dataset([write(tmp_path / "a.json", images)], tmp_path / "out", SplitOptions())
    assert any(note.startswith("warning: 40 images have no patient_id") for note in split.notes)
    studies = [
        {i["study_id"] for i in read(tmp_path / "out" / f"{n}.json")["images"]}
        for n in ("train", "val")
    ]
    assert not studies[0] & studies[1]


def test_ddsm_under_two_names_is_told(tmp_path):
    images = [image(n, f"P_{n:05}", dataset="CBIS-DDSM") for n in range(1, 6)]
    images += [image(n, f"A_{n:04}_1", dataset="mini-DDSM") for n in range(6, 11)]
    split = split_dataset([write(tmp_path / "a.json", images)], tmp_path / "out", SplitOptions())
    assert any("CBIS-DDSM and another set made of DDSM" in note for note in split.notes)


def test_the_record_of_a_split(tmp_path):
    source = cohort(tmp_path / "all.json")
    split_dataset([source], tmp_path / "out", SplitOptions(seed=7))
    record = read(tmp_path / "out/splits.json")
    assert record["options"]["seed"] == 7
    assert record["sources"] == {str(source): hashlib.sha256(source.read_bytes()).hexdigest()}
    text = (tmp_path / "out/val.json").read_bytes()
    assert record["files"]["val.json"] == hashlib.sha256(text).hexdigest()
    assert {p.split("/")[1] for p, side in record["patients"].items() if side == "val"} == (
        patients(tmp_path / "out/val.json")
    )


def test_mistakes_are_one_sentence(tmp_path):
    source = cohort(tmp_path / "all.json", 4)
    out = tmp_path / "out"
    for options, told in (
        (SplitOptions(folds=1), "--folds is 1"),
        (SplitOptions(folds=9), "there are 4 patients to divide and 9 sides"),
        (SplitOptions(val=1.5), "--val is 1.5"),
        (SplitOptions(val=0), "leave nothing to divide"),
        (SplitOptions(val=0.5, test=0.5), "leave nothing to divide"),
    ):
        with pytest.raises(UserError, match=told):
            split_dataset([source], out, options)
        assert not out.exists()
    split_dataset([source], out, SplitOptions())
    with pytest.raises(UserError, match="is there already"):
        split_dataset([source], out, SplitOptions())
    split_dataset([source], out, SplitOptions(), overwrite=True)
    with pytest.raises(UserError, match="is there already"):  # the source itself
        split_dataset([out / "train.json"], out, SplitOptions(ignore_official=True), overwrite=True)
    with pytest.raises(UserError, match="an id that is taken"):
        other = cohort(tmp_path / "b.json", 4)
        split_dataset([source, other], tmp_path / "new", SplitOptions())
    with pytest.raises(UserError, match="other categories"):
        other = write(tmp_path / "b.json", [image(900)], categories=[{"id": 1, "name": "x"}])
        split_dataset([source, other], tmp_path / "new", SplitOptions())


def test_a_split_named_like_a_path_stays_in_the_folder(tmp_path):
    images = [image(n, split="../../evil" if n == 3 else ...) for n in range(1, 8)]
    split = split_dataset([write(tmp_path / "a.json", images)], tmp_path / "out", SplitOptions())
    assert sorted(split.files()) == ["_evil.json", "train.json", "val.json"]
    assert not list(tmp_path.parent.glob("evil*"))


def test_annotations_of_no_image_and_annotations_before_images(tmp_path):
    path = tmp_path / "a.json"
    content = {
        "annotations": [box(1, 5), box(2, 99), "x", box(3, 4, ("a", 1, 2, 3))],
        "categories": [{"id": 1, "name": "mass"}],
        "images": [image(n) for n in range(1, 11)],
    }
    path.write_text(json.dumps(content))
    split_dataset([path], tmp_path / "out", SplitOptions(val=0.5))
    boxes = [
        a for n in ("train", "val") for a in ids(tmp_path / "out" / f"{n}.json", "annotations")
    ]
    assert sorted(boxes) == [1, 3]


def test_the_tools(tmp_path):
    source = cohort(tmp_path / "all.json")
    out = tmp_path / "out"

    def tool(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=ROOT
        )

    done = tool("tools/prepare_data.py", "split", source, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "density A" in done.stdout and "splits.json" in done.stdout
    files = [out / "train.json", out / "val.json"]
    done = tool("tools/check_data.py", *files, "--no-pixels")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    done = tool("tools/check_data.py", *files, source, "--no-pixels")
    assert done.returncode == 1
    assert "patients on two sides" in done.stdout
    done = tool("tools/check_data.py", tmp_path / "none.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines()[-1].startswith("error: annotation file")
