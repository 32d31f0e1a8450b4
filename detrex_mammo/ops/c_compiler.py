# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Compile a C file at first use with whatever compiler is there, and keep the result.

The cache is private: a folder or library that another user could have written is never loaded.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "DETREX_MAMMO_CACHE"
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120
# Not -ffast-math: a library linked with it turns on flush-to-zero for the whole process.
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-ffp-contract=fast",
)
# Tried in this order: a compiler may lack OpenMP or not know this processor.
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())


class CompilerError(RuntimeError):
    """No library could be made; the message is one sentence."""


def load_library(source: Path, defines: Mapping[str, str | int]) -> ctypes.CDLL:
    """Compile (once per machine and user) and load a C file.

    Args:
        source: the C file.
        defines: macros.

    Raises:
        CompilerError: no compiler, or none that accepts the file.
    """
    compiler = find_compiler()
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    folder = cache_folder()
    reasons = []
    for optional in OPTIONAL_FLAGS:
        flags = [*FLAGS, *optional, *macros]
        try:
            library = folder / f"{source.stem}-{_key(source, compiler, flags)}.so"
            if not is_private(library):
                _compile(compiler, flags, source, library)
            return ctypes.CDLL(str(library))
        except (CompilerError, OSError) as error:
            reasons.append(str(error))
    raise CompilerError(f"{compiler} cannot compile {source.name} ({reasons[-1]})")


@cache
def find_compiler() -> str:
    """Path of the first C compiler of the machine.

    Raises:
        CompilerError: there is none.
    """
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise CompilerError(f"no C compiler is installed (looked for {', '.join(COMPILERS)})")


@cache
def cache_folder() -> Path:
    """The folder for compiled libraries: the user's own, or a new one if that is not safe."""
    root = os.environ.get(CACHE_VARIABLE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root).expanduser() / "detrex_mammo" / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError:
        pass  # read-only home or somebody else's folder: is_private tells
    if is_private(folder):
        return folder
    return Path(tempfile.mkdtemp(prefix="detrex_mammo_kernels_"))


def is_private(path: Path) -> bool:
    """Whether a path exists, is no link, is ours, and cannot be written by others."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_ours = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    return is_ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(compiler: str, flags: list[str], source: Path, library: Path) -> None:
    """Compile to a file of our own and rename it: several processes may do so at once."""
    handle, partial = tempfile.mkstemp(dir=library.parent, prefix=library.stem, suffix=".partial")
    os.close(handle)
    try:
        command = [compiler, *flags, str(source), "-o", partial, "-lm"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            raise CompilerError((done.stderr.strip().splitlines() or ["no message"])[0])
        os.chmod(partial, 0o700)
        os.replace(partial, library)
    except subprocess.TimeoutExpired as error:
        raise CompilerError(f"compiling took more than {TIMEOUT_S} s") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _key(source: Path, compiler: str, flags: list[str]) -> str:
    parts = [source.read_text(), compiler, _version(compiler), _processor(), *flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@cache
def _processor() -> str:
    """What -march=native depends on: a home folder may be shared between unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(features))])
