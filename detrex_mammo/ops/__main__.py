# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What of ms_deform_attn is available here, why not, and whether it computes what it should.

python -m detrex_mammo.ops

Exit code 1: a backend that could be used fails the self-test.
"""

import os
import platform
import sys
import warnings
from importlib import metadata

import torch
from tabulate import tabulate

from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.ops import BACKENDS, c_compiler, c_kernel, choose_backend, why_not
from detrex_mammo.ops.autotune import AUTOTUNE_VARIABLE
from detrex_mammo.ops.dispatch import BACKEND_VARIABLE
from detrex_mammo.ops.selftest import NAMES, self_test

VARIABLES = (
    *(BACKEND_VARIABLE, c_compiler.CACHE_VARIABLE, AUTOTUNE_VARIABLE, c_compiler.COMPILER_VARIABLE),
    *("OMP_NUM_THREADS", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME"),
)


def main() -> int:
    """Print the report and return the exit code."""
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if arguments:
        raise UserError(
            f"python -m detrex_mammo.ops takes no arguments, but was given "
            f"{' '.join(arguments)!r}; leave them out"
        )
    warnings.simplefilter("ignore")  # what they say is in the table
    rows, is_good = _backend_rows()
    print(tabulate(rows, ["backend", "usable", "form", *NAMES, "self-test"], "simple"))
    print("\nErrors are relative to the reference in float64; fused: of offsets and logits.\n")
    print(tabulate(_facts(), tablefmt="plain"))
    return 0 if is_good else 1


def _backend_rows() -> tuple[list[list[str]], bool]:
    """Rows of the table, and whether every usable backend passed."""
    rows, is_good = [], True
    for backend in BACKENDS:
        reason = why_not(backend)
        if reason:
            rows.append([backend, "no"])
            continue
        is_gpu = backend == "triton" and torch.cuda.is_available()
        label, usable = backend, f"on {'a GPU' if is_gpu else 'the CPU'}"
        for finding in self_test(backend, "cuda" if is_gpu else "cpu"):
            errors = [f"{error:.0e}" for error in finding.errors] or [""] * len(NAMES)
            verdict = "good" if finding.is_good else finding.failure or "WRONG"
            rows.append([label, usable, finding.form, *errors, verdict])
            label = usable = ""
            is_good &= finding.is_good
    return rows, is_good


def _facts() -> list[tuple[str, str]]:
    in_force = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    reasons = [(f"why not {name}", why_not(name)) for name in BACKENDS if why_not(name)]
    return [
        *reasons,
        ("auto takes", f"{_auto('cpu')} on a CPU, {_auto('cuda')} on a GPU"),
        ("C compiler", _compiler()),
        ("threads", _threads()),
        ("cache", _cache()),
        ("versions", f"Python {platform.python_version()}, torch {torch.__version__}, {_triton()}"),
        ("machine", f"{platform.system()} {platform.machine()}, {_gpu()}"),
        ("variables", ", ".join(in_force) or "none is set"),
    ]


def _auto(device: str) -> str:
    try:
        return choose_backend("auto", device)
    except UserError as error:
        return f"nothing ({error})"


def _compiler() -> str:
    try:
        return " ".join(c_compiler.find_compilers()[0])
    except c_compiler.CompilerError as error:
        return str(error)


def _threads() -> str:
    count = torch.get_num_threads()
    if why_not("c"):
        return f"{count} of PyTorch"
    by = "OpenMP" if c_kernel.has_openmp() else "Python (OpenMP cannot be linked)"
    return f"{count}, by {by}"


def _cache() -> str:
    try:
        return str(c_compiler.cache_folder())
    except c_compiler.CompilerError as error:
        return str(error)


def _triton() -> str:
    try:
        return f"triton {metadata.version('triton')}"
    except metadata.PackageNotFoundError:
        return "no triton"


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    run_tool(main)
