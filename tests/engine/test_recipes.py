# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the recipes of several data sets and of MammoMix say, as the engine reads it."""

import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detrex_mammo.config import find_shipped, instantiate, load_config
from detrex_mammo.config_override import parse_value
from detrex_mammo.engine.evaluation import by_name, evaluated_datasets

FOLDER = "projects/mammography/configs"


def test_mammomix_is_as_published() -> None:
    """reference: 5e-4 for everything, 1 x 32 images, clip 5, 5 % warm-up, the least val/loss."""
    cfg = load_config(f"{FOLDER}/mammomix_equivalent.py")
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (5e-4, 1e-5)
    assert cfg.optimizer.params.rules == []
    assert cfg.dataloader.train.total_batch_size * cfg.train.accumulate == 32
    assert cfg.train.clip_grad.params.max_norm == 5.0 and not cfg.train.amp.enabled
    assert (cfg.train.epochs, cfg.train.checkpointer.max_to_keep) == (100, 2)
    assert cfg.train.eval_loss and dict(cfg.train.best) == {"metric": "val/loss", "mode": "min"}
    schedule = instantiate(cfg.lr_multiplier)
    values = [schedule(step, 10, 1000) for step in (0, 25, 50, 525, 1000)]
    assert values == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-9)
    model = instantiate(cfg.model)
    assert (model.num_queries, model.num_classes, model.aux_loss) == (300, 1, False)
    assert (model.two_stage, model.with_box_refine) == (False, False)
    criterion, matcher = model.criterion, model.criterion.matcher
    assert (criterion.weight_class, criterion.weight_bbox, criterion.weight_giou) == (1, 5, 2)
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (1, 5, 2)
    test = cfg.dataloader.test
    assert not test.mapper.preprocessing.crop_breast and test.dataset.classes == ["cancer"]


def test_every_part_of_several_data_sets_is_evaluated_by_itself() -> None:
    cfg = load_config(f"{FOLDER}/multi_dataset_r50_two_stage_50ep.py", ["train.output_dir=out"])
    names = ["cbis_ddsm", "inbreast", "vindr_mammo"]
    train, tests = cfg.dataloader.train.dataset, by_name(cfg.dataloader.test)
    evaluators = by_name(cfg.dataloader.evaluator)
    assert list(train.parts) == list(tests) == list(evaluators) == names
    assert evaluated_datasets(cfg.dataloader) == [f"{name}_test" for name in names]
    assert [evaluators[name].output_dir for name in names] == [f"out/{name}" for name in names]
    for name in names:
        dataset = tests[name].dataset
        assert dataset.classes == train.classes == ["mass", "calcification"]
        assert dict(dataset.class_map).items() <= dict(train.class_map).items()
        assert dataset.image_root == train.parts[name].image_root
        assert tests[name].mapper.preprocessing == cfg.dataloader.train.mapper.preprocessing
        assert tests[name].mapper.is_train is False


def page() -> str:
    return Path(find_shipped("projects/mammography/README.md")).read_text(encoding="utf-8")


def settings_of_the_page() -> list[list[str]]:
    """Overrides of each row of "Training side"."""
    table = page().split("| what | SETTINGS |")[1].split("\n\n")[0]
    rows = [row.split("|")[2].strip().strip("`") for row in table.splitlines()[2:]]
    return [shlex.split(row) for row in rows]


@pytest.mark.parametrize("overrides", settings_of_the_page(), ids=lambda found: found[-1][:40])
def test_each_setting_of_the_page_exists(overrides: list[str]) -> None:
    cfg = load_config(f"{FOLDER}/demo.py", overrides)
    for override in overrides:
        key, _, text = override.partition("=")
        assert OmegaConf.select(cfg, key) == parse_value(text)
    instantiate(cfg.dataloader.train.sampling)
    assert instantiate(cfg.model).tiles is None or "model.tiles" in overrides[0]


def test_the_config_on_the_page_is_one(tmp_path: Path) -> None:
    """It lies in no folder of this project, and its augmentations can be built."""
    text = page().split("```python\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(text)
    mapper = load_config(tmp_path / "mine.py").dataloader.train.mapper
    assert mapper.augmentations[2].height == 384
    assert [type(one).__name__ for one in instantiate(mapper.augmentations)][3] == "RandomAffine"
