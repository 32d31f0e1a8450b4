# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dataset folder is whole or it does not count.

``manifest.json`` is written last and names the parameters and every file. A folder with files but
without it was interrupted. ``tools/prepare_data.py`` uses this for every dataset it makes.
"""

import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError

MANIFEST = "manifest.json"
_OURS = {MANIFEST, "train.json", "val.json", "images", "README.txt"}


def is_complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether ``folder`` already holds the dataset that ``parameters`` describe.

    Args:
        folder: the dataset's folder; need not exist.
        parameters: JSON data, compared as a whole.

    Raises:
        UserError: it holds another dataset, half a dataset, or foreign files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file; name a folder")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(
            f"--out {str(folder)!r} is not empty and has no {MANIFEST}: an interrupted run or "
            "something else; remove it, choose another folder or add --overwrite"
        )
    try:
        stored = json.loads(manifest.read_text())
    except ValueError as error:
        raise UserError(
            f"{str(manifest)!r} is damaged; add --overwrite to make the dataset again"
        ) from error
    changed = _differences(stored.get("parameters", {}), json.loads(json.dumps(parameters)))
    if changed:
        raise UserError(
            f"--out {str(folder)!r} holds a dataset made with other settings ({changed}); "
            "choose another folder or add --overwrite"
        )
    _check_files(folder, stored.get("files", {}))
    return True


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    shown = []
    for key in keys[:3]:
        values = [str(data.get(key)) for data in (old, new)]
        short = all(len(value) <= 40 for value in values)
        shown.append(f"{key}: {values[0]} there, {values[1]} now" if short else key)
    return "; ".join(shown)


def _check_files(folder: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(
                f"{str(path)!r} is missing or damaged; add --overwrite to make the dataset again"
            )


def start(folder: Path, overwrite: bool) -> None:
    """Make an empty dataset folder; with ``overwrite`` remove the dataset that lies there.

    Raises:
        UserError: it cannot be made, or it holds files that are not a dataset's.
    """
    try:
        if overwrite and folder.is_dir():
            foreign = sorted(set(os.listdir(folder)) - _OURS)
            foreign += [path.name for path in folder.glob("images/*") if not _is_picture(path)]
            if foreign:
                raise UserError(
                    f"--overwrite would empty {str(folder)!r}, which holds {foreign[0]!r}, "
                    "no part of a dataset; move it away or choose another folder"
                )
            # The manifest goes first: an interruption from here on is seen as one.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        (folder / "images").mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"--out {str(folder)!r} cannot be made: {error.strerror}; choose another folder"
        ) from error


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix in (".png", ".partial")


def finish(folder: Path, parameters: dict[str, Any], summary: dict[str, Any]) -> None:
    """Write the manifest, which declares the folder complete."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in files
        if name.endswith(".json")
    }
    data = {"parameters": parameters, "summary": summary, "sha256": hashes, "files": files}
    write_json(folder / MANIFEST, data)


def png_with_text(coded: bytes, keyword: str, text: str) -> bytes:
    """A PNG file's bytes with a text chunk after its header (PNG specification, 11.3.4.3)."""
    header_end = 8 + 25  # signature; length, type, 13 bytes and checksum of IHDR
    body = b"tEXt" + keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return coded[:header_end] + chunk + coded[header_end:]


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1))
    os.replace(partial, path)
