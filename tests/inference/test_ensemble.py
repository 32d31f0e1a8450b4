# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/ensemble.py from files: calibration, fusion, agreement, and what it refuses."""

import hashlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.inference.offline import Truth

TOOL = Path(__file__).parents[2] / "tools" / "ensemble.py"
BOX, OTHER = [20, 30, 20, 20], [50, 60, 10, 10]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Patient P with CC and MLO of a breast, a lesion in each; patient Q with one image, none.

    Model a: 0.8 on the lesion in CC, 0.2 in MLO. Model b: the same boxes with 0.4 and 0.6, and
    elsewhere 0.5 in Q. On validation (8 images, a lesion in each) model a has scores 0.1 to 0.8 on
    the lesion and 0.05 to 0.4 beside it.
    """
    root = tmp_path_factory.mktemp("files")
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 100, "height": 120, "patient_id": patient,
         "study_id": "S", "laterality": "L", "view": view}
        for n, patient, view in ((1, "P", "CC"), (2, "P", "MLO"), (3, "Q", "CC"))
    ]  # fmt: skip
    categories = [{"id": 4, "name": "mass"}]
    lesions = [{"id": n, "image_id": n, "category_id": 4, "bbox": BOX} for n in (1, 2)]
    write(root / "test.json", images, lesions, categories)
    write_found(root / "a.json", [(1, BOX, 0.8), (2, BOX, 0.2)])
    write_found(root / "b.json", [(1, BOX, 0.4), (2, BOX, 0.6), (3, OTHER, 0.5)])
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 120} for n in range(8)]
    lesions = [{"id": n, "image_id": n, "category_id": 4, "bbox": BOX} for n in range(8)]
    write(root / "val.json", images, lesions, categories)
    write(root / "else.json", images, [], [{"id": 4, "name": "cyst"}])
    rows = [(n, BOX, (n + 1) / 10) for n in range(8)]
    write_found(root / "val_a.json", rows + [(n, OTHER, (n + 1) / 20) for n in range(8)])
    write_found(root / "val_b.json", [(n, BOX, 0.9) for n in range(8)] + [(0, OTHER, 0.3)])
    write_found(root / "unknown.json", [(77, BOX, 0.8)])
    (root / "category.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 9, "bbox": BOX, "score": 0.1}])
    )
    return root


def write(path, images, annotations, categories):
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def write_found(path, rows):
    path.write_text(
        json.dumps(
            [{"image_id": i, "category_id": 4, "bbox": box, "score": s} for i, box, s in rows]
        )
    )


@pytest.fixture
def fuse(files, tmp_path, monkeypatch, capsys):
    """Run the tool here; its exit code, records, facts, output and errors."""

    def run(*arguments, predictions=("a.json", "b.json"), annotations="test.json"):
        out = tmp_path / "fused.json"
        named = ["--predictions", *(files / p for p in predictions)]
        words = [TOOL, *named, "--annotations", files / annotations, "--out", out, *arguments]
        words = [str(files / w) if str(w).endswith(".json") else str(w) for w in words]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
        text = capsys.readouterr()
        if not out.is_file():
            return ended.value.code, [], {}, text.out, text.err
        facts = json.loads((tmp_path / "fused.ensemble.json").read_text())
        return ended.value.code, json.loads(out.read_text()), facts, text.out, text.err

    return run


def scores(records):
    return {record["image_id"]: record["score"] for record in records}


def test_fused_by_hand_and_read_by_the_evaluation(fuse, files, tmp_path):
    """(0.8 + 0.4) / 2, (0.2 + 0.6) / 2, and 0.5 of one of two models; FROC: both found at 1/3."""
    code, records, facts, out, _ = fuse()
    assert code == 0 and "fused.json: 3 predictions" in out and "a.json: 2 predictions" in out
    assert scores(records) == pytest.approx({1: 0.6, 2: 0.4, 3: 0.25})
    np.testing.assert_allclose([r["bbox"] for r in records], [BOX, BOX, OTHER], atol=1e-4)
    assert {r["category_id"] for r in records} == {4}
    assert facts["fusion"] == {"method": "wbf", "iou": 0.55, "weights": None}
    digest = hashlib.sha256((files / "b.json").read_bytes()).hexdigest()
    assert facts["models"][1]["sha256"] == digest and facts["predictions_in"] == [2, 3]
    settings = AssessSettings(bootstrap=None)
    figures = Truth.read(files / "test.json").assess(tmp_path / "fused.json", settings).figures
    assert figures["sens@0.3"].value == 1.0 and figures["auc-image"].value == 1.0


def test_weights_and_method(fuse):
    """Weights 3 and 1: (2.4 + 0.4) / 4 = 0.7, (0.6 + 0.6) / 4 = 0.3, 0.5 / 4; NMS: the best."""
    assert scores(fuse("--weights", 3, 1)[1]) == pytest.approx({1: 0.7, 2: 0.3, 3: 0.125})
    assert scores(fuse("--method", "nms")[1]) == pytest.approx({1: 0.8, 2: 0.6, 3: 0.5})


def test_agreement_moves_scores_after_the_fusion(fuse):
    """0.6 and 0.4 have logits l and -l: with weight 1/2 both become 0.5; Q has one view."""
    _, records, facts, out, _ = fuse("--agreement", 0.5)
    assert scores(records) == pytest.approx({1: 0.5, 2: 0.5, 3: 0.25})
    assert facts["agreement"]["images_with_partner"] == 2
    assert "2 of 3 images have another view" in out


def test_one_file_is_not_fused_but_agrees(fuse):
    """0.8 and 0.2 with weight 1/4: 2/3 and 1/3."""
    _, records, facts, _, _ = fuse("--agreement", 0.25, predictions=("a.json",))
    assert scores(records) == pytest.approx({1: 2 / 3, 2: 1 / 3}) and facts["fusion"] is None


def test_calibration_is_each_models_own(fuse, files):
    """Model a as scikit-learn's isotonic regression of its validation boxes has it.

    Model b has 0.9 on all lesions and 0.3 once beside: 0.4, 0.5 and 0.6 lie 1/6, 2/6 and 3/6 of the
    way from 0 to 1.
    """
    fitted = ("--calibrate", "isotonic", "--calibration-predictions", "val_a.json", "val_b.json",
              "--calibration-annotations", "val.json")  # fmt: skip
    _, records, facts, _, _ = fuse(*fitted)
    found = json.loads((files / "val_a.json").read_text())
    regression = IsotonicRegression(out_of_bounds="clip")
    regression.fit([r["score"] for r in found], [r["bbox"] == BOX for r in found])
    a = regression.predict([0.8, 0.2])
    expected = {1: (a[0] + 1 / 6) / 2, 2: (a[1] + 1 / 2) / 2, 3: 1 / 6}
    assert scores(records) == pytest.approx(expected)
    stored = [model["calibration"] for model in facts["models"]]
    assert stored[1]["scores"] == [0.3, 0.9] and stored[1]["probabilities"] == [0, 1]
    assert stored[0]["predictions"]["file"].endswith("val_a.json")
    assert "16 boxes, 8 positive" in stored[0]["of"]
    _, records, facts, _, _ = fuse("--calibrate", "temperature", *fitted[2:])
    temperature = facts["models"][0]["calibration"]["temperature"]
    logit = np.log(0.8 / 0.2) / temperature
    other = np.log(0.4 / 0.6) / facts["models"][1]["calibration"]["temperature"]
    expected = (1 / (1 + np.exp(-logit)) + 1 / (1 + np.exp(-other))) / 2
    assert scores(records)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "names", "words"),
    [
        ((), {"predictions": ("a.json", "unknown.json")}, "image 77 is not in the annotation"),
        ((), {"predictions": ("a.json", "category.json")}, "category 9 is not in the annotation"),
        ((), {"annotations": "val.json"}, "image 8"),
        ((), {"predictions": ("a.json", "none.json")}, "does not exist"),
        (("--weights", 1), {}, "there are 2 models: give one for each"),
        (("--calibrate", "isotonic"), {}, "give --calibration-predictions and"),
        (("--calibration-predictions", "val_a.json"), {}, "but no --calibrate"),
        (
            ("--calibrate", "isotonic", "--calibration-predictions", "val_a.json",
             "--calibration-annotations", "val.json"),
            {},
            "there are 2 files of predictions, but 1 to fit",
        ),
        (
            ("--calibrate", "isotonic", "--calibration-predictions", "val_a.json", "val_a.json",
             "--calibration-annotations", "else.json"),
            {},
            "fit the calibration on a file with the same",
        ),
        ((), {"predictions": ("a.json", "model.pth")}, "model.pth' does not exist"),
    ],
)  # fmt: skip
def test_one_sentence(fuse, files, arguments, names, words):
    if names.get("annotations") == "val.json":
        write_found(files / "far.json", [(8, BOX, 0.5)])
        names = {**names, "predictions": ("far.json", "far.json")}
    code, records, _, _, errors = fuse(*arguments, **names)
    assert code == 2 and not records
    assert words in errors and errors.count("\n") == 1 and "Traceback" not in errors


def test_files_are_fused_without_pytorch():
    """PyTorch takes seconds to start; files do not need it."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = [{str(TOOL)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--calibrate" in done.stdout, done.stderr
