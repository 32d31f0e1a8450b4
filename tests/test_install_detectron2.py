# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/install_detectron2.py, on made-up archives; nothing is downloaded."""

import csv
import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "install_detectron2.py"


def load_script():
    """The script as a module; tools/ is not a package."""
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


installer = load_script()


def make_archive(folder: Path, files: dict[str, str]) -> tuple[Path, str]:
    """A source archive of ``files`` below one top folder, and its sha256."""
    path = folder / "made-up-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"made-up-0.6/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_reads_python_and_licence_only(tmp_path: Path) -> None:
    files = {
        "LICENSE": "licence",
        "setup.py": "raise SystemExit('never run')",
        "detectron2/__init__.py": "",
        "detectron2/data/build.py": "x = 1\n",
        "detectron2/data/notes.txt": "",
        "detectron2/model_zoo/configs/a.py": "",
        "projects/p/a.py": "",
    }
    archive, digest = make_archive(tmp_path, files)
    sources = installer.read_sources(archive, digest)
    assert set(sources) == {"LICENSE", "detectron2/__init__.py", "detectron2/data/build.py"}
    assert sources["detectron2/data/build.py"] == b"x = 1\n"


def test_another_archive_is_one_sentence(tmp_path: Path) -> None:
    archive, digest = make_archive(tmp_path, {"LICENSE": ""})
    with pytest.raises(installer.InstallError) as error:
        installer.read_sources(archive)
    message = str(error.value)
    assert str(archive) in message and digest in message and installer.SHA256 in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "pattern", "count", "result"),
    [
        ("a = b\n", "b", 1, "a = c\n"),
        ("b b\n", "b", 2, "c c\n"),
        ("np.int np.int64 xnp.int", re.compile(r"\bnp\.(int)\b"), 1, "c np.int64 xnp.int"),
    ],
)
def test_edit_is_made(text: str, pattern: str | re.Pattern, count: int, result: str) -> None:
    sources = {"detectron2/f.py": text.encode()}
    patched = installer.apply_edits(sources, {"f.py": [(pattern, count, "c")]})
    assert patched == {"detectron2/f.py": result.encode()}
    assert sources == {"detectron2/f.py": text.encode()}


@pytest.mark.parametrize(
    ("text", "pattern", "count"),
    [
        ("a = x\n", "b", 1),  # not there
        ("b b\n", "b", 1),  # more often than known
        ("b\n", "b", 2),  # less often
        ("np.int64\n", re.compile(r"\bnp\.int\b"), 1),
    ],
)
def test_edit_that_does_not_fit_is_an_error(text: str, pattern, count: int) -> None:
    sources = {"detectron2/f.py": text.encode()}
    with pytest.raises(installer.InstallError, match=r"detectron2/f\.py has .* times where"):
        installer.apply_edits(sources, {"f.py": [(pattern, count, "c")]})


def test_edit_of_a_missing_file_is_an_error() -> None:
    with pytest.raises(installer.InstallError, match=r"detectron2/f\.py is not in the archive"):
        installer.apply_edits({"detectron2/g.py": b""}, {"f.py": [("b", 1, "c")]})


def test_numpy_aliases_keep_their_longer_namesakes() -> None:
    replaced = installer._ALIAS.sub(
        r"\1", "np.bool np.bool_ np.int np.int64 np.float32 np.str, dtype=np.float)"
    )
    assert replaced == "bool np.bool_ int np.int64 np.float32 str, dtype=float)"


def test_wheel_is_complete_and_repeatable(tmp_path: Path) -> None:
    sources = {"LICENSE": b"licence", "detectron2/__init__.py": b'__version__ = "0.6"\n'}
    wheel = installer.build_wheel(sources, tmp_path / "one")
    again = installer.build_wheel(sources, tmp_path / "two")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    assert wheel.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = "detectron2-0.6.dist-info"
        rows = list(csv.reader(archive.read(f"{info}/RECORD").decode().splitlines()))
        metadata = archive.read(f"{info}/METADATA").decode()
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert sorted(row[0] for row in rows) == sorted(names)
    assert all(int(row[2]) == sizes[row[0]] for row in rows if row[2])
    assert f"{info}/licenses/LICENSE" in names and "LICENSE" not in names
    head, _, body = metadata.partition("\n\n")
    assert "Name: detectron2\nVersion: 0.6\n" in head
    assert "Requires-Dist: fvcore" in head and "torch" not in head
    assert all(f"detectron2/{file}" in body for file in installer.EDITS)


def test_missing_operator_says_what_to_do() -> None:
    scope: dict = {}
    exec(installer.NO_COMPILED_OPERATORS, scope)
    with pytest.raises(AttributeError, match=r"detectron2\._C\.nms_rotated .* build detectron2"):
        scope["_C"].nms_rotated(1)


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [
        ("0.6", True),
        ("0.6+cu111", True),
        ("0.10", True),
        ("1.0", True),
        ("0.5", False),
        ("", False),
    ],
)
def test_version_bound(version: str, is_enough: bool) -> None:
    assert installer.is_new_enough(version) is is_enough


def run_with(package: Path, tmp_path: Path) -> subprocess.CompletedProcess:
    """Run the script where ``import detectron2`` finds the package in ``package``'s folder."""
    env = {"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, str(SCRIPT)]
    return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)


def test_old_detectron2_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").write_text('__version__ = "0.5"\n')
    done = run_with(tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: detectron2 0.5 in ") and "too old" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_broken_detectron2_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").write_text('__version__ = "0.7"\n')
    done = run_with(tmp_path, tmp_path)
    assert done.returncode == 2
    assert (
        "does not import (ModuleNotFoundError: No module named 'detectron2.config')" in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_installed_detectron2_stays(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").write_text('__version__ = "0.7"\n')
    for module in installer.CHECKED_MODULES:
        path = tmp_path / "detectron2" / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    done = run_with(tmp_path, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("detectron2 0.7 is already installed in ")
