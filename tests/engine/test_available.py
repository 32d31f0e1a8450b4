# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Memory that is free, from files as Linux writes them."""

from pathlib import Path

import pytest

from detrex_mammo.engine.available import available_bytes


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 100 kB\nMemFree: 5 kB\nMemAvailable: 40 kB\n"}
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 40 * 1024),
        # 30000 allowed, 20000 taken, of which 4000 are files that would be dropped.
        (
            {
                "proc/self/cgroup": "0::/job\n",
                f"{V2}/job/memory.max": "30000\n",
                f"{V2}/job/memory.current": "20000\n",
                f"{V2}/job/memory.stat": "anon 16000\ninactive_file 4000\n",
            },
            14000,
        ),
        # The group above has less.
        (
            {
                "proc/self/cgroup": "0::/slurm/job\n",
                f"{V2}/slurm/job/memory.max": "max\n",
                f"{V2}/slurm/job/memory.current": "20000\n",
                f"{V2}/slurm/memory.max": "25000\n",
                f"{V2}/slurm/memory.current": "24000\n",
            },
            1000,
        ),
        # In a container, the path is that of the host.
        (
            {
                "proc/self/cgroup": "9:cpu:/docker/1\n4:memory:/docker/1\n0::/\n",
                f"{V1}/memory.limit_in_bytes": "9000\n",
                f"{V1}/memory.usage_in_bytes": "8000\n",
                f"{V1}/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            },
            1500,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": "10\n",
                f"{V2}/memory.current": "20\n",
            },
            0,
        ),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_bytes("cpu", write(tmp_path, {**MACHINE, **files})) == expected


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert available_bytes("cpu", tmp_path) is None


def test_this_machine_has_some() -> None:
    assert available_bytes("cpu") > 10 * 2**20


def test_a_gpu_counts_what_torch_holds(monkeypatch) -> None:
    """7 are free beside 5 that torch has taken, for tensors or in store."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (7, 100))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda: 5)
    assert available_bytes("cuda") == 12
