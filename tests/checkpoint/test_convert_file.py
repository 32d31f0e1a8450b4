# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/convert_weights.py as people call it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrex_mammo.checkpoint.convert_file import convert_file
from tests.checkpoint.live_models import live_model, write_huggingface, write_other

ROOT = Path(__file__).resolve().parents[2]


def convert_weights(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/convert_weights.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_and_back(tmp_path: Path) -> None:
    theirs = live_model("two_stage", num_classes=91)
    folder = write_huggingface(theirs, tmp_path / "hf", "folder")
    done = convert_weights(folder, tmp_path / "ours.pth")
    assert done.returncode == 0, done.stderr
    assert "huggingface format, Deformable DETR, two-stage" in done.stderr
    assert "COCO's 91 outputs are now its 80 classes" in done.stderr
    assert "verified: largest difference to transformers" in done.stderr
    content = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert set(content) == {"model", "config", "classes", "preprocessing", "provenance"}
    provenance = content["provenance"]
    weights = (folder / "model.safetensors").read_bytes()
    assert provenance["source"]["sha256"] == {
        "model.safetensors": hashlib.sha256(weights).hexdigest()
    }
    assert provenance["source"]["format"] == "huggingface"
    assert provenance["converter"].startswith("detrex_mammo ")
    assert provenance["verification"]["passed"] is True
    done = convert_weights(tmp_path / "ours.pth", tmp_path / "back", "--to", "huggingface")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "back" / "provenance.json").read_text())
    assert told["earlier"]["source"]["format"] == "huggingface"
    assert told["verification"]["source_weights"] == "converted"


def test_a_report_of_everything_that_does_not_fit(tmp_path: Path) -> None:
    path = write_other(live_model("multi_scale"), tmp_path / "m.pth", "official")
    torch.save(
        {
            "model": {
                name: tensor
                for name, tensor in torch.load(path, weights_only=False)["model"].items()
                if "value_proj" not in name
            }
        },
        tmp_path / "cut.pth",
    )
    done = convert_weights(tmp_path / "cut.pth", tmp_path / "t.pth", "--assume", "num_heads=4")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: checkpoint")
    assert "10 missing" in lines[-1]
    assert sum("value_proj" in line for line in lines[:-1]) >= 10
    assert not (tmp_path / "t.pth").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.pth", "t.pth"], "does not exist"),
        (["README.md", "t.pth"], "cut short or no checkpoint"),
        (["tests", "t.pth"], "has neither model.safetensors nor pytorch_model.bin"),
        (["README.md", "README.md"], "exists: remove it"),
        (["README.md", "t.pth", "--assume", "dc5"], "must have key=value"),
        (["README.md", "t.pth", "--assume", "num_heads=[1"], "value cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(arguments, told: str, tmp_path: Path) -> None:
    arguments[1] = arguments[1] if arguments[1] == "README.md" else tmp_path / arguments[1]
    done = convert_weights(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_verification_can_be_left_out_and_says_so(tmp_path: Path) -> None:
    folder = write_huggingface(live_model("multi_scale"), tmp_path / "hf", "folder")
    convert_file(str(folder), tmp_path / "ours.pth", check=False)
    told = torch.load(tmp_path / "ours.pth", weights_only=True)["provenance"]["verification"]
    assert told == {"passed": None, "reason": "not asked for (--no-verify)"}


def test_our_own_file_needs_no_conversion(tmp_path: Path) -> None:
    demo = ROOT / "projects/mammography/checkpoints/demo_small.pth"
    done = convert_weights(demo, tmp_path / "t.pth")
    assert done.returncode == 2
    assert "is in this project's format already" in done.stderr
