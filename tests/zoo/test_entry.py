# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A run's folder as an entry of the zoo: every number against where it comes from."""

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.entry import TWELVE, add_entry, make_entry, shipped_config
from detrex_mammo.zoo.run_folder import read_run_folder
from tests.zoo.run_folders import add_predictions, below_a_hundred_others, write_by_hand

ROOT = Path(__file__).resolve().parents[2]


def entry_of(folder: Path) -> dict:
    return make_entry(read_run_folder(folder), "row", ROOT)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def official_stats(truth: Path, predictions: Path) -> list[float]:
    """COCO's twelve in percent, by pycocotools' own summary of a file; -1 for "no object"."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        scored = COCOeval(coco, coco.loadRes(str(predictions)), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [100 * value if value >= 0 else -1 for value in scored.stats]


def test_a_training_run_tells_everything(trained: Path) -> None:
    entry = entry_of(trained)
    weights = torch.load(trained / "model_final.pth", weights_only=True)
    record = json.loads((trained / "run.json").read_text())
    truth = trained.parent / "coco.json"

    assert entry["kind"] == "trained" and entry["source"] is None
    assert entry["config"]["sha256"] == sha256(trained / "config.yaml")
    assert entry["checkpoint"]["sha256"] == sha256(trained / "model_final.pth")
    assert entry["checkpoint"]["bytes"] == (trained / "model_final.pth").stat().st_size
    assert entry["data"]["sha256"] == sha256(truth)
    assert (entry["data"]["images"], entry["data"]["boxes"]) == (6, 5)
    assert entry["data"]["simulated_boxes"] == 0
    assert entry["classes"] == ["mass", "calcification"]
    training = entry["training"]
    assert (training["epochs"], training["steps"]) == (1, 3)  # six images, two a step
    assert training["hours"] == pytest.approx(record["sessions"][0]["seconds"] / 3600, abs=1e-4)
    assert training["data"] == {f"tiny_{truth}": sha256(truth)}
    stored = {name for name in weights["model"] if not name.endswith(("_mean", "_var", "_tracked"))}
    number = sum(weights["model"][name].numel() for name in stored - {"pixel_mean", "pixel_std"})
    assert entry["model"]["parameters"] == number
    assert entry["model"]["multiply_adds"] > number / 100
    assert entry["speed"]["images_per_second"] > 0
    assert entry["speed"]["model_images_per_second"] >= entry["speed"]["images_per_second"]
    assert entry["speed"]["peak_memory_bytes"] > 1e8  # Python with torch


def test_coco_is_that_of_pycocotools_from_the_files(trained: Path) -> None:
    coco = entry_of(trained)["coco"]
    truth, predictions = trained.parent / "coco.json", trained / "coco_instances_results.json"
    expected = official_stats(truth, predictions)
    for name, value in zip(TWELVE, expected, strict=True):
        assert coco["top_100"][name] == (None if value == -1 else pytest.approx(value, abs=1e-3))
    assert coco["predictions_per_image"] == 24  # 12 queries x 2 classes, fewer than 100
    assert coco["top_300"] == coco["top_100"]


def test_an_evaluation_tells_its_own_speed_and_the_checkpoints_training(
    trained: Path, evaluated: Path
) -> None:
    entry = entry_of(evaluated)
    assert entry["kind"] == "trained"
    assert entry["checkpoint"]["sha256"] == sha256(trained / "model_final.pth")
    assert entry["coco"]["top_100"] == entry_of(trained)["coco"]["top_100"]
    assert entry["training"]["epochs"] == 1
    assert entry["training"]["hours"] is None  # the checkpoint does not tell
    assert entry["speed"]["peak_memory_of"] == "process memory, evaluation"
    froc = json.loads((evaluated / "froc.json").read_text())["overall"]
    assert entry["froc"]["cpm"] == pytest.approx(froc["cpm"], abs=1e-4)
    assert entry["froc"]["lesions"] == 5
    assert list(entry["froc"]["per_class"]) == ["mass", "calcification"]


def test_top_100_and_top_300_differ_where_classes_compete(tmp_path: Path) -> None:
    """By hand: the only box is found by the 101st prediction. Top 100: AP 0; top 300: AP 100."""
    run = add_predictions(write_by_hand(tmp_path / "run"), below_a_hundred_others())
    (run / "metrics.json").write_text('{"bbox/AP": 100.0}\n')
    coco = entry_of(run)["coco"]
    assert coco["predictions_per_image"] == 300
    assert coco["top_100"]["AP"] == 0 and coco["top_300"]["AP"] == pytest.approx(100)
    assert coco["top_300"]["APs"] == pytest.approx(100) and coco["top_300"]["APl"] is None


def test_top_300_of_a_model_that_keeps_100_is_not_measured(tmp_path: Path) -> None:
    run = write_by_hand(tmp_path / "run", topk=100)
    add_predictions(run, below_a_hundred_others()[:100])
    (run / "metrics.json").write_text('{"bbox/AP": 0.0}\n')
    coco = entry_of(run)["coco"]
    assert coco["top_100"]["AP"] == 0 and coco["top_300"] is None


def test_predictions_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    run = add_predictions(write_by_hand(tmp_path / "run"), below_a_hundred_others())
    with pytest.raises(UserError, match="give AP 100.00, but its metrics.json says 12.50"):
        entry_of(run)


def test_what_no_file_tells_is_null(tmp_path: Path) -> None:
    entry = entry_of(write_by_hand(tmp_path / "run"))
    assert entry["command"] is entry["commit"] is entry["date"] is entry["froc"] is None
    assert entry["coco"]["top_100"] is entry["coco"]["top_300"] is None
    assert entry["data"]["sha256"] is entry["data"]["images"] is entry["config"]["file"] is None
    assert entry["checkpoint"]["sha256"] is None  # the file may have changed since
    assert set(entry["speed"].values()) == {None}
    assert entry["training"]["hours"] is entry["training"]["hardware"] is None


def test_changed_annotations_are_not_scored(tmp_path: Path) -> None:
    run = add_predictions(write_by_hand(tmp_path / "run"), below_a_hundred_others())
    (run / "truth.json").write_text((run / "truth.json").read_text() + " ")
    entry = entry_of(run)
    assert entry["coco"]["top_300"] is None and entry["data"]["images"] is None


def test_a_changed_checkpoint_is_refused(evaluated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(evaluated, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["checkpoint"]["sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="sha256 differs; evaluate again"):
        entry_of(run)


def test_weights_of_others_are_converted_ones(evaluated: Path, tmp_path: Path) -> None:
    """The same weights without anything that tells where they were trained."""
    run = shutil.copytree(evaluated, tmp_path / "run")
    content = torch.load(evaluated.parent / "model_final.pth", weights_only=True)
    bare, named = tmp_path / "bare.pth", tmp_path / "named.pth"
    torch.save({"model": content["model"]}, bare)
    source = {"file": "/somewhere/theirs.pth", "sha256": "1" * 64, "format": "official"}
    torch.save({**content, "provenance": {"source": source, "verification": {"boxes": 0}}}, named)
    text = (run / "config.yaml").read_text()
    for file, told in ((bare, "bare.pth"), (named, "theirs.pth")):
        path = str(evaluated.parent / "model_final.pth")
        (run / "config.yaml").write_text(text.replace(path, str(file)))
        record = json.loads((run / "run.json").read_text())
        record["checkpoint"] = {"file": str(file), "sha256": sha256(file)}
        (run / "run.json").write_text(json.dumps(record))
        entry = entry_of(run)
        assert entry["kind"] == "converted" and entry["source"]["file"] == told
    assert entry["verification"] == {"boxes": 0}


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train_net.py --config-file projects/mammography/configs/demo.py a=b", True),
        ("train_net.py --config-file=projects/mammography/configs/demo.py", True),
        ("train_net.py --config-file projects/mammography/configs/none.py", False),
        ("train_net.py --config-file /etc/hostname", False),
        ("demo.py", False),
        (None, False),
    ],
)
def test_a_config_is_named_only_if_the_repository_has_it(command: str, file: bool) -> None:
    expected = "projects/mammography/configs/demo.py" if file else None
    assert shipped_config(command, ROOT) == expected


def test_add_writes_one_file_and_never_over_another(evaluated: Path, tmp_path: Path) -> None:
    path = add_entry(evaluated, tmp_path, "mine", "https://example.org/mine.pth")
    assert path == tmp_path / "zoo" / "mine.json"
    written = json.loads(path.read_text())
    assert written["name"] == "mine"
    assert written["checkpoint"]["url"] == "https://example.org/mine.pth"
    before = path.read_bytes()
    with pytest.raises(UserError, match="mine.json is in the zoo already"):
        add_entry(evaluated, tmp_path, "mine")
    assert path.read_bytes() == before
    assert add_entry(evaluated, tmp_path).stem == "run"  # model_final.pth lies in "run"


@pytest.mark.parametrize("name", ["published", "../x", "a b", ".x"])
def test_names_that_are_no_file_of_the_zoo(evaluated: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is no name for a row"):
        add_entry(evaluated, tmp_path, name)
