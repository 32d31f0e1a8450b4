# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``python -m detrex_mammo.ops`` and its self-test."""

import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from detrex_mammo.ops import __main__ as tool
from detrex_mammo.ops import (
    dispatch,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
    selftest,
    why_not,
)
from detrex_mammo.ops.embedding_bag import ms_deform_attn_embedding_bag

KEPT = ("HOME", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")


def run(tmp_path, *arguments, **variables):
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {"DETREX_MAMMO_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "detrex_mammo.ops", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def fact(done, name):
    return re.search(rf"^{name} +(.+)$", done.stdout, re.M)[1]


def rows(done, backend):
    """The lines of one backend: its own, and those below without a name."""
    return re.search(rf"^{backend} .*\n(?: .*\n)*", done.stdout, re.M)[0].splitlines()


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_where_there_is_a_compiler(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for backend in ("reference", "embedding_bag", "c"):
        assert len(rows(done, backend)) == 3
        assert all(line.endswith("good") for line in rows(done, backend))
    assert fact(done, "auto takes").startswith("c on a CPU")
    assert re.fullmatch(r"/\S+", fact(done, "C compiler"))
    assert fact(done, "threads").startswith("1, by ")
    assert fact(done, "cache") == str(tmp_path / "detrex_mammo" / "kernels")
    assert torch.__version__ in fact(done, "versions")
    assert f"DETREX_MAMMO_CACHE={tmp_path}, OMP_NUM_THREADS=1" == fact(done, "variables")


def test_where_there_is_none(tmp_path):
    done = run(tmp_path, PATH="", DETREX_MAMMO_OPS_BACKEND="c")
    if "ziglang" in done.stdout and "no C compiler" not in done.stdout:
        pytest.skip("the ziglang wheel is installed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(done, "c") == ["c              no"]
    assert all(line.endswith("good") for line in rows(done, "embedding_bag"))
    assert fact(done, "why not c").startswith("no C compiler is installed")
    assert fact(done, "C compiler") == fact(done, "why not c")
    assert "which cannot be used here (no C compiler" in fact(done, "auto takes")  # it is pinned
    assert "DETREX_MAMMO_OPS_BACKEND=c" in fact(done, "variables")


def test_arguments(tmp_path):
    done = run(tmp_path, "--fast")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: .*takes no arguments.*'--fast'.*\n", done.stderr)


def test_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ops", "--help"])
    assert tool.main() == 0
    assert "python -m detrex_mammo.ops" in capsys.readouterr().out


# Instead of embedding_bag.
FAULTS = {
    "x and y swapped": lambda v, s, p, w: ms_deform_attn_embedding_bag(v, s, p.flip(-1), w),
    "no gradient for value": lambda v, s, p, w: (
        ms_deform_attn_reference(v.detach(), s, p, w) + 0 * v.sum()
    ),
    "half precision": lambda v, s, p, w: ms_deform_attn_reference(v, s, p.bfloat16(), w),
    "NaN": lambda v, s, p, w: ms_deform_attn_reference(v, s, p, w) + p.sum() * 0,
    "raises": lambda v, s, p, w: v.view(7, 7, 7, 7),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_backend_that_computes_wrongly_fails(fault, monkeypatch, capsys):
    monkeypatch.setitem(dispatch.PLAIN, "embedding_bag", FAULTS[fault])
    monkeypatch.setattr(tool, "BACKENDS", ("reference", "embedding_bag"))
    monkeypatch.setattr(sys, "argv", ["ops"])
    assert tool.main() == 1
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("embedding_bag"))
    assert "RuntimeError: shape" in line if fault == "raises" else line.endswith("WRONG")
    (line,) = (line for line in lines if line.startswith("reference"))
    assert line.endswith("good")


@pytest.mark.parametrize("case", selftest.CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_the_inputs_of_both_forms_look_at_the_same_places(case, size):
    strange = len(selftest.STRANGE)  # as many queries see something strange
    value, *plain = selftest._inputs(case[0], 0, *case[1:])
    expected = ms_deform_attn_reference(value, case[0], *plain)
    same_value, *fused = selftest._inputs(case[0], size, *case[1:])
    assert torch.equal(value, same_value)
    found = ms_deform_attn_fused(value, case[0], None, *fused, backend="reference")
    torch.testing.assert_close(found[:, strange:], expected[:, strange:], rtol=0, atol=1e-5)
    assert expected[:, strange:].abs().mean() > 0.01
    for places in (plain[0], fused[1]):
        assert places[0, :strange].isnan().any() and places[0, :strange].isinf().any()


def test_nan_is_not_good():
    assert selftest.Finding("plain", (1e-6, 0.0)).is_good
    assert not selftest.Finding("plain", (1e-6, math.nan)).is_good
    assert not selftest.Finding("plain", (1e-6, 1.0)).is_good
    assert not selftest.Finding("plain", (), "RuntimeError").is_good


def test_what_the_report_calls_usable_is_what_the_operator_says(monkeypatch, capsys):
    monkeypatch.setattr(tool, "self_test", lambda *_: [selftest.Finding("plain", (0.0,) * 4)])
    monkeypatch.setattr(sys, "argv", ["ops"])
    assert tool.main() == 0
    text = capsys.readouterr().out
    for backend in dispatch.BACKENDS:
        assert bool(re.search(rf"^{backend} +no$", text, re.M)) == bool(why_not(backend))
