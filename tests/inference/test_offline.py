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
from detrex_mammo.inference.point_files import read_points

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
