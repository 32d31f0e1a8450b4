# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The floors of the house: which part of detrex_mammo may import which (CONTRIBUTING.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# "" is detrex_mammo/__init__.py
GROUND = {"", "errors", "progress", "config", "config_check", "config_override"}
LOWER = ("ops", "layers", "modeling", "checkpoint", "data", "evaluation")

# part: the parts of detrex_mammo that it may import besides itself
FLOORS: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "ops": GROUND,
    "layers": GROUND | {"ops"},
    "modeling": GROUND | {"ops", "layers"},
    **dict.fromkeys(("checkpoint", "data", "evaluation"), GROUND),
    **dict.fromkeys(("inference", "export", "zoo"), GROUND | set(LOWER)),
    "benchmark": GROUND | set(LOWER) | {"engine"},  # measures a run
    "engine": GROUND | set(LOWER) | {"inference"},  # a run draws its predictions
}
ABOVE = {"configs", "projects", "tools", "tests"}  # imported by nothing


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, also those inside functions.

    ``from a import b`` gives ``a.b``: b may be a module. ``import_module("a.b")`` counts too.

    Args:
        source: a module's text.
        package: the package that a relative import starts from, e.g. ``detrex_mammo.ops``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def part_of(module: str, root: Path) -> str | None:
    """Part of detrex_mammo that a module name belongs to; None if it is somebody else's."""
    names = module.split(".")
    if names[0] != "detrex_mammo":
        return None
    first = names[1] if len(names) > 1 else ""
    folder = root / "detrex_mammo"
    is_module = (folder / first).is_dir() or (folder / f"{first}.py").is_file()
    return first if is_module or first in ABOVE else ""  # else a name in detrex_mammo/__init__.py


def broken_floors(root: Path) -> list[str]:
    """One line for each import in ``root/detrex_mammo`` that its floor forbids."""
    broken = []
    for file in sorted((root / "detrex_mammo").rglob("*.py")):
        relative = file.relative_to(root)
        part = "" if relative.parts[1:] == ("__init__.py",) else relative.with_suffix("").parts[1]
        if part not in FLOORS:
            broken.append(
                f"{relative}: {part!r} has no floor, give it one in {Path(__file__).name}"
            )
            continue
        package = ".".join(relative.parent.parts)
        for line, module in imported_modules(file.read_text(encoding="utf-8"), package):
            target = part_of(module, root)
            stands_above = module.split(".")[0] in ABOVE or target in ABOVE
            if stands_above or (target is not None and target not in FLOORS[part] | {part}):
                broken.append(f"{relative}:{line}: {part or '__init__'} imports {module}")
    return broken


def broken_configs(root: Path) -> list[str]:
    """One line for each config that imports a config absolutely: edits would leak through it."""
    broken = []
    for folder in ("configs", "projects"):
        for file in sorted((root / folder).rglob("*.py")):
            for line, module in imported_modules(file.read_text(encoding="utf-8"), "a.b.c.d.e.f"):
                names = module.split(".")
                if names[0] in ABOVE or (names[0] == "detrex_mammo" and set(names[1:2]) & ABOVE):
                    broken.append(f"{file.relative_to(root)}:{line}: imports {module} absolutely")
    return broken


def test_every_part_keeps_to_its_floor() -> None:
    assert broken_floors(ROOT) == []


def test_configs_import_configs_relatively() -> None:
    assert broken_configs(ROOT) == []


def write_tree(root: Path, files: dict[str, str]) -> None:
    """Write files given by their path below ``root``."""
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


HOUSE = {
    "detrex_mammo/__init__.py": "__version__ = '1'\n",
    "detrex_mammo/errors.py": "import sys\n",
    "detrex_mammo/config.py": "from detrex_mammo.errors import UserError\n",
    "detrex_mammo/ops/__init__.py": "import torch\nfrom .cpu import f\n",
    "detrex_mammo/ops/cpu.py": "from detrex_mammo import __version__\nfrom ..errors import U\n",
    "detrex_mammo/layers/__init__.py": "from detrex_mammo.ops import f\n",
    "detrex_mammo/modeling/__init__.py": "from ..layers import f\nfrom detrex_mammo import ops\n",
    "detrex_mammo/data/__init__.py": "import cv2\nimport tools_of_somebody\n",
    "detrex_mammo/evaluation/__init__.py": "",
    "detrex_mammo/checkpoint/__init__.py": "",
    "detrex_mammo/engine/__init__.py": "from detrex_mammo import data, evaluation, modeling\n",
    "detrex_mammo/inference/__init__.py": "",
    "configs/common/train.py": "",
    "projects/p/configs/c.py": "import detrex_mammo.data\nfrom ....configs.common import y\n",
}


def test_a_sound_house_passes(tmp_path: Path) -> None:
    write_tree(tmp_path, HOUSE)
    assert broken_floors(tmp_path) == []
    assert broken_configs(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("ops/cpu.py", "from detrex_mammo.layers import f", "ops imports detrex_mammo.layers.f"),
        ("ops/cpu.py", "from ..layers import f", "ops imports detrex_mammo.layers.f"),
        ("ops/cpu.py", "from .. import layers", "ops imports detrex_mammo.layers"),
        ("ops/cpu.py", "import detrex_mammo.engine as e", "ops imports detrex_mammo.engine"),
        ("layers/mlp.py", "def f():\n    from ..modeling import g", "layers imports"),
        ("layers/mlp.py", "if 0:\n    from ..data import g", "layers imports"),
        ("modeling/a/b.py", "from ...data import g", "modeling imports detrex_mammo.data.g"),
        ("data/mapper.py", "import importlib\nimportlib.import_module('detrex_mammo.ops')", "data"),
        ("data/mapper.py", "from detrex_mammo.evaluation import f", "data imports"),
        ("evaluation/coco.py", "from detrex_mammo.data import f", "evaluation imports"),
        ("evaluation/coco.py", "from detrex_mammo.checkpoint import f", "evaluation imports"),
        ("checkpoint/load.py", "from detrex_mammo.modeling import f", "checkpoint imports"),
        ("inference/draw.py", "from detrex_mammo.engine import f", "inference imports"),
        ("engine/main.py", "from tools.train_net import f", "engine imports tools.train_net.f"),
        ("engine/main.py", "from detrex_mammo.configs import c", "engine imports"),
        ("engine/main.py", "import configs.common.train", "engine imports configs.common.train"),
        ("errors.py", "from detrex_mammo.ops import f", "errors imports detrex_mammo.ops.f"),
        ("config.py", "from detrex_mammo import data", "config imports detrex_mammo.data"),
        ("__init__.py", "from detrex_mammo import ops", "__init__ imports detrex_mammo.ops"),
        ("attic/x.py", "", "'attic' has no floor"),
        ("helpers.py", "", "'helpers' has no floor"),
    ],
)
def test_a_broken_floor_is_told(tmp_path: Path, file: str, line: str, told: str) -> None:
    write_tree(tmp_path, {**HOUSE, f"detrex_mammo/{file}": line})
    broken = broken_floors(tmp_path)
    assert len(broken) == 1
    assert told in broken[0]


@pytest.mark.parametrize(
    "line",
    ["from configs.common import train", "import projects.p", "from detrex_mammo.configs import c"],
)
def test_an_absolute_import_between_configs_is_told(tmp_path: Path, line: str) -> None:
    write_tree(tmp_path, {**HOUSE, "projects/p/configs/d.py": line})
    assert len(broken_configs(tmp_path)) == 1
