# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Compile the Triton kernels for a GPU that need not be there, and read the machine code."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import torch

from detrex_mammo.ops import autotune, triton_kernel

SHAPES = ((100, 167), (50, 84), (25, 42), (13, 21))


@dataclass(frozen=True)
class MachineCode:
    """What the assembler says of a kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that did not fit into registers.
        instructions: how often each occurs.
    """

    registers: int
    spilled: int
    instructions: Counter

    def count(self, *names: str) -> int:
        """Number of instructions with one of these names, or more modifiers behind it."""
        return sum(
            number
            for found, number in self.instructions.items()
            if any(found == name or found.startswith(name + ".") for name in names)
        )


class _AbsentGpu:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_kernel(
    name: str,
    capability: int,
    dtype: torch.dtype,
    reference_size: int,
    config: autotune.Config | None = None,
    *,
    heads: int = 8,
    channels: int = 32,
    points: int = 4,
    shapes=SHAPES,
) -> MachineCode:
    """Compile a kernel with the very arguments that a call gives it.

    Args:
        name: "forward_kernel" or "backward_kernel".
        capability: 80 or 90.
        dtype: of value, and fused of offsets and logits.
        reference_size: 0 unfused, else 2 or 4.
        config: the default one if None.
    """
    import triton
    from triton.runtime import driver

    from detrex_mammo.ops.kernels import ms_deform_attn

    kernel = getattr(ms_deform_attn, name)
    arguments = _arguments(name, dtype, reference_size, heads, channels, points, shapes)
    config = config or autotune.CANDIDATES[name][0]
    block, warps = triton_kernel.cut(
        config, arguments["value"].element_size(), arguments["PP"], arguments["DP"]
    )
    with mock.patch.object(driver, "_active", _AbsentGpu(capability)):
        compiled = kernel.warmup(**arguments, BQ=block, num_warps=warps, num_stages=1, grid=(1,))
    return _read(compiled.asm, triton.knobs.nvidia)


def _arguments(name, dtype, reference_size, heads, channels, points, shapes) -> dict:
    """What a call with 300 queries hands to the kernel, taken from the call itself."""
    queries, levels, tokens = 300, len(shapes), sum(h * w for h, w in shapes)
    samples = heads * levels * points
    small = dtype if reference_size else torch.float32
    joint = torch.zeros(1, queries, 3 * samples, dtype=small)  # offsets and logits of one GEMM
    places = joint[..., : 2 * samples].view(1, queries, heads, levels, points, 2)
    attention = joint[..., 2 * samples :].view(places.shape[:-1])
    value = torch.zeros(1, tokens, heads, channels, dtype=dtype)
    references = torch.zeros(1, queries, levels, reference_size) if reference_size else None
    inputs = (value, shapes, references, places, attention)
    with mock.patch.object(triton_kernel, "_launch") as launch:
        triton_kernel._forward(*inputs)
        triton_kernel._backward(value.new_zeros(1, queries, heads * channels), *inputs)
    return {call.args[0]: call.args[1] for call in launch.call_args_list}[name]


def _read(asm, tools) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run(tools.cuobjdump.path, "-res-usage", file.name)
        code = _run(tools.cuobjdump.path, "-sass", file.name)
    words = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Za-z0-9_.]+)", code)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return MachineCode(registers, stack, Counter(words))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
