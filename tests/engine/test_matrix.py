# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/evaluate_matrix.py: every pair once, failures told, and nothing done twice."""

import csv
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from detrex_mammo.engine.checkpoint_run import CheckpointRun
from detrex_mammo.engine.matrix import DataSet, Model, predictions_of, run_matrix
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.inference.offline import Truth
from tests.engine.small_matrix import CATEGORIES, CHECKPOINT, changed_checkpoint, write_dataset

TOOL = Path(__file__).parents[2] / "tools" / "evaluate_matrix.py"
SETTINGS = AssessSettings(bootstrap=Bootstrap(20))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """``val.json`` with three images, ``less.json`` with two, ``mass.json`` with one class."""
    root = write_dataset(tmp_path_factory.mktemp("data"))
    content = json.loads((root / "val.json").read_text())
    less = {**content, "images": content["images"][1:], "annotations": content["annotations"][1:]}
    (root / "less.json").write_text(json.dumps(less))
    (root / "mass.json").write_text(json.dumps({**content, "categories": CATEGORIES[:1]}))
    given = root / "given"
    given.mkdir()
    (given / "val.json").write_text(
        json.dumps(
            [
                {"image_id": 0, "category_id": 1, "bbox": [38, 88, 24, 24], "score": 0.9},
                {"image_id": 2, "category_id": 1, "bbox": [5, 5, 9, 9], "score": 0.8},
            ]
        )
    )
    return root


@pytest.fixture
def counted(monkeypatch):
    """The pairs that a checkpoint was run on, and the files that were scored."""
    done = {"predicted": [], "scored": []}
    predict, assess = CheckpointRun.predict, Truth.assess

    def predicting(self, json_file, *rest):
        done["predicted"].append(Path(json_file).stem)
        return predict(self, json_file, *rest)

    def assessing(self, *rest):
        done["scored"].append(self.path.stem)
        return assess(self, *rest)

    monkeypatch.setattr(CheckpointRun, "predict", predicting)
    monkeypatch.setattr(Truth, "assess", assessing)
    return done


def work(counted, data, out, names=("val", "less"), path=CHECKPOINT, settings=SETTINGS):
    """Run the matrix of one checkpoint; what was predicted and scored in it."""
    counted["predicted"].clear(), counted["scored"].clear()
    datasets = [DataSet(name, str(data / f"{name}.json"), str(data)) for name in names]
    found = run_matrix([Model("small", str(path))], datasets, out, settings, tell=lambda text: 0)
    assert not found.failures
    return found, counted["predicted"], counted["scored"]


def test_what_is_done_is_not_done_again(counted, data, tmp_path):
    """Each thing that a result depends on, changed in turn: only what it touches is redone."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    shutil.copytree(data, mine)
    first, predicted, scored = work(counted, mine, out)
    assert (predicted, scored) == (["val", "less"], ["val", "less"])
    again, predicted, scored = work(counted, mine, out)
    assert (predicted, scored) == ([], []) and again.figures == first.figures
    folder = out / "small" / "less"
    whole = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").write_text(whole[:-9])  # killed while it wrote
    found, predicted, scored = work(counted, mine, out)
    assert (predicted, scored) == ([], ["less"]) and found.figures == first.figures
    records = (folder / "predictions.json").read_text()
    (folder / "predictions.json").write_text(records[:-9])
    _, predicted, scored = work(counted, mine, out)
    # the predictions come out the same, so their evaluation holds
    assert (predicted, scored) == (["less"], [])
    assert (folder / "predictions.json").read_text() == records
    other = AssessSettings(bootstrap=Bootstrap(21))
    assert work(counted, mine, out, settings=other)[1:] == ([], ["val", "less"])
    content = json.loads((mine / "val.json").read_text())
    content["annotations"].pop()
    (mine / "val.json").write_text(json.dumps(content))
    assert work(counted, mine, out, settings=other)[1:] == (["val"], ["val"])
    changed = changed_checkpoint(tmp_path / "other.pth", note="anything")
    assert work(counted, mine, out, path=changed, settings=other)[1] == ["val", "less"]


def test_a_stopped_run_goes_on(counted, data, tmp_path, monkeypatch):
    """Killed in the second pair: the first is not run again."""
    replace = os.replace

    def killed(source, target):
        if "less" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        work(counted, data, tmp_path)
    assert (tmp_path / "small" / "less").is_dir()
    assert not (tmp_path / "small" / "less" / "predictions.json").exists()
    assert work(counted, data, tmp_path)[1:] == (["less"], ["less"])


@pytest.fixture
def tool(data, monkeypatch, capsys):
    def run(*arguments):
        words = [TOOL, *arguments, "--workers", "0", "--device", "cpu", "--replicates", "20"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(TOOL), run_name="__main__")
        text = capsys.readouterr()
        return ended.value.code, text.out, text.err

    return run


def test_the_table_and_the_pairs_that_fail(tool, data, tmp_path):
    """A checkpoint, given predictions, one that is missing; one data set of fewer classes.

    The given predictions find one of two lesions with 0.9 and are wrong with 0.8 in one of three
    images: sensitivity 0.5 at 0 and at 1/3 false positives per image.
    """
    out = tmp_path / "out"
    code, text, errors = tool(
        "--models", f"small={CHECKPOINT}", f"given={data / 'given'}", "gone=/nowhere/model.pth",
        "--datasets", f"val={data / 'val.json'}:{data}", f"mass={data / 'mass.json'}:{data}",
        "--out", out, "--figure", "sens@0.35", "AP50",
    )  # fmt: skip
    assert code == 2 and errors == "error: 4 of 6 pairs failed, as told above\n"
    assert "[1/6] small x val: predicted and scored" in text
    assert "[3/6] given x val: scored again" in text
    assert "[2/6] small x mass: failed: checkpoint" in text
    assert "neither mass.json nor mass.csv" in text
    assert text.count("'/nowhere/model.pth' does not exist") == 4  # two lines each: now and below
    rows = {(r["figure"], r["model"], r["dataset"]): r
            for r in csv.DictReader((out / "matrix.csv").open())}  # fmt: skip
    assert len(rows) == 12 and rows["sens@0.35", "given", "val"]["value"] == "0.5"
    assert "2 lesions" in rows["sens@0.35", "given", "val"]["of"]
    assert rows["AP50", "gone", "val"]["value"] == "" and rows["AP50", "gone", "val"]["failed"]
    cells = json.loads((out / "matrix.json").read_text())["cells"]
    assert [c["value"] for c in cells if c["model"] == "given"][0] == 0.5
    evaluation = json.loads((out / "small" / "val" / "evaluation.json").read_text())
    row = rows["AP50", "small", "val"]
    assert float(row["value"]) == evaluation["figures"]["AP50"]["value"]
    table = (out / "matrix.md").read_text()
    assert table.strip() in text and "| given" in table and "0.500 [" in table
    assert "AP50 (%)" in table and "| failed" in table and "20 bootstrap replicates" in table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--models": ["small"]}, "--models was 'small', but each is NAME=PATH"),
        ({"--models": ["a/b=x.pth"]}, "model 'a/b' names a folder"),
        ({"--models": ["..=x.pth"]}, "model '..' names a folder"),
        ({"--models": ["a=x.pth", "a=y.pth"]}, "two models are named 'a'"),
        ({"--figure": ["sens@x"]}, "sens@F needs a number"),
        ({"--figure": ["auc-imag"]}, "was not computed: the nearest is 'auc-image'"),
    ],
)
def test_one_sentence(tool, data, tmp_path, changes, words):
    named = {"--models": [f"given={data / 'given'}"], "--datasets": [f"val={data / 'val.json'}"],
             "--out": [tmp_path], **changes}  # fmt: skip
    arguments = [word for option, values in named.items() for word in (option, *values)]
    code, _, errors = tool(*arguments)
    assert code == 2 and words in errors and errors.count("error:") == 1


def test_a_checkpoint_needs_images(data, tmp_path):
    pair = ([Model("m", CHECKPOINT)], [DataSet("val", str(data / "val.json"))])
    found = run_matrix(*pair, tmp_path, SETTINGS, tell=lambda text: 0)
    assert "has no folder of images" in found.failures["m", "val"]


def test_predictions_of_files_and_checkpoints(counted, data, tmp_path):
    """What tools/ensemble.py takes: files as they are, checkpoints run once."""
    dataset = DataSet("test", str(data / "val.json"), str(data))
    rest = (dataset, tmp_path, "cpu", 0)
    assert predictions_of("a/b.csv", *rest) == Path("a/b.csv")
    path = predictions_of(CHECKPOINT, *rest)
    assert json.loads(path.read_text()) and predictions_of(CHECKPOINT, *rest) == path
    assert counted["predicted"] == ["val"]
    other = changed_checkpoint(tmp_path / Path(CHECKPOINT).name, note="of the same name")
    assert predictions_of(str(other), *rest) != path
