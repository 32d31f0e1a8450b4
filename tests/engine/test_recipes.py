# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the recipes of several data sets and of MammoMix say, as the engine reads it."""

import pytest

from detrex_mammo.config import instantiate, load_config
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
