# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Preprocessed mammograms on disk: training decodes no DICOM twice, and sees the very same pixels.

A folder with ``cache.json`` (the preprocessing), ``shard-00000.bin``, ... (pixels) and a
``.jsonl`` beside each shard with one line an image. An image is the part of it that training
needs, (h, w) uint16, row by row, then the float32 grey level that each of its values stands for;
no levels mean value / 257. A file of 16 bits or less has at most 65536 grey levels after any
window, so that nothing is rounded. The pixels are mapped into memory, not read.

:mod:`detrex_mammo.data.cache_build` makes it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.data.breast import BreastRegion
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import to_unit_255
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

# Of the layout and of what is found in pixels: a change of either makes older caches invalid.
VERSION = 1
DESCRIPTION = "cache.json"
Key = tuple[str, int | None]
_REBUILD = "run tools/cache_data.py again"
_NUM_LEVELS = 65536


def key_of(record: Mapping[str, Any]) -> Key:
    """What tells one image from another: its file, in full, and its frame."""
    return os.path.abspath(record["file_name"]), record.get("frame")


@dataclass(frozen=True)
class Entry:
    """One image of a cache.

    Attributes:
        file: full path of the source.
        frame: which of its frames; None for the only one.
        source: ``bytes``, ``mtime_ns`` and ``sha256`` of the source file.
        original_size: (height, width) of the source.
        part: (x0, y0, x1, y1) of it that is stored, whole pixels, ends exclusive.
        region: the breast as found in its pixels, without the mask; None if it was not needed.
        shard: number of the shard.
        offset: of the pixels' first byte in it.
        num_levels: of the grey levels behind the pixels; 0 for none.
        sha256: of pixels and levels.
    """

    file: str
    frame: int | None
    source: dict[str, Any]
    original_size: tuple[int, int]
    part: tuple[int, int, int, int]
    region: dict[str, Any] | None
    shard: int
    offset: int
    num_levels: int
    sha256: str

    @property
    def key(self) -> Key:
        """As :func:`key_of` of its record."""
        return self.file, self.frame

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the stored part."""
        x0, y0, x1, y1 = self.part
        return y1 - y0, x1 - x0

    @property
    def num_bytes(self) -> int:
        """Of pixels and levels."""
        return 2 * self.shape[0] * self.shape[1] + 4 * self.num_levels

    def geometry(
        self, preprocessing: Preprocessing, record: Mapping[str, Any], boxes: np.ndarray | None
    ) -> Geometry | None:
        """Crop and flip as from the pixels; None if the stored part does not hold the crop."""
        if self.region is None and preprocessing.needs_region(record):
            return None
        region = BreastRegion(mask=None, **self.region) if self.region else None
        geometry = preprocessing.geometry_from(self.original_size, region, record, boxes)
        return geometry if contains(self.part, geometry.crop) else None


def contains(outer: Iterable[int], inner: Iterable[int]) -> bool:
    """Whether a box (x0, y0, x1, y1) holds another."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = outer, inner
    return ax0 <= bx0 and ay0 <= by0 and bx1 <= ax1 and by1 <= ay1


def encode(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey values as 16-bit numbers, nothing rounded.

    Args:
        pixels: (H, W) float32 in [0, 255] with at most 65536 different values.

    Returns:
        tuple: (H, W) uint16, and the (V,) float32 levels that they stand for; none if value / 257
        says it all.
    """
    stored = np.rint(pixels * np.float32(257)).astype(np.uint16)
    if np.array_equal(to_unit_255(stored), pixels):
        return stored, np.empty(0, np.float32)
    levels = np.zeros(_NUM_LEVELS, np.float32)
    levels[stored] = pixels
    if not np.array_equal(levels[stored], pixels):  # two levels closer than 1 / 257
        levels, numbers = np.unique(pixels, return_inverse=True)
        if len(levels) > _NUM_LEVELS:
            raise AssertionError(f"{len(levels)} grey levels do not fit 16 bits")
        return numbers.reshape(pixels.shape).astype(np.uint16), levels
    return stored, levels


def decode(stored: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Inverse of :func:`encode`."""
    return levels[stored] if len(levels) else to_unit_255(stored)


def describe_source(path: str) -> dict[str, Any]:
    """What a file must still be for its cached pixels to hold."""
    facts, digest = os.stat(path), hashlib.sha256(Path(path).read_bytes())
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": digest.hexdigest()}


def source_has_changed(entry: Entry) -> bool:
    """Whether the source holds other bytes now. One that is not there counts as unchanged."""
    try:
        facts = os.stat(entry.file)
    except OSError:
        return False  # a cache may be taken to a machine without the sources
    if facts.st_size != entry.source["bytes"]:
        return True
    if facts.st_mtime_ns == entry.source["mtime_ns"]:
        return False
    return describe_source(entry.file)["sha256"] != entry.source["sha256"]  # touched or copied


def shard_path(folder: Path, number: int) -> Path:
    """File of a shard's pixels; its index has the suffix ``.jsonl``."""
    return folder / f"shard-{number:05d}.bin"


def read_index(path: Path) -> tuple[list[Entry], int]:
    """Entries of one shard.

    Returns:
        tuple: the entries, and the number of bytes of whole lines: a last line that a kill cut is
        not one.

    Raises:
        UserError: a line is damaged.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    entries = []
    for line in whole.splitlines():
        try:
            values = json.loads(line)
            for name in ("original_size", "part"):
                values[name] = tuple(values[name])
            entries.append(Entry(**values))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"cache index {str(path)!r} is damaged: delete this file and the .bin beside it, "
                f"then {_REBUILD}"
            ) from error
    return entries, len(whole)


def index_line(entry: Entry) -> bytes:
    """What :func:`read_index` reads."""
    return json.dumps(asdict(entry)).encode() + b"\n"


def check_description(folder: Path, preprocessing: Preprocessing) -> None:
    """Refuse a cache of another version or preprocessing.

    Raises:
        UserError: names the first setting that differs.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, stored = content["version"], content["preprocessing"]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"cache folder {str(folder)!r} has no {DESCRIPTION}: make it with tools/cache_data.py, "
            "or correct cache_dir"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged: delete the cache and make it again") from error
    if version != VERSION:
        raise UserError(
            f"cache {str(folder)!r} is of version {version}, not {VERSION}: make it again in an "
            "empty folder"
        )
    now = preprocessing.to_dict()
    for name in sorted({*now, *stored}):
        if now.get(name) != stored.get(name):
            raise UserError(
                f"cache {str(folder)!r} was made with preprocessing.{name} {stored.get(name)!r}, "
                f"but the setting is {now.get(name)!r}: set it back, or make another cache"
            )


class ImageCache:
    """A cache that was made before, for reading.

    Each image is checked against its hash, and its source for a change, when a process first
    reads it.

    Args:
        folder: of the cache.
        preprocessing: what the pixels must have gone through.

    Raises:
        UserError: there is no cache, or it was made with another preprocessing.
    """

    def __init__(self, folder: str | os.PathLike, preprocessing: Preprocessing):
        self.folder, self.preprocessing = Path(folder), preprocessing
        check_description(self.folder, preprocessing)
        self._entries: dict[Key, Entry] = {}
        for path in sorted(self.folder.glob("shard-*.jsonl")):
            self._entries.update((entry.key, entry) for entry in read_index(path)[0])
        self._shards: dict[int, np.ndarray] = {}
        self._checked: set[Key] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all its bytes; another process opens its own.
        return {**self.__dict__, "_shards": {}}

    def entry(self, record: Mapping[str, Any]) -> Entry | None:
        """What is stored of a record's image; None if nothing is."""
        return self._entries.get(key_of(record))

    def crop(
        self, record: Mapping[str, Any], boxes: np.ndarray | None
    ) -> tuple[np.ndarray, Geometry]:
        """The preprocessed image, as from its file.

        Args:
            record: its ``file_name`` and what :meth:`Preprocessing.geometry_for` takes.
            boxes: (N, 4) xyxy that the crop must not cut, in training.

        Returns:
            tuple: (h, w) float32 in [0, 255] in the crop's frame, and where the crop lies.

        Raises:
            UserError: the image is not there, damaged, or outdated.
        """
        entry = self.entry(record)
        if entry is None:
            raise UserError(
                f"image {record['file_name']!r} is not in the cache {str(self.folder)!r}: "
                f"{_REBUILD}"
            )
        if entry.key not in self._checked:
            self.check(entry)
            self._checked.add(entry.key)
        geometry = entry.geometry(self.preprocessing, record, boxes)
        if geometry is None:
            raise UserError(
                f"cache {str(self.folder)!r} was made with other annotations of "
                f"{record['file_name']!r}, whose crop it does not hold: {_REBUILD}"
            )
        stored, levels = self._arrays(entry)
        (left, top, _, _), (x0, y0, x1, y1) = entry.part, geometry.crop
        pixels = decode(stored[y0 - top : y1 - top, x0 - left : x1 - left], levels)
        return np.ascontiguousarray(pixels[:, ::-1] if geometry.flip else pixels), geometry

    def check(self, entry: Entry) -> None:
        """Compare with the hash, and the source with what it was.

        Raises:
            UserError: the entry is damaged or outdated.
        """
        if source_has_changed(entry):
            raise UserError(
                f"{entry.file!r} has changed since the cache {str(self.folder)!r} was made: "
                f"{_REBUILD}"
            )
        if not self.is_whole(entry):
            raise UserError(
                f"cached pixels of {entry.file!r} in {str(shard_path(self.folder, entry.shard))!r} "
                f"are damaged: {_REBUILD} with --verify"
            )

    def is_whole(self, entry: Entry) -> bool:
        """Whether the stored bytes are those that were written."""
        data = self._bytes(entry)
        return hashlib.sha256(data).hexdigest() == entry.sha256

    def entries(self) -> list[Entry]:
        """The valid entry of each image."""
        return list(self._entries.values())

    def _bytes(self, entry: Entry) -> np.ndarray:
        shard = self._shards.get(entry.shard)
        if shard is None:
            path = shard_path(self.folder, entry.shard)
            try:
                shard = np.memmap(path, np.uint8, mode="r")
            except (OSError, ValueError):  # missing, or empty
                shard = np.empty(0, np.uint8)
            self._shards[entry.shard] = shard
        return shard[entry.offset : entry.offset + entry.num_bytes]

    def _arrays(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        data = self._bytes(entry)
        split = len(data) - 4 * entry.num_levels
        stored, levels = data[:split].view("<u2"), data[split:].view("<f4")
        return stored.reshape(entry.shape), np.asarray(levels)
