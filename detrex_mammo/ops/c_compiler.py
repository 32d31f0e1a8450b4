# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Compile a C file at first use with whatever compiler is there, and keep the result.

The cache is private: a folder or library that another user could have written is never loaded.
A start that finds its library in the cache runs no other program.
"""

import atexit
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "DETREX_MAMMO_CACHE"
COMPILER_VARIABLE = "CC"
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
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
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())


class CompilerError(RuntimeError):
    """No library could be made; the message is one sentence."""


def load_library(
    source: Path, defines: Mapping[str, str | int], functions: Sequence[str] = ()
) -> ctypes.CDLL:
    """Compile (once per machine and user) and load a C file.

    The cached file's name ends with a digest of what is in it: a file that was cut is not loaded.

    Args:
        source: the C file.
        defines: macros.
        functions: names that the library must have.

    Raises:
        CompilerError: no compiler, or none that accepts the file.
    """
    macros = [f"-D{name}={value}" for name, value in sorted(defines.items())]
    reasons = []
    for compiler in find_compilers():
        folder, name = cache_folder(), f"{source.stem}-{_key(source, compiler, macros)}"
        for library in folder.glob(f"{name}-*{SUFFIX}"):
            try:
                if is_private(library) and _digest(library) in library.name:
                    return _load(library, functions)
            except (CompilerError, OSError):
                pass  # what it was linked with has gone: made anew
        try:
            return _build(compiler, macros, source, folder / name, functions)
        except subprocess.TimeoutExpired:
            reasons.append(f"{' '.join(compiler)} took more than {TIMEOUT_S} s")
        except (CompilerError, OSError) as error:
            reasons.append(f"{' '.join(compiler)} cannot compile {source.name} ({error})")
    raise CompilerError("; ".join(reasons))


def find_compilers() -> list[tuple[str, ...]]:
    """The commands that compile C here, best first: $CC, cc, gcc, clang, the ziglang wheel.

    Raises:
        CompilerError: there is none.
    """
    if os.name == "nt":
        raise CompilerError("the C kernel is not made for Windows")
    named = os.environ.get(COMPILER_VARIABLE, "").split()
    wanted = [named, *([name] for name in COMPILERS), _ziglang()]
    found = {}  # by what they are: cc is usually a link to gcc
    for words in filter(None, wanted):
        path = shutil.which(words[0])
        if path:
            found.setdefault((os.path.realpath(path), *words[1:]), (path, *words[1:]))
    if not found:
        raise CompilerError(
            f"no C compiler is installed (looked for ${COMPILER_VARIABLE}, {', '.join(COMPILERS)} "
            "and the package ziglang)"
        )
    return list(found.values())


def _ziglang() -> list[str]:
    """What ``python -m ziglang cc`` runs, if that package is installed."""
    package = importlib.util.find_spec("ziglang")
    folders = package.submodule_search_locations if package else None
    return [os.path.join(folders[0], "zig"), "cc"] if folders else []


def cache_folder() -> Path:
    """The folder for compiled libraries: the user's own, or a new one if that is not safe."""
    root = os.environ.get(CACHE_VARIABLE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        ours = Path(root).expanduser().resolve() / "detrex_mammo"
        folder = ours / "kernels"
        ours.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        is_usable = is_private(folder) and not any(map(_is_public, folder.parents))
        if is_usable and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # a read-only home, or none at all
        pass
    return _temporary_folder()


def is_private(path: Path) -> bool:
    """Whether a path exists, is no link, is ours, and cannot be written by others."""
    try:
        status = path.lstat()
    except OSError:
        return False
    is_ours = status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode)
    return is_ours and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_public(parent: Path) -> bool:
    """Whether somebody else may put another folder in the place of one that lies in this parent."""
    status = parent.stat()
    if status.st_uid not in (0, os.getuid()):
        return True
    is_foreign_group = status.st_mode & stat.S_IWGRP and status.st_gid != os.getgid()
    is_writable = status.st_mode & stat.S_IWOTH or is_foreign_group
    return bool(is_writable) and not status.st_mode & stat.S_ISVTX


@cache
def _temporary_folder() -> Path:
    """A new private folder that is gone when this process ends."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="detrex_mammo_kernels_"))
    except OSError as error:
        raise CompilerError(f"there is no folder to compile in ({error})") from error
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _build(
    compiler: tuple[str, ...],
    macros: list[str],
    source: Path,
    library: Path,
    functions: Sequence[str],
) -> ctypes.CDLL:
    """Compile with the most flags that work, load it and put it in its place.

    The file has a name of its own until it is known to load: several processes may do so at once.
    """
    handle, partial = tempfile.mkstemp(dir=library.parent, prefix=library.name, suffix=".partial")
    os.close(handle)
    partial = Path(partial)
    try:
        for optional in OPTIONAL_FLAGS:
            try:
                flags = [*FLAGS, *optional, *macros]
                _run([*compiler, *flags, str(source), "-o", str(partial), "-lm"])
                if not (is_private(partial) and is_private(partial.parent)):
                    raise CompilerError(f"{partial.parent} is not private any more")
                loaded = _load(partial, functions)
            except (CompilerError, OSError) as error:
                reason = error  # also OSError: zig links without the OpenMP that it does not have
                continue
            partial.chmod(0o700)
            partial.replace(library.with_name(f"{library.name}-{_digest(partial)}{SUFFIX}"))
            return loaded
        raise CompilerError(str(reason))
    finally:
        partial.unlink(missing_ok=True)


def _load(library: Path, functions: Sequence[str]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    missing = [name for name in functions if not hasattr(loaded, name)]
    if missing:
        raise CompilerError(f"the library has no {', '.join(missing)}")
    return loaded


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise CompilerError(next((line for line in lines if "error" in line), lines[0]))


def _key(source: Path, compiler: tuple[str, ...], macros: list[str]) -> str:
    """Of all that the library depends on; the compiler by its file, to run nothing."""
    program = os.stat(compiler[0])
    parts = [source.read_text(), *compiler, program.st_size, program.st_mtime_ns, _processor()]
    parts += [*FLAGS, OPTIONAL_FLAGS, *macros]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


@cache
def _processor() -> str:
    """What -march=native depends on: a home folder may be shared between unlike machines."""
    parts = [platform.machine(), _macos_processor()]
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if not line.strip():
                    break  # the first processor tells; reading a hundred takes milliseconds
                if line.startswith(("model name", "flags", "Features", "CPU ", "isa")):
                    parts.append(line)
    except OSError:
        pass
    return "\n".join(parts)


def _macos_processor() -> str:
    """The name that ``sysctl -n machdep.cpu.brand_string`` prints; elsewhere nothing."""
    if sys.platform != "darwin":
        return ""
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    ctypes.CDLL(None).sysctlbyname(
        b"machdep.cpu.brand_string", name, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return name.value.decode(errors="replace")
