# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/evaluate.py from files: what it prints, writes and refuses."""

import csv
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detrex_mammo.data.image_io import write_png16
from detrex_mammo.inference.point_files import read_calibration, read_points

TOOL = Path(__file__).parents[2] / "tools" / "evaluate.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Six patients with an image each, lesions in three: two hit (0.9, 0.6), false 0.8 and 0.2."""
    root = tmp_path_factory.mktemp("files")
    images, lesions, found = [], [], []
    for n in range(6):
        pixels = np.full((120, 80), 9000, np.uint16)
        pixels[20:90, 10:60] = 30000
        write_png16(root / f"{n}.png", pixels)
        images.append({"id": n, "file_name": f"{n}.png", "width": 80, "height": 120,
                       "patient_id": f"P{n}", "laterality": "R", "view": "MLO"})  # fmt: skip
        if n < 3:
            lesions.append({"id": n, "image_id": n, "category_id": 1, "bbox": [20, 30, 20, 20]})
    for image, box, score in (
        (0, [21, 31, 20, 20], 0.9), (1, [20, 30, 20, 20], 0.6), (4, [5, 5, 9, 9], 0.8),
        (5, [5, 5, 9, 9], 0.2),
    ):  # fmt: skip
        found.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})
    categories = [{"id": 1, "name": "mass"}]
    content = {"images": images, "annotations": lesions, "categories": categories}
    (root / "val.json").write_text(json.dumps(content))
    (root / "model.json").write_text(json.dumps(found))
    worse = [{**record, "score": record["score"] / 2} for record in found[1:]]
    (root / "other.json").write_text(json.dumps(worse))
    return root


def arguments_of(files, *arguments, predictions="model.json", annotations="val.json"):
    command = [TOOL, "--predictions", files / predictions, "--annotations", files / annotations]
    return [str(c) for c in (*command, "--replicates", "100", *arguments)]


@pytest.fixture
def evaluate(files, monkeypatch, capsys):
    """Run the tool in this process; its exit code, output and errors."""

    def run(*arguments, **names):
        monkeypatch.setattr(sys, "argv", arguments_of(files, *arguments, **names))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_figures_tables_and_report(files, tmp_path):
    """At 0.3 of 6 images one false positive is allowed: 0.9 and 0.6 are hits, 2 of 3 lesions."""
    more = ("--out", tmp_path / "out", "--html", tmp_path / "html", "--image-root", files)
    command = [sys.executable, *arguments_of(files, *more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| Sensitivity at 0.3 false positives per image | 0.667" in done.stdout
    assert "3 lesions in 6 images of 6 patients" in done.stdout
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["figures"]["sens@0.3"]["value"] == pytest.approx(2 / 3)
    with open(tmp_path / "out" / "sensitivity.csv", newline="") as file:
        assert next(csv.reader(file))[:3] == ["class", "false positives per image", "sensitivity"]
    page = (tmp_path / "html" / "index.html").read_text()
    assert page.count('<script type="text/plain" id="picture') == 6
    assert (tmp_path / "html" / "tables" / "headline.csv").is_file()


def test_points_chosen_on_validation_are_applied_from_the_checkpoint(evaluate, tmp_path):
    """At most 0.1 of 6 images: no false positive, so the threshold is 0.9.

    Image scores 0.9, 0.6, 0 (with a lesion) and 0, 0.8, 0.2: Youden's index is 1/3 at 0.9 and at
    0.6, of which the higher counts.
    """
    checkpoint = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.ones(2)}}, checkpoint)
    rules = ("box:fppi:0.1", "image:youden")
    code, _, errors = evaluate("--choose", *rules, "--save-points", checkpoint)
    assert code == 0, errors
    points = [(point.name, point.threshold) for point in read_points(checkpoint)]
    assert points == [("box fppi:0.1", 0.9), ("image youden", 0.9)]
    assert torch.load(checkpoint, weights_only=True)["model"]["weight"].tolist() == [1, 1]
    _, output, _ = evaluate("--points", checkpoint, predictions="other.json")
    assert re.search(r"\| Sensitivity at the box threshold 0.9 +\| 0.000", output)


def test_two_models_are_compared_pairwise(evaluate, files, tmp_path):
    code, _, errors = evaluate("--compare", files / "other.json", "--out", tmp_path)
    assert code == 0, errors
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert float(rows["sens@4"]["difference"]) == pytest.approx(1 / 3, abs=1e-4)
    assert 0 < float(rows["sens@4"]["p"]) <= 1
    assert rows["sens@4"]["of"].startswith("3 lesions in 6 images")


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize("kept", ["model.pth", "chosen.json"])
def test_calibration_is_fitted_on_validation_and_applied_on_test(evaluate, tmp_path, kind, kept):
    """Boxes 0.9 and 0.6 are right, 0.8 and 0.2 wrong.

    Isotonic: 0.2 -> 0, 0.6 and 0.8 are pooled to 1/2, 0.9 -> 1. A threshold is one of calibrated
    scores, so it is refused where they are not calibrated.
    """
    file = tmp_path / kept
    if file.suffix == ".pth":
        torch.save({"model": {"weight": torch.ones(2)}}, file)
    out = ("--out", tmp_path / "out")
    saved = ("--save-calibration", file, "--save-points", file)
    code, _, errors = evaluate("--calibrate", kind, "--choose", "box:sensitivity:0.3", *saved, *out)
    assert code == 0, errors
    fitted = read_calibration(file)
    if kind == "isotonic":
        assert fitted(np.array([0.2, 0.6, 0.8, 0.9])).tolist() == [0, 0.5, 0.5, 1]
    assert read_points(file)[0].threshold == pytest.approx(fitted(np.array([0.9]))[0])
    code, said, errors = evaluate("--calibration", file, "--points", file, *out)
    assert code == 0, errors
    assert f"Scores: calibrated, {kind}" in said
    assert "fitted on val.json: 4 boxes, 2 positive" in said
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["figures"]["sensitivity at box sensitivity:0.3"]["value"] == pytest.approx(1 / 3)
    code, _, errors = evaluate("--points", file)
    assert code == 2 and "was chosen with calibration" in errors


def test_points_of_the_first_model_are_not_those_of_the_second(evaluate, files, tmp_path):
    more = ("--choose", "box:f1", "--compare", files / "other.json", "--out", tmp_path)
    assert evaluate(*more)[0] == 0
    with open(tmp_path / "comparison.csv", newline="") as file:
        assert not [row for row in csv.reader(file) if "box f1" in row[0]]


def test_two_models_are_compared_without_lesions(evaluate, files, tmp_path):
    """What is not defined has no replicates, and no difference."""
    content = json.loads((files / "val.json").read_text())
    (files / "healthy.json").write_text(json.dumps({**content, "annotations": []}))
    more = ("--compare", files / "other.json", "--out", tmp_path)
    code, _, errors = evaluate(*more, annotations="healthy.json")
    assert code == 0, errors
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert rows["sens@1"]["p"] == "" and rows["Brier score-images"]["p"]


def test_a_class_that_a_spreadsheet_would_run_becomes_text(evaluate, files, tmp_path):
    content = json.loads((files / "val.json").read_text())
    content["categories"] = [{"id": 1, "name": "=1+1"}]
    (files / "formula.json").write_text(json.dumps(content))
    assert evaluate("--out", tmp_path, annotations="formula.json")[0] == 0
    with open(tmp_path / "strata.csv", newline="") as file:
        assert [row[1] for row in csv.reader(file)][1] == "'=1+1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "near"], "rule was 'near'"),
        (["--fppi", "-1"], "fppi was"),
        (["--choose", "fppi:0.3"], "--choose was 'fppi:0.3', but it is LEVEL:RULE"),
        (["--choose", "box:youden"], "the rule of an operating point was 'youden'"),
        (["--points", "missing.json"], "does not exist"),
        (["--save-points", "x.json"], "--save-points has nothing to save"),
        (["--choose", "box:f1", "--points", "x.json"], "give one of them"),
        (["--html", "html", "--image-root", "nowhere"], "--image-root 'nowhere' is no folder"),
        (["--save-calibration", "x.json"], "--save-calibration has nothing to save"),
        (["--calibrate", "isotonic", "--calibration", "x.json"], "give one of them"),
        (["--calibrate", "isotonic", "--compare", "model.json"], "a calibration is of one model"),
        (["--calibration", "missing.json"], "'missing.json' does not exist"),
        (["--html", "html", "--image-root", ".", "--workers", "-1"], "--workers was -1"),
        (["--compare", "missing.json"], "missing.json does not exist"),
        (["--compare", "model.json", "--replicates", "0"], "--compare needs the bootstrap"),
    ],
)
def test_a_mistake_is_one_sentence(evaluate, files, arguments, said, monkeypatch):
    monkeypatch.chdir(files)
    code, _, errors = evaluate(*arguments)
    assert code == 2
    assert said in errors and errors.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("name", ["predictions", "annotations"])
def test_a_file_cut_in_half_is_one_sentence(evaluate, files, name):
    whole = {"predictions": "model.json", "annotations": "val.json"}[name]
    (files / "cut.json").write_text((files / whole).read_text()[:-20])
    code, _, errors = evaluate(**{name: "cut.json"})
    assert code == 2
    assert errors.count("\n") == 1 and "cut.json" in errors
