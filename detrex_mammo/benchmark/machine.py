# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a measurement depends on: processor, threads, versions, and how busy the machine was."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from detrex_mammo.ops.c_compiler import CompilerError, find_compilers

PACKAGES = (
    *("detrex_mammo", "torch", "triton", "transformers", "timm", "detectron2"),
    *("deformops", "ms-deform-attn", "mmcv", "kernels"),
)


def describe_machine() -> dict[str, Any]:
    """Processor, memory and GPU; nothing that names the machine."""
    gpu = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpu": gpu,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "system": platform.system(),
    }


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


def num_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _compiler_version() -> str:
    try:
        command = [*find_compilers()[0], "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (CompilerError, OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.splitlines() or ["unknown"])[0]
