# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Links lead somewhere, and a checkpoint in the repository is the one that was measured."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from detrex_mammo.checkpoint.reading import file_sha256

_LINK = re.compile(r"\]\(([^)\s]*)\)")
_HOST = re.compile(r"([a-z0-9-]+\.)+[a-z]{2,}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def problems_of(root: Path, rows: Sequence[tuple[Path, Mapping[str, Any]]], page: str) -> list[str]:
    """What is wrong with the links of a page and the hashes of its rows, one phrase each."""
    links = dict.fromkeys(_LINK.findall(page))
    problems = [f"{link!r} {why}" for link in links if (why := problem_of_link(link, root, page))]
    for path, row in rows:
        problems += [f"{path.name}: {why}" for why in _problems_of_hashes(root, path, row)]
    return problems


def problem_of_link(link: str, root: Path, page: str = "") -> str:
    """Why a link of the page is broken; empty if it is not.

    Args:
        link: ``#heading``, a path relative to the repository's root, or an absolute URL.
        root: of the repository.
        page: with the headings.
    """
    if link.startswith("#"):
        headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        names = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        return "" if link[1:] in names else "is no heading of the page"
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", link):
        parts = urlsplit(link)
        is_sound = parts.scheme == "https" and _HOST.fullmatch(parts.netloc) and parts.path
        return "" if is_sound else "is no https URL"
    target = (root / link).resolve()
    if not link or not target.is_relative_to(root.resolve()):
        return "leads out of the repository"
    return "" if target.exists() else "does not exist"


def _problems_of_hashes(root: Path, path: Path, row: Mapping[str, Any]) -> Iterator[str]:
    if row["name"] != path.stem:
        yield f"its name is {row['name']!r}"
    if row["kind"] not in ("trained", "converted"):
        yield f"its kind is {row['kind']!r}"
    digests = (row["checkpoint"]["sha256"], row["config"]["sha256"], row["data"]["sha256"])
    for digest in digests:
        if digest is not None and not _DIGEST.fullmatch(digest):
            yield f"{digest!r} is no sha256"
    checkpoint = row["checkpoint"]
    file = checkpoint["file"] and root / checkpoint["file"]
    if file and file.is_file() and file_sha256(file) != checkpoint["sha256"]:
        yield f"{checkpoint['file']} is not the checkpoint that was measured (its sha256 differs)"
