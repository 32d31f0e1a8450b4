# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a run or a measurement ran on: processor, threads, memory, GPU."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


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


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line about processor and GPU."""
    text = ", ".join(
        (machine["cpu"], _count(machine["cores"], "core"), _count(machine["threads"], "thread"))
    )
    gpu = machine["gpu"]
    return f"{text}; {gpu['name']}, CUDA {gpu['cuda']}" if gpu else text


def num_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
