# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.init``: what the heads take from a checkpoint of other classes."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.config import get_config, instantiate, load_config
from detrex_mammo.engine.initial import load_initial
from tests.engine.starts import NAMES, evaluate, ours_of, refuse, train, write_own


def two_classes(theirs, path: Path, names=("Calcification", "nodule")) -> Path:
    """Our own file with the first two outputs of a live model, under other names."""
    state = ours_of(theirs)
    for name in state:
        if name.startswith("class_embed."):
            state[name] = state[name][:2]
    torch.save({"model": state, "classes": {"names": list(names), "ids": [0, 1]}}, path)
    return path


def test_other_classes_are_refused_with_the_way_out(configs, live, tmp_path, capsys) -> None:
    checkpoint = two_classes(live["refine"], tmp_path / "m.pth")
    for arguments in ([], ["--eval-only"]):
        error = refuse(capsys, configs["refine"], checkpoint, tmp_path / "run", *arguments)
        assert "the file has 2 class(es) and model.num_classes is 5" in error
        assert "train.init.classes" in error


def heads_after(config: str, checkpoint: Path, output: Path, *policy: str) -> dict[str, list]:
    """First value of each row of the class heads after a start; None where it is fresh."""
    cfg = load_config(config, [f"train.init_checkpoint={checkpoint}", *policy])
    model = instantiate(cfg.model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_initial(model, cfg, NAMES)
    return {
        name: [
            None if torch.equal(row, old) else round(float(row), 5)
            for row, old in zip(tensor, fresh[name])
        ]
        for name, tensor in model.state_dict().items()
        if name.startswith("class_embed.") and name.endswith(".bias")
    }


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        ("train.init.classes=reinitialise", [None] * 5),
        ("train.init.classes=by_name", [None, 0, None, None, None]),
        ("train.init.classes={mass: nodule}", [1, None, None, None, None]),
        ("train.init.classes={skin: calcification, mass: NODULE}", [1, None, None, None, 0]),
    ],
)
def test_policies_of_the_command_line(policy, rows, configs, live, tmp_path: Path) -> None:
    for variant in ("refine", "two_stage"):
        checkpoint = two_classes(live[variant], tmp_path / "m.pth")
        stored = ours_of(live[variant])
        found = heads_after(configs[variant], checkpoint, tmp_path / "run", policy)
        for layer in range(3 + (variant == "two_stage")):
            bias = [round(float(value), 5) for value in stored[f"class_embed.{layer}.bias"]]
            kept = [0, None, None, None, None] if layer == 3 else rows
            expected = [None if row is None else bias[row] for row in kept]
            assert found[f"class_embed.{layer}.bias"] == expected


def test_fine_tuning_on_other_classes_runs_and_tells_what_it_kept(
    configs, live, tmp_path: Path
) -> None:
    checkpoint = two_classes(live["two_stage"], tmp_path / "m.pth")
    policy = ("train.init.classes=by_name", "train.init.objectness=false", "train.init.boxes=false")
    saved = train(configs["two_stage"], checkpoint, tmp_path / "run", *policy)
    expected = ours_of(live["two_stage"])
    for name, tensor in saved["model"].items():
        if not name.startswith(("class_embed.", "bbox_embed.")):
            assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(
        saved["model"]["bbox_embed.0.layers.0.weight"], expected["bbox_embed.0.layers.0.weight"]
    )
    log = (tmp_path / "run/log.txt").read_text()
    for words in (
        "% of the parameters come from the file",
        "classes kept: calcification <- Calcification",
        "classes that start afresh: mass, asymmetry, distortion, skin",
        "objectness starts afresh",
        "box heads start afresh",
    ):
        assert words in log
    assert get_config(tmp_path / "run/config.yaml").train.init.classes == "by_name"


def test_too_few_parameters_from_the_file(configs, live, tmp_path: Path, capsys) -> None:
    checkpoint = two_classes(live["refine"], tmp_path / "m.pth")
    policy = ("train.init.classes=reinitialise", "train.init.boxes=false")
    run = tmp_path / "run"
    error = refuse(
        capsys, configs["refine"], checkpoint, run, *policy, "train.init.min_share=0.999"
    )
    assert "less than train.init.min_share, 99.9 %" in error
    train(configs["refine"], checkpoint, run, *policy, "train.init.min_share=0.5")


def test_other_order_of_classes(configs, live, tmp_path: Path, capsys) -> None:
    """Refused as it stands; by name, evaluation is that of the right order."""
    turned = dict(zip(NAMES[::-1], range(5)))
    state = ours_of(live["two_stage"])
    for layer in range(3):  # the proposal head's outputs are no classes
        for leaf in ("weight", "bias"):
            name = f"class_embed.{layer}.{leaf}"
            state[name] = state[name].flip(0)
    content = {"model": state, "classes": {"names": list(turned), "ids": list(range(5))}}
    torch.save(content, tmp_path / "turned.pth")
    config, right = configs["two_stage"], write_own(live["two_stage"], tmp_path / "right.pth")
    for arguments in ([], ["--eval-only"]):
        error = refuse(capsys, config, tmp_path / "turned.pth", tmp_path / "run", *arguments)
        assert "at another place" in error and "train.init.classes=by_name" in error
    by_name = "train.init.classes=by_name"
    found = evaluate(config, tmp_path / "turned.pth", tmp_path / "run", by_name)
    assert found == evaluate(config, right, tmp_path / "right")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("train.init.classes=reinitialise", "evaluates the checkpoint's own heads"),
        ("train.init.boxes=false", "evaluates the checkpoint's own heads"),
        ("train.init.objectness=false", "keeps the heads as they are"),
        ("train.init.classes=by_name", "has none for mass, asymmetry, distortion, skin"),
        ("train.init.classes={mass: nodule}", "has none for calcification, asymmetry"),
    ],
)
def test_heads_at_random_are_not_evaluated(
    policy, words, configs, live, tmp_path: Path, capsys
) -> None:
    checkpoint = two_classes(live["refine"], tmp_path / "m.pth")
    run = tmp_path / "run"
    error = refuse(capsys, configs["refine"], checkpoint, run, "--eval-only", policy)
    assert words in error


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("train.init.classes=keep", "must be one of same, reinitialise, by_name or a mapping"),
        ("train.init.classes={}", "train.init.classes is {}"),
        ("train.init.classes={tumour: nodule}", "train.init.classes has 'tumour: nodule'"),
        ("train.init.classes={mass: tumour}", "train.init.classes has 'mass: tumour'"),
        ("train.init.min_share=2", "train.init.min_share is 2"),
        ("train.init.min_share=much", "it must be a number"),
        ("train.init.boxes=maybe", "it must be true or false"),
        ("train.init.clases=by_name", "'train.init.classes'"),
        ("train.init=by_name", "is a group of settings"),
    ],
)
def test_policies_that_cannot_be(policy, words, configs, live, tmp_path: Path, capsys) -> None:
    checkpoint = two_classes(live["refine"], tmp_path / "m.pth")
    assert words in refuse(capsys, configs["refine"], checkpoint, tmp_path / "run", policy)
