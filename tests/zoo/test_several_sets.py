# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A run on several data sets gives a row for each: that of a run on this set alone."""

import copy
import json
from pathlib import Path

import pytest

from detrex_mammo.config import load_config, resolved, save_config
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from detrex_mammo.zoo.card import write_card
from detrex_mammo.zoo.entry import add_entry, make_entry
from detrex_mammo.zoo.several_sets import read_run
from tests.tiny_configs import write_coco

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"near": 6, "far": 4}


@pytest.fixture(scope="module")
def several(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights evaluated on both sets ("both"), and on the second alone."""
    folder = tmp_path_factory.mktemp("several")
    cfg = resolved(load_config(str(trained / "config.yaml")))
    cfg.train.init_checkpoint = str(trained / "model_final.pth")
    cfg.train.output_dir = "here"
    test, evaluator = cfg.dataloader.test, cfg.dataloader.evaluator
    tests, evaluators = {}, {}
    for name, number in SIZES.items():
        (folder / name).mkdir()
        json_file = write_coco(folder / name, num_images=number)
        tests[name], evaluators[name] = copy.deepcopy(test), copy.deepcopy(evaluator)
        tests[name].dataset.update(
            name=f"{name}_{json_file}", json_file=str(json_file), image_root=str(json_file.parent)
        )
        evaluators[name].update(
            dataset_name=tests[name].dataset.name, output_dir=f"${{train.output_dir}}/{name}"
        )
    evaluators["near"] = [evaluators["near"]]  # a list will do as well
    found = {}
    for name in ("both", "far"):
        one = copy.deepcopy(cfg)
        one.dataloader.test = tests if name == "both" else tests[name]
        one.dataloader.evaluator = evaluators if name == "both" else evaluators[name]
        if name != "both":
            one.dataloader.evaluator.output_dir = "${train.output_dir}"
        one.train.output_dir = str(folder / f"run_{name}")
        save_config(one, folder / f"{name}.yaml")
        main(["--eval-only", "--config-file", str(folder / f"{name}.yaml")])
        found[name] = folder / f"run_{name}" / "eval"
    return found


def test_a_row_is_that_of_the_set_alone(several: dict[str, Path]) -> None:
    row = make_entry(read_run(several["both"] / "far"), "row", ROOT)
    alone = make_entry(read_run(several["far"]), "row", ROOT)
    keys = ("data", "coco", "class_ap", "froc", "classes", "model", "checkpoint", "training")
    for key in keys:
        assert row[key] == alone[key], key
    assert (row["data"]["images"], row["data"]["boxes"], row["froc"]["images"]) == (4, 3, 4)
    assert row["coco"]["top_100"]["AP"] is not None
    assert row["speed"]["images_per_second"] > 0


def test_names_differ_and_the_run_itself_is_no_row(
    several: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    runs = [read_run(several["both"] / name) for name in SIZES]
    assert [len(run.annotations["images"]) for run in runs] == list(SIZES.values())
    names = [run.default_name for run in runs]
    assert names[0].endswith("-near") and names[1] == names[0].replace("-near", "-far")
    monkeypatch.chdir(several["both"])
    assert add_entry("far", tmp_path).name == f"{names[1]}.json"
    assert json.loads((tmp_path / "zoo" / f"{names[1]}.json").read_text())["data"]["images"] == 4
    for refused in (add_entry, lambda folder, root: write_card(folder, root / "card.md")):
        with pytest.raises(UserError, match="several data sets, .* give the folder of one of them"):
            refused(several["both"], tmp_path)
    assert "far" in write_card(several["both"] / "far").read_text()
    assert (several["both"] / "far/README.md").is_file()


def test_other_folders_are_read_as_before(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    assert read_run(evaluated).test_set == read_run(trained).test_set == ""
    (evaluated / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="holds no config.yaml"):
        read_run(evaluated / "empty")
    with pytest.raises(UserError, match="not there"):
        read_run(tmp_path / "none")
