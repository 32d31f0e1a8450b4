# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Runs of tools/train_net.py's main that start from a checkpoint, and the files they start from.

The oracle is a live transformers model, put into our model by names that the package does not know
(tests/modeling/hf_oracle.py).
"""

import json
from pathlib import Path

import pytest
import torch

from detrex_mammo.engine.main import main
from detrex_mammo.errors import run_tool
from tests.checkpoint.live_models import write_huggingface, write_other
from tests.modeling.hf_oracle import to_our_names

NAMES = ["mass", "calcification", "asymmetry", "distortion", "skin"]
VARIANTS = ("multi_scale", "refine", "two_stage")
FORMS = ("own", "official", "huggingface", "detrex")


def ours_of(theirs) -> dict[str, torch.Tensor]:
    return to_our_names(theirs.state_dict(), not theirs.config.with_box_refine)


def write_own(theirs, path: Path, names=NAMES, **more) -> Path:
    """Our own file with a live model's weights."""
    table = {"names": list(names), "ids": list(range(len(names)))}
    torch.save({"model": ours_of(theirs), "classes": table, **more}, path)
    return path


def call(config: str, checkpoint: Path | str, output: Path, *arguments: str) -> Path:
    """Run the tool's main; returns the run's folder."""
    main(
        ["--config-file", config, f"train.init_checkpoint={checkpoint}",
         f"train.output_dir={output}", *arguments]
    )  # fmt: skip
    return output


def evaluate(config: str, checkpoint: Path, output: Path, *arguments: str) -> list[dict]:
    """Predictions of --eval-only."""
    call(config, checkpoint, output, "--eval-only", *arguments)
    return json.loads((output / "eval/inference/coco_instances_results.json").read_text())


def train(config: str, checkpoint: Path, output: Path, *arguments: str) -> dict:
    """The final checkpoint of one step with a learning rate of 0."""
    call(config, checkpoint, output, "dataloader.evaluator=null", *arguments)
    return torch.load(output / "model_final.pth", weights_only=True)


def refuse(capsys, config: str, checkpoint: Path | str, output: Path, *arguments: str) -> str:
    """What the tool prints when it ends with exit code 2: one sentence, and no run is left."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_tool(lambda: call(config, checkpoint, output, *arguments) and None)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    error = errors.strip().splitlines()[-1]
    assert error.startswith("error: ") and "Traceback" not in errors
    assert not (output / "model_final.pth").exists()
    assert not (output / "eval/metrics.json").exists()
    return error


def assert_equal(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def write_form(theirs, folder: Path, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    if form == "own":
        return write_own(theirs, folder / "own.pth")
    if form == "huggingface":
        return write_huggingface(theirs, folder / "folder", "folder")
    return write_other(theirs, folder / f"{form}.pth", form)
