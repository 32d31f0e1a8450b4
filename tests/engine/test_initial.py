# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.init_checkpoint``: any project's weights in a run, whole or refused in one sentence."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from detrex_mammo.config import get_config, instantiate, load_config
from detrex_mammo.engine.initial import load_initial
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.checkpoint.attack import Attack, sentence
from tests.checkpoint.other_names import rename
from tests.engine.starts import (
    FORMS,
    NAMES,
    VARIANTS,
    assert_equal,
    evaluate,
    ours_of,
    refuse,
    train,
    write_form,
    write_own,
)
from tests.engine.tiny import TinyDetector, write_config


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_training_starts_from_the_weights_of_any_format(
    variant: str, form: str, configs, live, tmp_path: Path
) -> None:
    """Bit by bit, as the learning rate is 0."""
    checkpoint = write_form(live[variant], tmp_path / "from", form)
    saved = train(configs[variant], checkpoint, tmp_path / "run")
    assert_equal(saved["model"], ours_of(live[variant]))
    digest = saved["provenance"]["init_checkpoint"]["sha256"]
    assert digest and (form != "huggingface" or set(digest) == {"model.safetensors"})


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_evaluation_of_any_format_is_that_of_our_own_file(
    variant: str, configs, live, tmp_path: Path
) -> None:
    """detrex's file runs with eps 1e-3, which our own file is told by its config."""
    results = {}
    for form in FORMS:
        checkpoint = write_form(live[variant], tmp_path / "from", form)
        results[form] = evaluate(configs[variant], checkpoint, tmp_path / form)
    assert len(results["own"]) == 4 * 20
    assert results["official"] == results["own"] == results["huggingface"]
    text = f"model:\n  inverse_sigmoid_eps: 0.001\n  two_stage: {variant == 'two_stage'}\n"
    checkpoint = write_own(live[variant], tmp_path / "eps.pth", config=text)
    assert evaluate(configs[variant], checkpoint, tmp_path / "eps") == results["detrex"]
    written = get_config(tmp_path / "detrex/eval/config.yaml")
    assert written.model.inverse_sigmoid_eps == 1e-3


def test_detrex_weights_keep_their_eps_in_the_model_its_config_and_after_resume(
    configs, live, tmp_path: Path
) -> None:
    checkpoint = write_form(live["refine"], tmp_path / "from", "detrex")
    cfg = load_config(configs["refine"], [f"train.init_checkpoint={checkpoint}"])
    model = instantiate(cfg.model)
    assert model.inverse_sigmoid_eps == 1e-5
    load_initial(model, cfg, NAMES)
    assert model.inverse_sigmoid_eps == cfg.model.inverse_sigmoid_eps == 1e-3

    run = tmp_path / "run"
    saved = train(configs["refine"], checkpoint, run)
    for text in (saved["config"], (run / "config.yaml").read_text()):
        assert OmegaConf.create(text).model.inverse_sigmoid_eps == 1e-3
    checkpoint.unlink()  # a resumed run does not need it
    saved = train(configs["refine"], "", run, "--resume", "train.max_iter=2")
    assert saved["iteration"] == 1
    for text in (saved["config"], (run / "config.yaml").read_text()):
        assert OmegaConf.create(text).model.inverse_sigmoid_eps == 1e-3
    # and a run from that run's file
    saved = train(configs["refine"], run / "model_final.pth", tmp_path / "next")
    assert OmegaConf.create(saved["config"]).model.inverse_sigmoid_eps == 1e-3


def test_weights_of_all_others_bring_back_the_published_eps(configs, live, tmp_path: Path) -> None:
    checkpoint = write_form(live["refine"], tmp_path / "from", "official")
    cfg = load_config(configs["refine"], [f"train.init_checkpoint={checkpoint}"])
    cfg.model.inverse_sigmoid_eps = 1e-3
    model = instantiate(cfg.model)
    load_initial(model, cfg, NAMES)
    assert model.inverse_sigmoid_eps == cfg.model.inverse_sigmoid_eps == 1e-5


@pytest.mark.parametrize("by_image", [True, False])
def test_each_images_own_statistics_and_fixed_ones_do_not_mix(
    by_image, configs, live, tmp_path: Path, capsys
) -> None:
    """Trained on one, evaluated on the other: refused; on the same: evaluated."""
    own = ("model.pixel_mean=null", "model.pixel_std=null")
    first, second = (own, ()) if by_image else ((), own)
    checkpoint = write_form(live["refine"], tmp_path / "from", "own")
    train(configs["refine"], checkpoint, tmp_path / "run", *first)
    trained = tmp_path / "run/model_final.pth"
    said = refuse(capsys, configs["refine"], trained, tmp_path / "no", "--eval-only", *second)
    assert f"set model.pixel_mean and model.pixel_std {'to null' if by_image else 'to nu'}" in said
    evaluate(configs["refine"], trained, tmp_path / "yes", *first)


def test_heads_that_a_file_does_not_tell_are_the_models(configs, live, tmp_path: Path) -> None:
    """detrex's files do not tell the number of heads: 4 here, 8 in all that it published."""
    torch.save({"model": rename(live["refine"], "detrex")}, tmp_path / "m.pth")
    saved = train(configs["refine"], tmp_path / "m.pth", tmp_path / "run")
    assert_equal(saved["model"], ours_of(live["refine"]))


def test_home_and_half_precision(configs, live, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    state = {name: tensor.half() for name, tensor in ours_of(live["refine"]).items()}
    torch.save({"model": state}, tmp_path / "m.pth")
    saved = train(configs["refine"], "~/m.pth", tmp_path / "run")
    assert_equal(saved["model"], {name: tensor.float() for name, tensor in state.items()})


# Backbones


def write_backbone(theirs, path: Path) -> Path:
    """detectron2's R-50.pkl: names without a prefix, a classifier, counters."""
    state = {n: t.numpy() for n, t in ours_of(theirs).items() if n.startswith("backbone.")}
    arrays = {name.removeprefix("backbone."): array for name, array in state.items()}
    arrays["stem.fc.weight"] = arrays["stem.conv1.norm.num_batches_tracked"] = arrays.popitem()[1]
    arrays.update({n.removeprefix("backbone."): a for n, a in state.items()})
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_a_backbone_fills_the_backbone_only(configs, live, tmp_path: Path) -> None:
    checkpoint = write_backbone(live["refine"], tmp_path / "R-14.pkl")
    saved = train(configs["refine"], checkpoint, tmp_path / "run")["model"]
    fresh = train(configs["refine"], "", tmp_path / "fresh")["model"]
    expected = {n: t for n, t in ours_of(live["refine"]).items() if n.startswith("backbone.")}
    assert_equal(saved, {**fresh, **expected})


def test_a_backbone_may_go_deeper_than_the_model(configs, live, tmp_path: Path) -> None:
    cfg = load_config(configs["refine"])
    cfg.model.in_features = ["res3", "res4"]
    cfg.train.init_checkpoint = str(write_backbone(live["refine"], tmp_path / "R-14.pkl"))
    model = instantiate(cfg.model)
    assert not any("res5" in name for name in model.state_dict())
    load_initial(model, cfg)
    expected = ours_of(live["refine"])
    for name, tensor in model.state_dict().items():
        assert not name.startswith("backbone.") or torch.equal(tensor, expected[name])


def test_a_backbone_that_is_not_the_models(configs, live, tmp_path: Path, capsys) -> None:
    checkpoint = write_backbone(live["refine"], tmp_path / "R-14.pkl")
    narrow = "model.backbone.res2_out_channels=16"
    error = refuse(capsys, configs["refine"], checkpoint, tmp_path / "a", narrow)
    assert "mis-shaped (backbone.res2.0.conv1.weight [8, 16, 1, 1] instead of" in error
    error = refuse(capsys, configs["refine"], checkpoint, tmp_path / "b", "model.backbone.depth=26")
    assert "missing (backbone.res2.1.conv1.weight" in error
    error = refuse(capsys, configs["refine"], checkpoint, tmp_path / "c", "--eval-only")
    assert "holds a backbone only, nothing to evaluate" in error


def test_caffe2_backbone_is_refused(configs, tmp_path: Path, capsys) -> None:
    arrays = {"conv1_w": torch.zeros(64, 3, 7, 7).numpy()}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": arrays}))
    error = refuse(capsys, configs["refine"], tmp_path / "R-50.pkl", tmp_path / "run")
    assert "Caffe2's names" in error


# Other models


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("two_stage", "refine", "has two_stage True, but the config's model False"),
        ("refine", "two_stage", "has two_stage False, but the config's model True"),
        ("refine", "multi_scale", "has with_box_refine True, but the config's model False"),
        ("multi_scale", "refine", "has with_box_refine False, but the config's model True"),
    ],
)
def test_another_variant_is_refused_by_its_name(
    form: str, source: str, target: str, words: str, configs, live, tmp_path: Path, capsys
) -> None:
    if form == "own":
        model = load_config(configs[source]).model
        text = OmegaConf.to_yaml(OmegaConf.create({"model": OmegaConf.to_container(model)}))
        checkpoint = write_own(live[source], tmp_path / "own.pth", config=text)
    else:
        checkpoint = write_form(live[source], tmp_path / "from", form)
    for arguments in ([], ["--eval-only"]):
        error = refuse(capsys, configs[target], checkpoint, tmp_path / "run", *arguments)
        assert words in error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.transformer.num_heads=2", "has num_heads 4, but the config's model 2"),
        ("model.transformer.num_encoder_layers=1", "has num_encoder_layers 2, but the config's"),
        ("model.num_queries=9", "query_embed.weight [11, 128] instead of [9, 128]"),
    ],
)
def test_another_size_is_refused(override, words, configs, live, tmp_path: Path, capsys) -> None:
    checkpoint = write_form(live["refine"], tmp_path / "from", "official")
    error = refuse(capsys, configs["refine"], checkpoint, tmp_path / "run", override)
    assert words in error


def test_a_model_that_is_no_deformable_detr_takes_its_own_weights(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"train": {"init_checkpoint": str(tmp_path / "m.pth")}, "model": {}})
    source, target = TinyDetector(), TinyDetector()
    torch.save(source.state_dict(), tmp_path / "m.pth")
    load_initial(target, cfg)
    assert_equal(target.state_dict(), source.state_dict())
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "m.pth")
    message = sentence(load_initial, target, cfg)
    assert "does not fit this model of 4 tensors: 3 missing" in message
    assert "1 mis-shaped (head.weight [1] instead of [1, 8])" in message


# Files that cannot be read


def test_files_and_folders_that_hold_no_weights(configs, tmp_path: Path, capsys) -> None:
    config, run = configs["refine"], tmp_path / "run"
    empty = tmp_path / "folder"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    (tmp_path / "page.pth").write_bytes(b"<html>404</html>")
    victim = tmp_path / "victim"
    torch.save({"model": {"x": torch.zeros(1)}, "args": Attack(victim)}, tmp_path / "attack.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "strange.pth")
    cases = {
        empty: "neither model.safetensors nor pytorch_model.bin",
        tmp_path / "page.pth": "no checkpoint",
        tmp_path / "pag.pth": "the nearest there is 'page.pth'",
        tmp_path / "attack.pth": "not opened",
        tmp_path / "strange.pth": "does not fit this model",
        "http://127.0.0.1:9/m.pth": "cannot be fetched",
    }
    for checkpoint, words in cases.items():
        for arguments in ([], ["--eval-only"]):
            assert words in refuse(capsys, config, checkpoint, run, *arguments), checkpoint
    assert not victim.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("arguments", [(), ("--eval-only",)])
def test_weights_that_are_not_finite_are_refused(
    value: float, arguments: tuple, configs, live, tmp_path: Path, capsys
) -> None:
    """Not trained for a step, and not evaluated: the numbers would mean nothing."""
    path = write_own(live["two_stage"], tmp_path / "own.pth")
    content = torch.load(path, weights_only=True)
    content["model"]["class_embed.0.bias"][1] = value
    torch.save(content, path)
    error = refuse(capsys, configs["two_stage"], path, tmp_path / "run", *arguments)
    assert "not finite (class_embed.0.bias)" in error


class Masked(TinyDetector):
    """Keeps a mask of attention with its weights."""

    def __init__(self, width: int = 8):
        super().__init__(width)
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    """-inf before a softmax is what masks are made of; NaN is not."""
    config = Path(write_config(tmp_path))
    target = f"model._target_={__name__}.Masked"
    main(["--config-file", str(config), target, "train.max_iter=1"])
    first = tmp_path / "run/model_final.pth"
    again = [target, "train.max_iter=1", f"train.init_checkpoint={first}"]
    main(["--config-file", str(config), *again, f"train.output_dir={tmp_path / 'again'}"])
    assert (tmp_path / "again/model_final.pth").is_file()
    content = torch.load(first, weights_only=True)
    content["model"]["mask"][0, 0] = math.nan
    torch.save(content, first)
    with pytest.raises(UserError, match=r"not finite \(mask\)"):
        main(["--config-file", str(config), *again, f"train.output_dir={tmp_path / 'last'}"])
