# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The description of the machine that stands beside every measured number."""

import json
import os
import platform

import torch

from detrex_mammo.evaluation.hardware import describe_machine, machine_text


def test_a_machine_is_described_without_naming_it() -> None:
    machine = describe_machine()
    assert machine["threads"] == torch.get_num_threads()
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    assert (machine["gpu"] is not None) == torch.cuda.is_available()
    text = json.dumps(machine)
    assert platform.node() not in text or len(platform.node()) < 4


def test_one_line() -> None:
    machine = {"cpu": "Some CPU", "cores": 2, "threads": 1, "gpu": None}
    assert machine_text(machine) == "Some CPU, 2 cores, 1 thread"
    machine["gpu"] = {"name": "Some GPU", "cuda": "13.0"}
    assert machine_text(machine) == "Some CPU, 2 cores, 1 thread; Some GPU, CUDA 13.0"
