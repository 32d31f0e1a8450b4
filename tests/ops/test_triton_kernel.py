# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Runs triton_cases.py in a process of its own: Triton asks once, at import, how to run kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrex_mammo.ops import triton_kernel

CASES = Path(__file__).with_name("triton_cases.py")
IMPORT_WITHOUT_TRITON = """
import sys

sys.modules["triton"] = None  # importing it fails
from detrex_mammo.ops import triton_kernel

print(triton_kernel.why_not())
"""

needs_triton = pytest.mark.skipif(
    triton_kernel.why_not().startswith("Triton"), reason=triton_kernel.why_not()
)


def run_cases(*options: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES), *options]
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        command,
        cwd=CASES.parents[2],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1")


needs_gpu = pytest.mark.skipif(bool(triton_kernel.why_not()), reason=triton_kernel.why_not())


@needs_gpu
def test_kernels_on_the_gpu() -> None:
    run_cases(DETREX_MAMMO_AUTOTUNE="0")


@needs_gpu
def test_kernels_on_the_gpu_while_they_are_timed(tmp_path: Path) -> None:
    run_cases("-k", "several_blocks", DETREX_MAMMO_AUTOTUNE="1", DETREX_MAMMO_CACHE=str(tmp_path))
    assert list(tmp_path.rglob("triton_autotune.json"))


def test_triton_is_imported_only_when_used() -> None:
    command = [sys.executable, "-c", IMPORT_WITHOUT_TRITON]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CASES.parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Triton cannot be imported: ")


@needs_triton
def why_not_now() -> str:
    """As if asked for the first time."""
    triton_kernel._why_not.cache_clear()
    return triton_kernel.why_not()


@pytest.fixture(autouse=True)
def no_answer_is_kept():
    yield
    triton_kernel._why_not.cache_clear()


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_not_now() == ""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not_now() == "there is no NVIDIA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert why_not_now() == "the GPU's compute capability is 7.5, less than 8.0"
    monkeypatch.setattr("triton.__version__", "3.1.0")
    assert why_not_now() == "Triton 3.1.0 is older than 3.3"
