# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Configs: found from anywhere, fresh each time, strict everywhere."""

import builtins
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from detrex_mammo.config import (
    config_to_text,
    find_shipped,
    get_config,
    instantiate,
    load_config,
    load_config_text,
    save_config,
)
from detrex_mammo.config_override import apply_overrides, parse_value
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config

RECIPE = "projects/deformable_detr/configs/deformable_detr_r50_50ep.py"


def sentence(function, *arguments) -> str:
    """The one sentence that a mistake ends in."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert get_config(RECIPE).model.num_classes == 80
    assert os.path.isabs(find_shipped("configs/common/train.py"))


def test_every_call_returns_a_fresh_copy() -> None:
    get_config(RECIPE).train.amp.enabled = True
    assert get_config(RECIPE).train.amp.enabled is False


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("projects/deformable_detr/configs/deformable_detr_r50_5ep.py", "r50_50ep.py'"),
        ("deformable_detr_r50_two_stge_50ep.py", "deformable_detr_r50_two_stage_50ep.py'"),
        ("nowhere.txt", "must end in .py or .yaml"),
    ],
)
def test_missing_config_names_the_nearest(path: str, expected: str) -> None:
    assert expected in sentence(get_config, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (1\n", "line 1, has a syntax error"),
        ("y = {}\nx = 1 / 0\n", "line 2, does not load: ZeroDivisionError: division by zero"),
        ("from .missing import x\n", "line 1, does not load: "),
        ("from .other import nothing\n", "the file it imports from does not define 'nothing'"),
        ("from .broken import x\n", "broken.py', line 3, does not load: ValueError: no"),
    ],
)
def test_failed_load_is_one_sentence_and_leaves_import_alone(
    text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "config.py").write_text(text)
    (tmp_path / "other.py").write_text("x = dict(a=1)\n")
    (tmp_path / "broken.py").write_text("\n\nraise ValueError('no')\n")
    before = builtins.__import__
    message = sentence(get_config, str(tmp_path / "config.py"))
    assert expected in message
    assert builtins.__import__ is before


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trian.max_iter=3", "'train.max_iter'"),
        ("train.chekpointer.max_to_kep=3", "'train.checkpointer.max_to_keep'"),
        ("model.num_clases=3", "'model.num_classes'"),
        ("model.transformer.num_head=3", "'model.transformer.num_heads'"),
        ("model.backbone.res2_out_chanels=3", "'model.backbone.res2_out_channels'"),
        ("optimizer.lr_=3", "'optimizer.lr'"),
        ("optimizer.amsgrd=True", "'optimizer.amsgrad'"),
        ("lr_multiplyer.gamma=3", "'lr_multiplier.gamma'"),
        ("dataloader.train.total_batchsize=3", "'dataloader.train.total_batch_size'"),
        (
            "dataloader.train.mapper.branches.0.1.max_sizes=3",
            "'dataloader.train.mapper.branches.0.1.max_size'",
        ),
        ("dataloader.train.mapper.branches.7=3", "valid here: 0, 1"),
        ("train.max_iter.x=3", "has no keys of its own"),
        ("+train.new=3", "cannot be created"),
        ("train.epochs", "not of the form key=value"),
        ("=3", "not of the form key=value"),
    ],
)
def test_unknown_override_names_the_nearest_key(override: str, nearest: str) -> None:
    message = sentence(load_config, RECIPE, [override])
    assert nearest in message and override.split("=")[0] in message


def test_argument_that_a_constructor_takes_is_a_key_even_if_the_file_does_not_set_it() -> None:
    cfg = load_config(RECIPE, ["optimizer.eps=1e-6", "model.clip_boxes=true"])
    assert cfg.optimizer.eps == 1e-6 and cfg.model.clip_boxes is True


def rate() -> float:
    """Of a config that computes it."""
    return 1e-2


def own_loader(dataset, mapper, sampler, total_batch_size: int, num_workers: int):
    """Endless, in the order that the engine gives."""
    for indices in batched_from(iter(sampler), total_batch_size):
        yield [mapper(dataset[index]) for index in indices]


def batched_from(order: Iterator[int], size: int) -> Iterator[list[int]]:
    while True:
        yield list(islice(order, size))


def test_a_loader_of_ones_own_gets_what_the_engine_has(tmp_path: Path) -> None:
    target = "dataloader.train._target_=tests.test_config.own_loader"
    main(["--config-file", write_config(tmp_path), target])
    assert (tmp_path / "run/model_final.pth").is_file()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.width", 8.0),  # a class of somebody else may take more than its annotation says
        ("model.dropout", [0.1, 0.2]),
        ("optimizer.params.lr", {"_target_": "tests.test_config.rate"}),
    ],
)
def test_what_may_work_is_not_refused(key: str, value, tmp_path: Path) -> None:
    path = Path(write_config(tmp_path))
    path.write_text(f"{path.read_text()}{key} = {value!r}\n")
    assert OmegaConf.select(load_config(str(path)), key) == value


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ("train.max_itr = 3", "'train.max_iter'"),
        ("train.amp.enable = True", "'train.amp.enabled'"),
        ("model.widht = 4", "'model.width'"),
        ("optimizer.params.weight_decy = 0", "'optimizer.params.weight_decay'"),
        ("dataloader['evaluater'] = None", "'dataloader.evaluator'"),
        ("dataloader['train'].mapper.x = 1", "valid here: fail_at"),
        ("lr_multplier = dict()", "'lr_multiplier'"),
        ("del model", "does not define 'model'"),
        ("del dataloader['train']['mapper']", "lacks dataloader.train.mapper"),
        ("model.width = '${..hidden}'", "model.width: "),
        (
            "model._target_ = 'tests.engine.tiny.Nothing'",
            "tests.engine.tiny.Nothing', which does not",
        ),
        ("train.amp = True", "must be a group of settings"),
        ("train.epochs = 'many'", "train.epochs in "),
    ],
)
def test_mistake_in_a_config_file_is_found(change: str, nearest: str, tmp_path: Path) -> None:
    path = Path(write_config(tmp_path))
    path.write_text(path.read_text() + change + "\n")
    message = sentence(load_config, str(path))
    assert nearest in message and "tiny_config.py" in message


def test_mistake_in_a_reloaded_yaml_is_found(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    save_config(load_config(write_config(tmp_path)), saved)
    saved.write_text(saved.read_text().replace("max_norm:", "max_nrom:"))
    assert "'train.clip_grad.params.max_norm'" in sentence(load_config, str(saved))


def test_saved_config_is_the_same_run(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path), ["model.width=5", "train.amp.dtype=fp16"])
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert config_to_text(again) == config_to_text(cfg)
    assert again.dataloader.evaluator.output_dir == cfg.dataloader.evaluator.output_dir
    apply_overrides(again, ["train.output_dir=elsewhere"])  # interpolations are still alive
    assert again.dataloader.evaluator.output_dir == "elsewhere/inference"
    assert type(instantiate(again.model)) is type(instantiate(cfg.model))


def test_yaml_of_an_earlier_version_gets_the_settings_that_came_later(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path))
    text = config_to_text(cfg).replace("  log_period: 1\n", "")
    (tmp_path / "old.yaml").write_text(text)
    assert load_config(tmp_path / "old.yaml").train.log_period == 20


def test_yaml_runs_no_code() -> None:
    text = "model: !!python/object/apply:os.system ['true']\n"
    assert "not plain YAML" in sentence(load_config_text, text, "config.yaml")


def test_value_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    cfg = load_config(write_config(tmp_path))
    cfg.optimizer.params.rules = [{"pattern": lambda name: True}]
    assert "optimizer.params.rules.0.pattern" in sentence(config_to_text, cfg)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("-0.5", -0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("", ""),
        ("./out put/a=b (1)", "./out put/a=b (1)"),
        ("C:\\data", "C:\\data"),
        ("'3'", "3"),
        ("[1, 2e-3, [a, true]]", [1, 2e-3, ["a", True]]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ("(1,2)", "(1,2)"),
        ("1_000", 1000),
        ("nan", "nan"),
    ],
)
def test_value_of_an_override(text: str, value) -> None:
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_unfinished_list_is_one_sentence() -> None:
    assert "not a valid list" in sentence(parse_value, "[1, 2", "model.in_features")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=many", "must be a number"),
        ("train.epochs=true", "must be a number"),
        ("model.num_classes=two", "must be a number"),
        ("train.fast_dev_run=1", "must be true or false"),
        ("train.amp.enabled=yes", "must be true or false"),
        ("train.amp=True", "set one of its keys instead: train.amp.enabled, train.amp.dtype"),
        ("train.init_checkpoint=null", "must be text"),
        ("model.backbone=r50", "model.backbone is a group of settings"),
        ("optimizer.lr=[1e-4, 1e-5]", "lr is [0.0001, 1e-05] in the command line, but must be a n"),
        ("optimizer.lr=null", "lr is None in the command line, but must be a number"),
        ("optimizer.weight_decay={a: 1}", "must be a number"),
        ("model.num_queries=2.5", "model.num_queries is 2.5 in the command line, but must be"),
        ("model.num_classes=[2]", "must be a whole number"),
        ("model.transformer.dropout=null", "but must be a number"),
        ("train.epochs=1e400", "train.epochs in the command line is inf, but must be a number"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(override: str, expected: str) -> None:
    assert expected in sentence(load_config, RECIPE, [override])


def test_overrides_set_lists_and_text() -> None:
    cfg = load_config(
        RECIPE,
        [
            "train.output_dir=2024",
            "optimizer.params.rules.0.lr_multiplier=1",
            "lr_multiplier.milestones=[10, 20.5]",
            "dataloader.train.mapper.branches[0][1].max_size=999",
            "dataloader.evaluator=null",
            "optimizer.params.rules=[{pattern: backbone, lr_multiplier: 1e-2}]",
        ],
    )
    assert cfg.train.output_dir == "2024"
    assert OmegaConf.to_container(cfg.lr_multiplier.milestones) == [10, 20.5]
    assert cfg.dataloader.train.mapper.branches[0][1].max_size == 999
    assert cfg.dataloader.evaluator is None
    assert cfg.optimizer.params.rules[0].lr_multiplier == 0.01


def test_one_override_reaches_every_use_of_a_value() -> None:
    cfg = load_config(RECIPE, ["model.num_classes=3", "model.two_stage=true", "train.output_dir=x"])
    assert cfg.model.criterion.num_classes == 3
    assert cfg.model.transformer.two_stage is True
    assert cfg.dataloader.evaluator.output_dir == "x/inference"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dataloader.test.inbreast=null", "set dataloader.evaluator.inbreast=null too"),
        ("dataloader.test=null", "set dataloader.evaluator=null too"),
        ("dataloader.train=null", "taken from dataloader.train, which is null: set dataloader.te"),
    ],
)
def test_null_that_another_setting_refers_to_is_one_sentence(override: str, expected: str) -> None:
    path = "projects/mammography/configs/multi_dataset_r50_two_stage_50ep.py"
    with pytest.raises(UserError, match=expected) as caught:
        load_config(path, [override])
    assert "\n" not in str(caught.value) and "interpolation" not in str(caught.value)
    one_set = "projects/mammography/configs/demo.py"  # with relative interpolations
    assert "set dataloader.evaluator=null too" in sentence(
        load_config, one_set, ["dataloader.test=null"]
    )
    both = ["dataloader.test.inbreast=null", "dataloader.evaluator.inbreast=null"]
    assert load_config(path, both).dataloader.test.inbreast is None
