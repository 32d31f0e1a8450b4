# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The Triton kernels' machine code for A100 (sm_80) and H200 (sm_90), compiled without a GPU."""

import os

import pytest
import torch

from detrex_mammo.ops import triton_kernel
from detrex_mammo.ops.autotune import CANDIDATES
from tests.ops.triton_ahead import SHAPES, compile_kernel

REASON = triton_kernel.why_not()
pytestmark = pytest.mark.skipif(
    REASON.startswith("Triton") or os.environ.get("TRITON_INTERPRET") == "1",
    reason=REASON or "kernels are interpreted",
)

CORNERS = 4 * len(SHAPES)
KERNELS = ("forward_kernel", "backward_kernel")
# Registers of a thread in the default configuration: the most that was seen, rounded up to the next
# multiple of 8. An SM has 65,536: 64 let 32 warps run at once, 128 let 16.
MOST_REGISTERS = {
    ("forward_kernel", 80): 64,
    ("forward_kernel", 90): 72,
    ("backward_kernel", 80): 208,  # no atomic adds of 16 bytes: one address for each channel
    ("backward_kernel", 90): 112,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from earlier runs, nothing left behind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def check(name: str, capability: int, dtype: torch.dtype, reference_size: int) -> None:
    """No spills, not many registers, and value read in 16 bytes at a time."""
    code = compile_kernel(name, capability, dtype, reference_size)
    assert code.spilled == 0 and code.count("LDL", "STL") == 0
    assert code.registers <= MOST_REGISTERS[name, capability]
    # Default configurations read each corner at once; grad_output, too, may be read so.
    assert CORNERS <= code.count("LDG.E.128") <= CORNERS + 8
    if name == "backward_kernel" and capability == 90:
        adds = CORNERS * (4 // dtype.itemsize)  # a row has as many float32 sums as values
        assert code.count("REDG.E.ADD.F32x4") == code.count("RED", "REDG", "ATOMG") == adds


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "reference_size"),
    [
        ("forward_kernel", 90, torch.bfloat16, 2),
        ("backward_kernel", 90, torch.float32, 0),
        ("forward_kernel", 80, torch.float32, 0),
    ],
)
def test_machine_code(name, capability, dtype, reference_size) -> None:
    check(name, capability, dtype, reference_size)


@pytest.mark.slow
@pytest.mark.parametrize("reference_size", [0, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code_of_all(name, capability, dtype, reference_size) -> None:
    check(name, capability, dtype, reference_size)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_no_candidate_spills(name, capability, dtype) -> None:
    for config in CANDIDATES[name]:
        code = compile_kernel(name, capability, dtype, 2, config)
        assert code.spilled == 0, config
        assert code.count("LDG.E.128") >= CORNERS * config.loads, config


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 1, "channels": 1, "points": 1, "shapes": ((1, 1),)},
        {"heads": 3, "channels": 24, "points": 3, "shapes": SHAPES[:1]},
        {"heads": 8, "channels": 64, "points": 8, "shapes": SHAPES[:3]},
        {"heads": 1, "channels": 256, "points": 4, "shapes": (*SHAPES, (7, 11))},
    ],
)
def test_other_sizes_compile(name, sizes) -> None:
    for capability in (80, 90):
        assert compile_kernel(name, capability, torch.float32, 4, **sizes).spilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_deterministic_gradients_add_integers(capability) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        code = compile_kernel("backward_kernel", capability, torch.bfloat16, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    adds = code.count("RED", "REDG", "ATOMG")
    assert code.spilled == 0
    assert adds == code.count("RED.E.ADD.64", "REDG.E.ADD.64") > 0
