# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Compiling at first use: what is kept, what is not trusted, what is done without."""

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detrex_mammo.ops import c_compiler
from detrex_mammo.ops.c_compiler import CompilerError, cache_folder, is_private, load_library

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, c_compiler.COMPILERS)), reason="no C compiler"
)
ZIGLANG = c_compiler._ziglang
SOURCE = """
int answer(void) { return ANSWER; }
int has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
"""
# By its path: importing the package would import torch, too.
LOAD = """
import runpy, sys
from pathlib import Path
module = runpy.run_path(sys.argv[1])
print(module["load_library"](Path(sys.argv[2]), {"ANSWER": sys.argv[3]}).answer())
print(module["cache_folder"]())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch):
    """An empty cache of our own; compilers are those of PATH."""
    monkeypatch.setenv(c_compiler.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(c_compiler.COMPILER_VARIABLE, raising=False)
    monkeypatch.setattr(c_compiler, "_ziglang", lambda: [])
    c_compiler._temporary_folder.cache_clear()
    yield tmp_path / "cache" / "detrex_mammo" / "kernels"
    c_compiler._temporary_folder.cache_clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


def program(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def real_compiler() -> str:
    return next(filter(None, map(shutil.which, c_compiler.COMPILERS)))


def load_in_new_process(source: Path, answer: int) -> subprocess.Popen:
    command = [sys.executable, "-c", LOAD, c_compiler.__file__, str(source), str(answer)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@needs_compiler
def test_compiles_once_for_each_set_of_macros(cache, source) -> None:
    assert load_library(source, {"ANSWER": 42}).answer() == 42
    assert load_library(source, {"ANSWER": 43}).answer() == 43
    built = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(built) == 2
    assert load_library(source, {"ANSWER": 42}).answer() == 42
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == built
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert all(map(is_private, built))


@needs_compiler
def test_a_cached_start_runs_no_other_program(cache, source, monkeypatch) -> None:
    load_library(source, {"ANSWER": 5})
    c_compiler._processor.cache_clear()

    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    assert load_library(source, {"ANSWER": 5}).answer() == 5


@needs_compiler
def test_another_compiler_another_processor_or_other_flags_are_another_library(
    cache, source, tmp_path, monkeypatch
) -> None:
    load_library(source, {"ANSWER": 1})
    for count, change in enumerate(
        [
            lambda: monkeypatch.setattr(c_compiler, "_processor", lambda: "another"),
            lambda: monkeypatch.setattr(c_compiler, "FLAGS", (*c_compiler.FLAGS, "-DMORE")),
            lambda: monkeypatch.setenv("CC", f"{real_compiler()} -DMORE"),
            lambda: source.write_text(SOURCE + "\n"),
        ],
        start=2,
    ):
        change()
        load_library(source, {"ANSWER": 1})
        assert len(list(cache.iterdir())) == count
    script = f'#!/bin/sh\nexec {real_compiler()} "$@"\n'
    monkeypatch.setenv("CC", str(program(tmp_path / "mine", script)))
    load_library(source, {"ANSWER": 1})
    os.utime(program(tmp_path / "mine", script), (1, 1))  # a new version of the same size
    load_library(source, {"ANSWER": 1})
    assert len(list(cache.iterdir())) == 7


@needs_compiler
@pytest.mark.parametrize("mode", [0o720, 0o702, "a link"])
def test_a_library_that_others_could_have_written_is_built_anew(cache, source, mode) -> None:
    load_library(source, {"ANSWER": 1})
    (library,) = cache.iterdir()
    library.unlink()  # not written over: this process has it in memory
    load_library(source, {"ANSWER": 666})
    (evil,) = cache.iterdir()
    if mode == "a link":
        library.symlink_to(evil)
    else:
        shutil.copy(evil, library)
        library.chmod(mode)
    assert not is_private(library)
    assert load_library(source, {"ANSWER": 1}).answer() == 1
    assert not library.is_symlink() and is_private(library)


@needs_compiler
@pytest.mark.parametrize("kept", [0, 300, 2000])
def test_a_library_that_was_cut_is_built_anew(kept, cache, source) -> None:
    """Cut to 2000 bytes it would still load, and end the process with a bus error.

    As it would end this one, at the next error of some library, if it were loaded here.
    """
    load_in_new_process(source, 1).communicate()
    (library,) = cache.iterdir()
    os.truncate(library, kept)
    answer = load_in_new_process(source, 1).communicate()[0].split()[0]
    assert answer == "1"


@needs_compiler
def test_a_cache_that_is_emptied_meanwhile_is_made_anew(cache, source) -> None:
    load_library(source, {"ANSWER": 1})
    shutil.rmtree(cache.parent)
    assert load_library(source, {"ANSWER": 2}).answer() == 2


@needs_compiler
def test_a_library_without_the_functions_is_one_sentence(cache, source) -> None:
    with pytest.raises(CompilerError, match="has no question"):
        load_library(source, {"ANSWER": 1}, ["answer", "question"])
    assert not list(cache.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_folder_that_others_could_write_is_neither_used_nor_repaired(cache, mode) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    folder = cache_folder()
    assert folder != cache and "detrex_mammo_kernels_" in folder.name
    assert is_private(folder) and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.stat().st_mode) == mode
    shutil.rmtree(folder)


def test_a_folder_that_anybody_could_replace_is_not_used(cache, tmp_path) -> None:
    tmp_path.chmod(0o777)
    assert cache_folder() != cache
    shutil.rmtree(cache_folder())
    tmp_path.chmod(0o1777)  # sticky, as /tmp: only the owner may rename
    c_compiler._temporary_folder.cache_clear()
    assert cache_folder() == cache


def test_a_link_or_a_folder_of_somebody_else_is_not_used(cache, tmp_path, monkeypatch) -> None:
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() != cache
    shutil.rmtree(cache_folder())
    cache.unlink()
    c_compiler._temporary_folder.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        assert cache_folder() != cache
    shutil.rmtree(cache_folder())


def test_without_a_home_there_is_a_folder_too(cache, monkeypatch) -> None:
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert is_private(cache_folder())
    shutil.rmtree(cache_folder())


@needs_compiler
def test_the_temporary_folder_is_gone_when_the_process_ends(cache, source) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    answer, folder = load_in_new_process(source, 3).communicate()[0].split()
    assert answer == "3" and folder != str(cache)
    assert not Path(folder).exists() and list(cache.iterdir()) == []


@needs_compiler
def test_several_processes_at_once(cache, source) -> None:
    children = [load_in_new_process(source, 7) for _ in range(6)]
    assert [child.communicate()[0].split()[0] for child in children] == ["7"] * 6
    assert [path.suffix for path in cache.iterdir()] == [c_compiler.SUFFIX]


@needs_compiler
def test_several_threads_at_once(cache, source) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: load_library(source, {"ANSWER": 8}).answer(), range(8))
        assert list(found) == [8] * 8
    assert [path.suffix for path in cache.iterdir()] == [c_compiler.SUFFIX]


@needs_compiler
@pytest.mark.parametrize("unknown", ["-fopenmp", "-march=native", "-fopenmp|-march=native"])
def test_flags_that_the_compiler_lacks_are_left_out(unknown, cache, source, tmp_path, monkeypatch):
    picky = f"""#!/bin/sh
for word in "$@"; do case $word in {unknown}) echo "unknown $word" >&2; exit 1;; esac; done
exec {real_compiler()} "$@"
"""
    monkeypatch.setenv("CC", str(program(tmp_path / "picky", picky)))
    library = load_library(source, {"ANSWER": 9})
    assert library.answer() == 9
    if "openmp" in unknown:
        assert library.has_openmp() == 0
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_openmp_that_cannot_be_loaded_is_left_out(cache, source, tmp_path, monkeypatch) -> None:
    """As ziglang does it: accepts -fopenmp, links without a library for it."""
    source.write_text(
        SOURCE + "#ifdef _OPENMP\nint missing(void);\nint f(void) { return missing(); }\n#endif\n"
    )
    library = load_library(source, {"ANSWER": 4})
    assert library.answer() == 4 and library.has_openmp() == 0


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="no ziglang wheel")
def test_ziglang_for_real(cache, source, monkeypatch) -> None:
    monkeypatch.setattr(c_compiler, "COMPILERS", ())
    monkeypatch.setattr(c_compiler, "_ziglang", ZIGLANG)
    assert load_library(source, {"ANSWER": 2}).answer() == 2
    assert [path.suffix for path in cache.iterdir()] == [c_compiler.SUFFIX]


def test_order_of_compilers(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "bin"
    gcc, clang, mine = (program(folder / name, "#!/bin/sh\n") for name in ("gcc", "clang", "mine"))
    (folder / "cc").symlink_to(gcc)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CC", "mine -m64")
    package = tmp_path / "ziglang"
    zig = program(package / "zig", "#!/bin/sh\n")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    expected = [(str(mine), "-m64"), (str(folder / "cc"),), (str(clang),), (str(zig), "cc")]
    assert c_compiler.find_compilers() == expected
    monkeypatch.setenv("CC", "not-installed")
    assert c_compiler.find_compilers() == expected[1:]


@needs_compiler
def test_the_next_compiler_is_tried(cache, source, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CC", str(program(tmp_path / "broken", "#!/bin/sh\nexit 1\n")))
    assert load_library(source, {"ANSWER": 6}).answer() == 6


@needs_compiler
def test_what_does_not_compile_is_one_sentence(cache, source) -> None:
    source.write_text("int unused;\nthis is not C\n")
    with pytest.raises(CompilerError, match=r"cannot compile answer.c .*error:") as caught:
        load_library(source, {})
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "not a program\x01"])
def test_a_compiler_that_fails_is_one_sentence(text, cache, source, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin" / "cc", text).parent))
    with pytest.raises(CompilerError, match="cannot compile answer.c") as caught:
        load_library(source, {"ANSWER": 1})
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []


def test_a_compiler_that_hangs_is_asked_once(cache, source, tmp_path, monkeypatch) -> None:
    log = tmp_path / "log"
    script = f"#!/bin/sh\nprintf x >> '{log}'\nexec /bin/sleep 60\n"
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin" / "cc", script).parent))
    monkeypatch.setattr(c_compiler, "TIMEOUT_S", 1)
    with pytest.raises(CompilerError, match="took more than 1 s"):
        load_library(source, {"ANSWER": 1})
    assert log.read_text() == "x" and list(cache.iterdir()) == []


def test_without_a_compiler(cache, source, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompilerError, match="^no C compiler is installed"):
        load_library(source, {"ANSWER": 1})


def test_on_windows_there_is_a_sentence(source, monkeypatch) -> None:
    windows = types.SimpleNamespace(name="nt", environ=os.environ)  # without getuid, too
    monkeypatch.setattr(c_compiler, "os", windows)
    with pytest.raises(CompilerError, match="not made for Windows"):
        load_library(source, {"ANSWER": 1})
