# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a measurement depends on beside its machine: versions."""

import importlib.metadata
import platform
import subprocess

from detrex_mammo.ops.c_compiler import CompilerError, find_compilers

PACKAGES = (
    *("detrex_mammo", "torch", "triton", "transformers", "timm", "detectron2"),
    *("deformops", "ms-deform-attn", "mmcv", "kernels"),
)


def describe_versions() -> dict[str, str]:
    """Python, the C compiler, and those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["C compiler"] = _compiler_version()
    return versions


def _compiler_version() -> str:
    try:
        command = [*find_compilers()[0], "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (CompilerError, OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.splitlines() or ["unknown"])[0]
