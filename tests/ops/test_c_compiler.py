# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
import multiprocessing
import os
import shutil
import stat
from pathlib import Path

import pytest

from detrex_mammo.ops import c_compiler, cpu
from detrex_mammo.ops.c_compiler import CompilerError, cache_folder, is_private, load_library

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, c_compiler.COMPILERS)), reason="no C compiler"
)
SOURCE = "int answer(void) { return ANSWER; }\n"


def clear() -> None:
    for function in (cache_folder, c_compiler.find_compiler):
        function.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch):
    """An empty cache of our own."""
    monkeypatch.setenv(c_compiler.CACHE_VARIABLE, str(tmp_path / "cache"))
    clear()
    yield tmp_path / "cache" / "detrex_mammo" / "kernels"
    clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_compiles_once_for_each_set_of_macros(cache, source) -> None:
    assert load_library(source, {"ANSWER": 42}).answer() == 42
    assert load_library(source, {"ANSWER": 43}).answer() == 43
    built = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(built) == 2
    assert load_library(source, {"ANSWER": 42}).answer() == 42
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == built
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@needs_compiler
def test_a_library_that_others_could_have_written_is_built_anew(cache, source) -> None:
    load_library(source, {"ANSWER": 1})
    (library,) = cache.iterdir()
    library.unlink()  # not written over: this process has it in memory
    library.write_bytes(b"somebody else's")
    library.chmod(0o777)
    assert not is_private(library)
    assert load_library(source, {"ANSWER": 1}).answer() == 1
    library.unlink()
    library.symlink_to("/bin/true")
    assert not is_private(library)
    assert load_library(source, {"ANSWER": 1}).answer() == 1
    assert not library.is_symlink() and is_private(library)


def test_a_folder_that_is_not_ours_is_not_used(cache, monkeypatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    folder = cache_folder()
    assert folder != cache and "detrex_mammo_kernels_" in folder.name
    shutil.rmtree(folder)


def _load(source: Path) -> int:
    clear()
    return load_library(source, {"ANSWER": 7}).answer()


@needs_compiler
def test_several_processes_at_once(cache, source) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_load, [source] * 6) == [7] * 6
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_what_does_not_compile_is_one_sentence(cache, source) -> None:
    source.write_text("this is not C\n")
    with pytest.raises(CompilerError, match="cannot compile answer.c") as caught:
        load_library(source, {})
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_without_a_compiler_the_kernel_says_why(cache, monkeypatch) -> None:
    monkeypatch.setattr(c_compiler, "COMPILERS", ())
    cpu.why_not.cache_clear()
    cpu._kernel.cache_clear()
    try:
        assert not cpu.is_available()
        assert cpu.why_not().startswith("no C compiler is installed")
    finally:
        cpu.why_not.cache_clear()


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "not a program\x01"])
def test_a_compiler_that_fails_is_one_sentence(text, cache, source, tmp_path, monkeypatch) -> None:
    fake = tmp_path / "bin" / "cc"
    fake.parent.mkdir()
    fake.write_text(text)
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(CompilerError, match="cannot compile answer.c") as caught:
        load_library(source, {"ANSWER": 1})
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []
