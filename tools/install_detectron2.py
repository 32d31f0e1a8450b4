#!/usr/bin/env python3
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Install detectron2 0.6 from the package registry alone, without a compiler.

detectron2 is not on the registry under its own name. ``pb1-detectron2==0.6`` is; its Python files
are byte for byte those of detectron2's tag v0.6, but its C++ sources are missing, so it cannot be
built, and as it stands it does not run with NumPy 2, Pillow 10 or setuptools 82. This script
downloads that archive without running it, checks its sha256, makes the changes listed in ``EDITS``
(each text must occur exactly as often as written there), and installs the result as a wheel called
``detectron2`` 0.6. detectron2's compiled operators (rotated boxes, deformable convolution, the fast
COCO evaluation) stay out; whoever needs those builds detectron2 from
https://github.com/facebookresearch/detectron2, and this script leaves that build alone.

    python tools/install_detectron2.py                  # into the Python that runs it
    python tools/install_detectron2.py --wheel-dir DIR  # only build the wheel
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SOURCE_NAME, VERSION = "pb1-detectron2", "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

# What detectron2's Python imports, without its development tools, and without the upper bound on
# iopath, whose 0.1.10 works. torch and torchvision are the user's, as in detectron2's own setup.py.
REQUIREMENTS = (
    "numpy",
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "opencv-python-headless",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5",
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "PyYAML",
    "packaging",
)

STAND_IN_FILE = "_no_compiled_operators.py"
WHEEL_TEXT = """\
Wheel-Version: 1.0
Generator: detrex_mammo
Root-Is-Purelib: true
Tag: py3-none-any
"""

# Imported after the installation to see that it works.
CHECKED_MODULES = (
    "config engine data evaluation checkpoint modeling structures solver layers utils.visualizer "
    "model_zoo"
).split()

OPTIONAL_C = """\
try:
    from detectron2 import _C
except ImportError:  # no compiled operators
    from detectron2._no_compiled_operators import _C
"""
NO_COMPILED_OPERATORS = '''\
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Stands in for detectron2._C, the compiled operators, which this installation does not have."""


class _Missing:
    def __getattr__(self, name):
        raise AttributeError(
            f"detectron2._C.{name} is a compiled operator and this detectron2 has none: "
            "build detectron2 from https://github.com/facebookresearch/detectron2 to use it"
        )


_C = _Missing()
'''

# file: [(what stands there, how often, what replaces it)]; a compiled expression or a literal.
# NumPy 1.24 removed these aliases of Python's own types.
_ALIAS = re.compile(r"\bnp\.(bool|int|float|str)\b")
_IMPORT_C = "from detectron2 import _C\n"
EDITS: dict[str, list[tuple[str | re.Pattern, int, str]]] = {
    # Image.LINEAR was removed in Pillow 10; it was another name of BILINEAR.
    "data/transforms/transform.py": [("interp=Image.LINEAR", 1, "interp=Image.BILINEAR")],
    # NumPy 2 refuses copy=False where a copy is needed, as it is from a PIL image.
    "layers/mask_ops.py": [("np.array(mask, copy=False)", 1, "np.asarray(mask)")],
    "layers/rotated_boxes.py": [(_IMPORT_C, 1, OPTIONAL_C)],
    "layers/deform_conv.py": [(_IMPORT_C, 1, OPTIONAL_C)],
    "layers/roi_align_rotated.py": [(_IMPORT_C, 1, OPTIONAL_C)],
    # As detectron2's main branch does it: without the compiled evaluation, pycocotools' own.
    "evaluation/coco_evaluation.py": [
        (
            "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
            1,
            "try:\n    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
            "except ImportError:  # no compiled operators\n    COCOeval_opt = COCOeval\n",
        ),
        (
            "self._use_fast_impl = use_fast_impl\n",
            1,
            "self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
        ),
    ],
    # pkg_resources was removed in setuptools 82.
    "model_zoo/model_zoo.py": [
        ("import pkg_resources\n", 1, ""),
        (
            "pkg_resources.resource_filename(\n"
            '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
            1,
            'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
        ),
    ],
    "evaluation/pascal_voc_evaluation.py": [(_ALIAS, 2, r"\1")],
    "evaluation/sem_seg_evaluation.py": [(_ALIAS, 7, r"\1")],
    "structures/masks.py": [(_ALIAS, 3, r"\1")],
    "data/datasets/pascal_voc.py": [(_ALIAS, 1, r"\1")],
    "data/build.py": [(_ALIAS, 2, r"\1")],
    "utils/visualizer.py": [(_ALIAS, 3, r"\1")],
    "utils/video_visualizer.py": [(_ALIAS, 1, r"\1")],
}

# pip asks a source archive's build backend for the name and version of what it downloads, which
# runs the archive's setup.py. This backend answers in its place, so nothing of the archive is run.
STAND_IN_BACKEND = f"""\
import pathlib


class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        name = "{SOURCE_NAME.replace("-", "_")}-{VERSION}.dist-info"
        folder = pathlib.Path(metadata_directory) / name
        folder.mkdir()
        text = "Metadata-Version: 2.1\\nName: {SOURCE_NAME}\\nVersion: {VERSION}\\n"
        (folder / "METADATA").write_text(text)
        return folder.name
"""


class InstallError(Exception):
    """Ends the program with this one sentence and exit code 2."""


def installed_detectron2() -> tuple[str, str] | None:
    """Version and folder of the detectron2 that ``import detectron2`` would find, or None."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(list(spec.submodule_search_locations)[0])
    init = folder / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"', init.read_text() if init.exists() else "", re.M)
    if found:
        return found.group(1), str(folder)
    try:
        return importlib.metadata.version("detectron2"), str(folder)
    except importlib.metadata.PackageNotFoundError:
        return None  # a folder that happens to be called detectron2


def is_new_enough(version: str) -> bool:
    """Whether ``version`` is at least 0.6, e.g. "0.6", "0.6+cu111", "0.7.dev0"."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return bool(numbers) and tuple(map(int, numbers.groups())) >= (0, 6)


def run_pip(*arguments: str, env: dict[str, str] | None = None) -> None:
    """Run pip in this Python; its output appears only if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if not done.returncode:
        return
    output = (done.stdout + done.stderr).strip()
    if "No module named pip" in output:
        raise InstallError(f"{sys.executable} has no pip: `{sys.executable} -m ensurepip` first")
    if "DO NOT MATCH THE HASHES" in output:
        raise InstallError(wrong_archive(f"{SOURCE_NAME} {VERSION} from the registry"))
    print(output, file=sys.stderr)
    raise InstallError(f"pip {arguments[0]} failed with exit code {done.returncode}, see above")


def wrong_archive(what: str, found: str = "another one") -> str:
    """The sentence for an archive that is not the one this script was written for."""
    return (
        f"{what} should have sha256 {SHA256} and has {found}: it is not the archive that was "
        "checked, so nothing was installed; try again, or build detectron2 from its repository"
    )


def download(folder: Path) -> Path:
    """Fetch the source archive into ``folder`` through pip, running nothing of it."""
    backend = folder / "backend"
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools" / "__init__.py").touch()
    (backend / "setuptools" / "build_meta.py").write_text(STAND_IN_BACKEND)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE_NAME}=={VERSION} --hash=sha256:{SHA256}\n")
    env = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    env["PYTHONPATH"] = str(backend)
    options = "--quiet --no-deps --no-binary :all: --no-build-isolation --use-pep517".split()
    run_pip("download", *options, "-r", str(requirements), "-d", str(folder), env=env)
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"pip downloaded {len(archives)} archives of {SOURCE_NAME}, not one")
    return archives[0]


def read_sources(archive: Path, sha256: str = SHA256) -> dict[str, bytes]:
    """The archive's ``detectron2/**.py`` and LICENSE, by their path below the archive's top folder.

    Raises:
        InstallError: the archive is not the one whose sha256 is given.
    """
    data = archive.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InstallError(wrong_archive(str(archive), found))
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            path = member.name.partition("/")[2]
            wanted = path == "LICENSE" or (path.startswith("detectron2/") and path.endswith(".py"))
            if member.isfile() and wanted and not path.startswith("detectron2/model_zoo/configs/"):
                sources[path] = tar.extractfile(member).read()
    return sources


def apply_edits(sources: dict[str, bytes], edits: dict = EDITS) -> dict[str, bytes]:
    """Copy of ``sources`` with every edit made.

    Raises:
        InstallError: a file is missing, or a text does not occur exactly as often as its edit says.
    """
    patched = dict(sources)
    for file, replacements in edits.items():
        path = f"detectron2/{file}"
        if path not in patched:
            raise InstallError(f"{path} is not in the archive, so it cannot be patched")
        text = patched[path].decode()
        for pattern, count, new in replacements:
            literal = isinstance(pattern, str)
            found = text.count(pattern) if literal else len(pattern.findall(text))
            if found != count:
                shown = pattern.strip() if literal else pattern.pattern
                raise InstallError(f"{path} has {shown!r} {found} times where {count} is expected")
            text = text.replace(pattern, new) if literal else pattern.sub(new, text)
        patched[path] = text.encode()
    return patched


def metadata_text() -> str:
    """METADATA of the wheel; its body names the changed files, as the licence asks."""
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        "Summary: detectron2 v0.6 without compiled operators, for current NumPy and Pillow",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "License: Apache-2.0",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "",
        "Changed by detrex_mammo's tools/install_detectron2.py:",
        "",
        *(f"- detectron2/{file}" for file in EDITS),
        f"- detectron2/{STAND_IN_FILE} (new)",
    ]
    return "\n".join(lines) + "\n"


def build_wheel(sources: dict[str, bytes], folder: Path) -> Path:
    """Write the patched sources as a wheel into ``folder``; the same sources, the same bytes."""
    info = f"detectron2-{VERSION}.dist-info"
    files = {path: data for path, data in sorted(sources.items()) if path != "LICENSE"}
    files[f"detectron2/{STAND_IN_FILE}"] = NO_COMPILED_OPERATORS.encode()
    files[f"{info}/licenses/LICENSE"] = sources["LICENSE"]
    files[f"{info}/METADATA"] = metadata_text().encode()
    files[f"{info}/WHEEL"] = WHEEL_TEXT.encode()
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}\n")
    files[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\n").encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, date_time=(2021, 11, 15, 0, 0, 0))  # tag v0.6's day
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return wheel


def check_imports(version: str, where: str) -> None:
    """Import what detrex_mammo uses, in a new process.

    Raises:
        InstallError: something of it does not import.
    """
    program = "".join(f"import detectron2.{module}\n" for module in CHECKED_MODULES)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InstallError(
            f"detectron2 {version} in {where} does not import ({reason}): repair it, or run "
            f"`{sys.executable} -m pip uninstall detectron2` and this script again"
        )


def check_installed() -> bool:
    """Whether a usable detectron2 is there already.

    Raises:
        InstallError: one is there that cannot be used, or torch is not.
    """
    names = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if names:
        missing = " and ".join(names)
        raise InstallError(f"{missing} must be there first: `pip install torch torchvision`")
    found = installed_detectron2()
    if found is None:
        return False
    version, where = found
    if not is_new_enough(version):
        raise InstallError(
            f"detectron2 {version} in {where} is too old, 0.6 or newer is needed: run "
            f"`{sys.executable} -m pip uninstall detectron2` and this script again"
        )
    check_imports(version, where)
    print(f"detectron2 {version} is already installed in {where}")
    return True


def install(wheel_dir: Path | None) -> None:
    """Do what the command line asks for."""
    if wheel_dir is None and check_installed():
        return
    with tempfile.TemporaryDirectory() as temporary:
        sources = apply_edits(read_sources(download(Path(temporary))))
        wheel = build_wheel(sources, wheel_dir or Path(temporary))
        if wheel_dir is not None:
            print(wheel)
            return
        run_pip("install", "--quiet", str(wheel))
    importlib.invalidate_caches()
    version, where = installed_detectron2()
    check_imports(version, where)
    print(f"detectron2 {version} installed in {where} (without compiled operators)")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, install, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="only build the wheel there")
    try:
        install(parser.parse_args(arguments).wheel_dir)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
