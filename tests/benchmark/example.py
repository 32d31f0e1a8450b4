# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Results to show, with figures that are easy to check by hand."""

from pathlib import Path

from detrex_mammo.benchmark.results import Results, Row

MACHINE = {
    "cpu": "Some CPU",
    "architecture": "x86_64",
    "cores": 2,
    "threads": 1,
    "memory_gb": 24.0,
    "gpu": None,
    "load_average_at_start": 0.25,
    "system": "Linux",
}


def make_results(folder: Path, mode: str = "op", device: str = "cpu", quick: bool = False):
    """An empty run."""
    about = {
        "mode": mode,
        "device": device,
        "quick": quick,
        "command": f"python tools/benchmark.py {mode}",
        "machine": MACHINE,
        "versions": {"python": "3.11.7", "torch": "2.14.1", "transformers": "5.23.0"},
    }
    return Results(folder, f"{mode}_{device}", about)


def fill(results: Results) -> Results:
    """An encoder of which the C kernel takes 0.02 s and the reference 0.8 s, and a curve."""
    case = "encoder, unfused, fp32"
    results.add(Row(case, "forward", "reference", values=[0.8, 0.7, 0.9]))
    results.add(Row(case, "forward", "transformers", error="ValueError: no"))
    results.add(Row(case, "forward", "c", values=[0.02, 0.02, 0.03], note="hot"))
    memory = "extra memory, forward + backward"
    results.add(Row(case, memory, "transformers", "B", values=[1.1e9]))
    results.add(Row(case, memory, "c", "B", values=[5.5e7]))
    for x, values in ((100, [0.01, 0.03]), (10, [0.001, 0.003])):
        results.add(Row("by queries", "forward", "c", values=values, x=x))
    results.add(Row("by queries", "forward", "reference", values=[1.0], x=100))
    results.add(Row("by queries", "forward", "reference", x=10, error="broken"))
    results.add_missing({"deformops": "its kernels need a GPU"})
    return results
