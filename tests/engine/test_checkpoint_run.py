# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A checkpoint over a data set with what is in the file alone: the same as a run's evaluation."""

import json

import pytest
import torch
import yaml

from detrex_mammo import progress
from detrex_mammo.engine.checkpoint_run import CheckpointRun
from detrex_mammo.errors import UserError
from tests.engine.small_matrix import CHECKPOINT, DEMO, changed_checkpoint, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run():
    return CheckpointRun(CHECKPOINT)


def test_predicts_as_a_run_evaluates(run, data, tmp_path, monkeypatch, capsys):
    """train_net --eval-only with the recipe's config: the same records, bit for bit."""
    from detrex_mammo.config import load_config
    from detrex_mammo.engine.main import run as evaluate

    overrides = [
        "dataloader.test.dataset.name=checkpoint_run_test",
        f"dataloader.test.dataset.json_file={data / 'val.json'}",
        f"dataloader.test.dataset.image_root={data}",
        "dataloader.test.num_workers=0",
        f"train.init_checkpoint={CHECKPOINT}",
        f"train.output_dir={tmp_path}",
        "dataloader.evaluator.bootstrap=0",
    ]
    evaluate(load_config(DEMO, overrides), "cpu", eval_only=True)
    expected = json.loads((tmp_path / "eval" / "coco_instances_results.json").read_text())
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    capsys.readouterr()
    found = run.predict(data / "val.json", data, title="mine")
    assert found == expected and len(found) > 50
    assert capsys.readouterr().err.startswith("mine: 1 of 3 images in 00:0")


def test_classes_are_matched_by_name(run, data, tmp_path):
    """The same file with other ids, in another order: the same boxes under the other ids."""
    content = json.loads((data / "val.json").read_text())
    plain = run.predict(data / "val.json", data)
    content["categories"] = [{**c, "id": 50 - c["id"]} for c in content["categories"]]
    content["annotations"] = []
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = run.predict(tmp_path / "other.json", data)
    assert [{**r, "category_id": 50 - r["category_id"]} for r in other] == plain
    assert len({r["category_id"] for r in plain}) == 2


def test_other_classes_are_one_sentence(run, data, tmp_path):
    content = json.loads((data / "val.json").read_text())
    for names in (["mass"], ["mass", "cyst"]):
        categories = [{"id": n, "name": name} for n, name in enumerate(names)]
        changed = {**content, "categories": categories, "annotations": []}
        (tmp_path / "names.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match="finds calcification cluster, mass, but .* has") as e:
            run.predict(tmp_path / "names.json", data)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_is_one_sentence(run, data, tmp_path, workers):
    with pytest.raises(UserError, match="0.png") as error:
        run.predict(data / "val.json", tmp_path, workers)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_preprocessing_is_the_stored_one(tmp_path, data, run):
    """The file's own entry decides; with another margin the crop, and so the boxes, are others."""
    stored = torch.load(CHECKPOINT, weights_only=True)["preprocessing"]
    path = changed_checkpoint(tmp_path / "a.pth", preprocessing={**stored, "margin": 0.2})
    assert CheckpointRun(path)._mapper.preprocessing.margin == 0.2
    assert run._mapper.preprocessing.margin == stored["margin"] == 0.02


def test_a_cache_of_another_machine_is_not_looked_for(tmp_path):
    config = yaml.safe_load(torch.load(CHECKPOINT, weights_only=True)["config"])
    config["dataloader"]["test"]["mapper"]["cache_dir"] = "/nowhere/cache"
    path = changed_checkpoint(tmp_path / "a.pth", config=yaml.safe_dump(config))
    assert CheckpointRun(path)._mapper._disk is None


def test_a_strangers_file_runs_nothing(tmp_path):
    config = yaml.safe_load(torch.load(CHECKPOINT, weights_only=True)["config"])
    mapper = config["dataloader"]["test"]["mapper"]
    mapper["augmentations"] = [{"_target_": "os.system", "command": f"touch {tmp_path / 'run'}"}]
    path = changed_checkpoint(tmp_path / "a.pth", config=yaml.safe_dump(config))
    with pytest.raises(UserError, match="'os.system', which is not run"):
        CheckpointRun(path)
    assert not (tmp_path / "run").exists()
    assert CheckpointRun(path, config_file=DEMO)._mapper.augmentations


def test_without_a_config_one_must_be_named(tmp_path):
    path = changed_checkpoint(tmp_path / "a.pth", config=None)
    with pytest.raises(UserError, match="name a config with --config-file"):
        CheckpointRun(path)
