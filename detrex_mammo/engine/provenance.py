# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Where a checkpoint comes from: versions, commit, config, source weights."""

import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from detrex_mammo.checkpoint.reading import file_sha256, source_sha256

_PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "detrex_mammo",
    "numpy",
    "scipy",
    "omegaconf",
    "timm",
    "opencv-python-headless",
    "pydicom",
)


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on; packages that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the clone this package runs from, with ``+changes`` if the tree differs."""
    folder = Path(__file__).resolve().parent
    try:
        head = _git(folder, "rev-parse", "HEAD")
        tracked = _git(folder, "ls-files", "--error-unmatch", __file__)
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changed else "") if tracked else None


def command_line() -> str:
    """The command this process was started by, without the folder of the tool."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def describe_run(
    config_text: str, init_checkpoint: str | None, annotations: dict[str, str]
) -> dict[str, object]:
    """Provenance of the checkpoints of one run.

    Args:
        config_text: the run's config.yaml.
        init_checkpoint: local file the weights started from, if any.
        annotations: data set -> annotation file.
    """
    source = None
    if init_checkpoint:
        source = {"file": str(init_checkpoint), "sha256": source_sha256(init_checkpoint)}
    return {
        "versions": package_versions(),
        "git_commit": git_commit(),
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
        "command": command_line(),
        "init_checkpoint": source,
        "datasets": {
            name: {"file": file, "sha256": file_sha256(file)} for name, file in annotations.items()
        },
    }


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
