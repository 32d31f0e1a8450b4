# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The folder that a common format lies in: no path leads out of it, no file is lost unreported."""

import argparse
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from detrex_mammo.data.convert.dataset import IMAGE_KEYS, Dataset
from detrex_mammo.data.convert.headers import BadImage, add_raw_argument, read_header
from detrex_mammo.data.convert.tables import density, inside, side
from detrex_mammo.data.image_io import DICOM_SUFFIXES, PICTURE_SUFFIXES, is_dicom
from detrex_mammo.errors import UserError

SPLITS = ("train", "val", "test")
DAMAGED_LABELS = ("drop", "keep")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val"}
_SPLIT_NAMES |= {"validation": "val", "test": "test", "testing": "test"}
_SPLIT = re.compile(r"[\w-]{1,64}")
# folder of images: folders of their label files
_LABEL_FOLDERS = {
    "images": ("labels", "annotations", "Annotations"),
    "JPEGImages": ("Annotations", "labels"),
    "image_2": ("label_2",),
}


def add_common_arguments(parser: argparse.ArgumentParser, without_labels: str = "") -> None:
    """Options of every common format, as :class:`Source` takes them.

    Args:
        parser: of the sub-command.
        without_labels: default of what becomes of an image without a label file; "" if the
            format has no such files.
    """
    parser.add_argument("--name", default="", help="of the dataset; the folder's if left out")
    parser.add_argument(
        "--file-pattern",
        default="",
        help="regular expression on an image's path whose named groups are keys of its record: "
        r"'(?P<patient_id>P_\d+)_(?P<laterality>[LR])_(?P<view>CC|MLO)'",
    )
    parser.add_argument(
        "--classes", nargs="+", help="names in the order of their ids; boxes of others are dropped"
    )
    parser.add_argument(
        "--damaged-labels",
        choices=DAMAGED_LABELS,
        default=DAMAGED_LABELS[0],
        help="what becomes of an image one of whose labels cannot be read: it would teach that "
        "there is nothing; kept ones are marked damaged_label",
    )
    add_raw_argument(parser)
    if without_labels:
        parser.add_argument(
            "--without-labels",
            choices=("drop", "negative"),
            default=without_labels,
            help="what becomes of an image without a label file",
        )


class Source:
    """A root folder and the dataset that it fills.

    Args:
        root: every image and label lies below it.
        name: of the dataset; the folder's if "".
        classes: names in the order of their ids; as they come, if None.
        file_pattern: its named groups, found in a file name, become keys of the record.
        allow_for_processing: take raw DICOM images, too.
        damaged_labels: "drop" an image with a label that cannot be read, or "keep" it, marked.

    Raises:
        UserError: root is no folder, or the pattern is wrong.
    """

    def __init__(
        self,
        root: Path,
        name: str = "",
        classes: Sequence[str] | None = None,
        file_pattern: str = "",
        allow_for_processing: bool = False,
        damaged_labels: str = DAMAGED_LABELS[0],
    ):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"--root {str(root)!r} is no folder: give the dataset's folder")
        assert damaged_labels in DAMAGED_LABELS, damaged_labels
        self._resolved = self.root.resolve()
        self.dataset = Dataset(name or self._resolved.name, classes)
        self.images: dict[str, dict[str, Any]] = {}
        self._pattern = _compile(file_pattern)
        self._allow_for_processing = allow_for_processing
        self._classes = None if classes is None else set(classes)
        self._drops_damaged = damaged_labels == "drop"
        self._damaged: dict[str, None] = {}

    def drop(self, reason: str, example: str) -> None:
        """Report a loss."""
        self.dataset.report.add("dropped", reason, example)

    def fix(self, reason: str, example: str) -> None:
        """Report a repair."""
        self.dataset.report.add("fixed", reason, example)

    def inside(self, name: str, example: str) -> str | None:
        """A path of a file's, relative to the root; None, reported, if it leads out of it.

        Args:
            name: as written there, with / or \\; absolute only if it lies in the root.
            example: where it is written.
        """
        root = self._resolved.as_posix() + "/"
        relative = inside(name.strip().replace("\\", "/").removeprefix(root))
        if relative is None:
            self.drop("paths that are empty or lead out of the folder", f"{example}: {name}"[:200])
        return relative

    def find_image(self, name: str, example: str, near: str = "") -> str | None:
        """The image that a list or label file means.

        Args:
            name: a path from the root or from above it, or a file name with or without suffix.
            example: where it is written, for the report.
            near: folder, relative to the root, that is preferred where several images match.

        Returns:
            str or None: path relative to the root; None, reported, if there is none or several.
        """
        relative = self.inside(name, example)
        if relative is None:
            return None
        if self.has(relative):
            return relative
        known = PurePosixPath(relative)
        candidates = self._by_name.get(known.name) or self._by_name.get(known.stem, [])
        if near and len(candidates) > 1:
            candidates = [c for c in candidates if c.is_relative_to(near)] or candidates
        best = max((_common_tail(c, known) for c in candidates), default=0)
        matches = [c for c in candidates if _common_tail(c, known) == best]
        if len(matches) == 1:
            return matches[0].as_posix()
        reason = "of which several fit" if matches else "that do not exist"
        self.drop(f"listed images {reason}", f"{example}: {relative}"[:200])
        return None

    def images_below(self, folder: str) -> list[str]:
        """Sorted paths, relative to the root, of the image files in a folder and below it."""
        return sorted(p.relative_to(self.root).as_posix() for p in _images(self.root / folder))

    def has(self, relative: str) -> bool:
        """Whether there is such a file; a name that is too long is none."""
        return os.path.isfile(self.root / relative)

    def has_folder(self, relative: str) -> bool:
        """Whether there is such a folder."""
        return os.path.isdir(self.root / relative)

    def add_image(
        self,
        relative: str,
        record: Mapping[str, Any],
        declared: tuple[float, float] | None = None,
        is_trusted: bool = False,
    ) -> dict[str, Any] | None:
        """Add an image file; None, reported, if it cannot be used or is there already.

        Args:
            relative: path from :meth:`find_image` or :meth:`images_below`.
            record: its keys; they go before the file name's, these before the header's.
            declared: (height, width) that a label file claims. The file's own counts: swapped or
                zero is repaired, another size says that the boxes are of another image.
            is_trusted: do not look at the file, take the declared size.
        """
        if relative in self.images:
            self.drop("images listed twice", relative)
            return None
        size, found = declared, {}
        if not is_trusted:
            try:
                header = read_header(self.root / relative, self._allow_for_processing)
                if header.frames > 1:
                    raise BadImage("DICOM file of several frames")
            except BadImage as error:
                self.drop(f"images: {error}", relative)
                return None
            size, found = (header.height, header.width), header.record
        if declared is not None and tuple(declared) != size:
            if 0 not in declared and tuple(declared[::-1]) != size:
                self.drop("images of another size than their labels say", relative)
                return None
            self.fix("sizes of images, taken from the file", relative)
        image = self.dataset.add_image(relative, *size)
        given = {**self.keys_in_name(relative), **{k: v for k, v in record.items() if _is_set(v)}}
        image.update({**found, **self._without_bad_split(given, relative)})
        self.images[relative] = image
        return image

    def merge(self, image: dict[str, Any], record: Mapping[str, Any], example: str) -> None:
        """Take what a later entry of the same image adds; what it would change is reported."""
        for key, value in self._without_bad_split(record, example).items():
            if _is_set(value) and image.setdefault(key, value) != value:
                reason = f"{key} that differs between entries of one image; the first counts"
                self.fix(reason, example)

    def _without_bad_split(self, record: Mapping[str, Any], example: str) -> dict[str, Any]:
        """A split becomes a file's name when the dataset is written."""
        clean = dict(record)
        split = clean.pop("split", None)
        if _is_set(split):
            if _SPLIT.fullmatch(str(split)):
                clean["split"] = str(split)
            else:
                self.drop("values of split that cannot be a file's name", example)
        return clean

    def add_box(
        self,
        image: dict[str, Any],
        box: Sequence[float],
        category: str,
        record: Mapping[str, Any] | None = None,
        source: str = "box",
    ) -> dict[str, Any] | None:
        """Add a box; a class that was not chosen is dropped, one without area damages its image.

        Args:
            image: from :meth:`add_image`.
            box: see :meth:`Dataset.add_box`.
            category: name of the class.
            record: further keys of the annotation; None and "" are left out.
            source: see :meth:`Dataset.add_box`.
        """
        if self._classes is not None and category not in self._classes:
            self.drop("boxes of a class that was not chosen", f"{image['file_name']}: {category}")
            return None
        annotation = self.dataset.add_box(image, box, category, source)
        if annotation is None:
            self._damaged[image["file_name"]] = None
        elif record:
            annotation.update({k: v for k, v in record.items() if _is_set(v)})
        return annotation

    def damage(self, image: Mapping[str, Any], reason: str, example: str) -> None:
        """Report a label that cannot be read: without it, its image may not be a negative."""
        self.drop(reason, example)
        self._damaged[image["file_name"]] = None

    def finish(self) -> Dataset:
        """The dataset without its images of damaged labels, or with those marked."""
        damaged = [self.images[file_name] for file_name in self._damaged]
        if self._drops_damaged:
            self.dataset.remove_images({i["id"] for i in damaged}, "with a damaged label")
            for file_name in self._damaged:
                del self.images[file_name]
        else:
            for image in damaged:
                image["damaged_label"] = True
                reason = "images with a damaged label, marked damaged_label"
                self.dataset.report.add("kept", reason, image["file_name"])
        self._damaged.clear()
        return self.dataset

    def keys_in_name(self, relative: str) -> dict[str, str]:
        """What the pattern finds in a path."""
        match = self._pattern.search(relative) if self._pattern else None
        return normalized(match.groupdict()) if match else {}

    @cached_property
    def _by_name(self) -> dict[str, list[PurePosixPath]]:
        """Images by file name, and by file name without suffix."""
        found = defaultdict(list)
        for relative in self.images_below("."):
            path = PurePosixPath(relative)
            found[path.name].append(path)
            if path.stem != path.name:
                found[path.stem].append(path)
        return found


def _is_set(value: Any) -> bool:
    return value is not None and value != ""


def normalized(record: Mapping[str, str | None]) -> dict[str, str]:
    """Texts of an image's record as the schema writes them, without the empty ones."""
    found = {key: value for key, value in record.items() if value}
    if "laterality" in found:
        found["laterality"] = side(found["laterality"]) or ""
    if "view" in found:
        found["view"] = found["view"].upper()
    if "density" in found:
        found["density"] = density(found["density"]) or ""
    if "split" in found:
        found["split"] = split_of(found["split"]) or found["split"]
    return {key: value for key, value in found.items() if value}


def label_files(relative: str, suffix: str) -> list[str]:
    """Where an image's label file may lie: in the folder beside its own, or with it.

    Args:
        relative: the image's path.
        suffix: of the label file, with its dot.
    """
    path = PurePosixPath(relative).with_suffix(suffix)
    parts = list(path.parts)
    found = []
    for index in range(len(parts) - 2, -1, -1):  # the last such folder counts
        if parts[index] in _LABEL_FOLDERS:
            found = [
                "/".join([*parts[:index], folder, *parts[index + 1 :]])
                for folder in _LABEL_FOLDERS[parts[index]]
            ]
            break
    return [*found, path.as_posix()]


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, stripped, with their line ends and byte order mark gone.

    Raises:
        UserError: it cannot be read or is no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read as UTF-8 text ({error})") from error
    return [line.strip() for line in text.splitlines()]


def split_of(name: str) -> str:
    """``train``, ``val`` or ``test`` of a folder's or file's name; "" if it is none of them."""
    return _SPLIT_NAMES.get(name.lower(), "")


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix or, without one, by DICOM's preamble."""
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES | DICOM_SUFFIXES:
        return True
    return (not suffix or suffix[1:].isdigit()) and is_dicom(path)


def _images(folder: Path) -> Iterable[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and p.name[0] != "." and is_image(p))


def _common_tail(one: PurePosixPath, other: PurePosixPath) -> int:
    """How many folders, from the file upwards, two paths share."""
    count = 0
    for a, b in zip(one.parent.parts[::-1], other.parent.parts[::-1]):
        if a != b:
            break
        count += 1
    return count


def _compile(pattern: str) -> re.Pattern | None:
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--file-pattern {pattern!r} is no regular expression: {error}") from error
    unknown = sorted(set(compiled.groupindex) - set(IMAGE_KEYS))
    if unknown or not compiled.groupindex:
        raise UserError(
            f"--file-pattern {pattern!r} has the named groups {sorted(compiled.groupindex)}; use "
            f"some of {', '.join(IMAGE_KEYS)}, as (?P<patient_id>...)"
        )
    return compiled
