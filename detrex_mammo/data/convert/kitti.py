# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""KITTI: one text file for each image, one line for each box.

``type truncated occluded alpha x1 y1 x2 y2`` and seven numbers of 3D, 15 columns, or 16 with a
score. The type may hold spaces. A sequence is a folder with a folder of images and one of labels.
"""

import argparse
import json
import math
import random
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.shards import write_shards
from detrex_mammo.data.convert.source import Source, add_common_arguments, read_lines, split_of
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

_IMAGE_FOLDERS, _LABEL_FOLDERS = ("images", "image_2", "image"), ("labels", "label_2", "label")
_NUM_NUMBERS = 14  # after the type; one more is a score
SPLIT_MODES = ("none", "random", "sequence", "patient")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    add_common_arguments(parser, without_labels="drop")
    parser.add_argument(
        "--sequences", help="list of sequence folders, one a line; sequence.txt if it is there"
    )
    parser.add_argument("--mapping", type=Path, help='JSON {"type in the files": "class"}')
    parser.add_argument("--images-folder", default="", help="its name in a sequence")
    parser.add_argument("--labels-folder", default="", help="its name in a sequence")
    parser.add_argument(
        "--columns", default="auto", choices=("auto", "15", "16"), help="16 hold a score"
    )
    parser.add_argument(
        "--split",
        default="none",
        choices=SPLIT_MODES,
        help="train and val by image, by sequence or by patient; none: a sequence called "
        "train, val or test is that split",
    )
    parser.add_argument("--val-share", type=float, default=0.2, help="of the images")
    parser.add_argument("--seed", type=int, default=42, help="of the split")
    parser.add_argument("--shards", type=int, default=0, help="also write so many files a split")


def convert(
    root: Path,
    out: Path,
    classes: list[str] | None = None,
    without_labels: str = "drop",
    sequences: str | None = None,
    mapping: Path | None = None,
    images_folder: str = "",
    labels_folder: str = "",
    columns: str = "auto",
    split: str = "none",
    val_share: float = 0.2,
    seed: int = 42,
    shards: int = 0,
    **common: Any,
) -> Dataset:
    """Read KITTI sequences.

    Args:
        root: folder that the sequences lie in, or one sequence.
        out: where the dataset will be written; only shards are written here.
        classes: names in the order of their ids; the mapping's order, or as they come, if None.
        without_labels: "drop" an image without a label file, or take it as "negative".
        sequences: list of sequences, relative to root.
        mapping: from types to classes. The type as written counts, then without its capitals;
            null drops a type, and types that it lacks are dropped, all of them reported.
        images_folder: name of the folder of images in a sequence.
        labels_folder: name of the folder of labels.
        columns: "15", "16" or "auto".
        split: one of ``SPLIT_MODES``.
        val_share: of the images, for a split.
        seed: of the split.
        shards: number of files for each split beside the whole; 0 for none.
        **common: see :class:`Source`.

    Raises:
        UserError: root holds no sequence, or an option is wrong.
    """
    table = _read_mapping(mapping)
    if classes is None and table:
        classes = list(dict.fromkeys(target for target in table.values() if target))
    source = Source(root, classes=classes, **common)
    reader = _LabelReader(source, table, columns, without_labels == "negative")
    folders = (images_folder, labels_folder)
    sequence_of = _add_sequences(reader, sequences, folders, has_splits=split == "none")
    dataset = source.finish()
    if split != "none":
        _split(dataset, sequence_of, split, val_share, seed)
    if shards:
        write_shards(dataset, Path(out) / "shards", shards)
    return dataset


def _add_sequences(
    reader: "_LabelReader", listed: str | None, folders: tuple[str, str], has_splits: bool
) -> dict[str, str]:
    """Add every image; returns the sequence of each."""
    source, sequence_of = reader.source, {}
    for sequence in _sequences(source, listed, folders[0]):
        images = _folder(source, sequence, folders[0], _IMAGE_FOLDERS)
        if images is None:
            source.drop("sequences without a folder of images", sequence)
            continue
        labels = _folder(source, sequence, folders[1], _LABEL_FOLDERS) or images
        split = split_of(PurePosixPath(sequence).name) if has_splits else ""
        files = source.images_below(images)
        for relative in counted(files, sequence):
            stem = PurePosixPath(relative).relative_to(images).with_suffix(".txt")
            sequence_of[relative] = sequence
            reader.add(relative, f"{labels}/{stem}", split)
    if not source.images:
        raise UserError(
            f"--root {str(source.root)!r} holds no usable KITTI image; a sequence has the folders "
            f"{_IMAGE_FOLDERS[0]!r} and {_LABEL_FOLDERS[0]!r}, or name them with --images-folder "
            "and --labels-folder",
            source.dataset.report.describe(),
        )
    return sequence_of


def _read_mapping(path: Path | None) -> dict[str, str | None]:
    if path is None:
        return {}
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--mapping {str(path)!r} is no JSON file ({error})") from error
    if not isinstance(table, dict) or not all(
        value is None or (isinstance(value, str) and value) for value in table.values()
    ):
        raise UserError(
            f'--mapping {str(path)!r} is not {{"type in the files": "class" or null, ...}}'
        )
    return table


def _sequences(source: Source, listed: str | None, images_folder: str) -> list[str]:
    """Folders of the sequences, relative to the root, each once."""
    file = source.root / (listed or "sequence.txt")
    if listed and source.inside(listed, "--sequences") is None:
        raise UserError(f"--sequences {listed!r} must lie in --root")
    if listed and not file.is_file():
        raise UserError(f"--sequences {str(file)!r} does not exist")
    if file.is_file():
        found = []
        for line in filter(None, read_lines(file)):
            inside = "." if line == "." else source.inside(line, file.name)
            if inside in found:
                source.drop("sequences listed twice", line)
            elif inside is not None:
                found.append(inside)
        return found
    if _folder(source, ".", images_folder, _IMAGE_FOLDERS):
        return ["."]
    folders = sorted(path.name for path in source.root.iterdir() if path.is_dir())
    return [f for f in folders if _folder(source, f, images_folder, _IMAGE_FOLDERS)]


def _folder(source: Source, sequence: str, chosen: str, usual: tuple[str, ...]) -> str | None:
    for name in (chosen,) if chosen else usual:
        folder = (PurePosixPath(sequence) / name).as_posix()
        if source.has_folder(folder):
            return folder
    return None


class _LabelReader:
    """Adds images with the boxes of their label files."""

    def __init__(
        self,
        source: Source,
        table: dict[str, str | None],
        columns: str,
        takes_unlabelled: bool,
    ):
        self.source = source
        self.takes_unlabelled = takes_unlabelled
        self.table = table
        self.folded = {key.lower(): value for key, value in reversed(table.items())}
        self.columns = columns

    def add(self, relative: str, label: str, split: str) -> None:
        """Add an image and its boxes."""
        path = self.source.root / label
        if not path.is_file() and not self.takes_unlabelled:
            self.source.drop("images without a label file", relative)
            return
        try:
            lines = read_lines(path) if path.is_file() else []
        except UserError:
            self.source.drop("images whose label file is no text", label)
            return
        image = self.source.add_image(relative, {"split": split})
        if image is None:
            return
        for number, line in enumerate(lines, 1):
            if line:
                self._add_line(image, line, f"{label}:{number}")

    def _add_line(self, image: dict[str, Any], line: str, where: str) -> None:
        parsed = self._parse(line)
        if parsed is None:
            reason = "label lines without 15 or 16 columns of numbers"
            self.source.damage(image, reason, where)
            return
        kind, values = parsed
        if kind not in self.table and kind.lower() == "dontcare":
            self.source.drop("DontCare regions", where)
            return
        target = self.target(kind)
        if target is None:
            self.source.drop("boxes of a type that the mapping lacks", f"{where}: {kind}")
            return
        x1, y1, x2, y2 = values[3:7]
        record = {"truncated": values[0] or None, "occluded": int(values[1]) or None}
        if len(values) > _NUM_NUMBERS:
            record["score"] = values[_NUM_NUMBERS]
        self.source.add_box(image, (x1, y1, x2 - x1, y2 - y1), target, record)

    def target(self, kind: str) -> str | None:
        """Class of a type; None drops it."""
        if not self.table:
            return kind
        return self.table[kind] if kind in self.table else self.folded.get(kind.lower())

    def _parse(self, line: str) -> tuple[str, list[float]] | None:
        """Type and 14 or 15 numbers, read from the end: the type may hold spaces."""
        words = line.split()
        counts = {"15": (14,), "16": (15,), "auto": (15, 14)}[self.columns]
        found = []
        for count in counts:
            numbers = _as_numbers(words[-count:])
            if len(words) > count and numbers is not None:
                found.append((" ".join(words[:-count]), numbers))
        # "Point 1" with 15 columns looks like "Point" with 16: a type of the mapping decides.
        known = [pair for pair in found if self.table and self.target(pair[0]) is not None]
        return (known or found or [None])[0]


def _as_numbers(words: list[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    # Whether a box is finite is reported apart.
    return numbers if all(map(math.isfinite, numbers[:3] + numbers[7:])) else None


def _split(
    dataset: Dataset, sequence_of: dict[str, str], mode: str, val_share: float, seed: int
) -> None:
    """Give each image a split; whole groups go to one side."""
    if not 0 < val_share < 1:
        raise UserError(f"--val-share is {val_share}; it lies between 0 and 1")
    images = dataset.images
    without = [image["file_name"] for image in images if not image.get("patient_id")]
    if mode == "patient" and without:
        raise UserError(
            f"--split is 'patient', but {len(without)} images have no patient_id, {without[0]!r} "
            r"for one: find it in the file names with --file-pattern '(?P<patient_id>...)'"
        )
    groups = defaultdict(list)
    for image in images:
        file = image["file_name"]
        keys = {"random": file, "sequence": sequence_of[file], "patient": image.get("patient_id")}
        groups[keys[mode]].append(image)
    if len(groups) < 2:
        raise UserError(f"--split is {mode!r}, but there is only one such group: choose another")
    names = sorted(groups, key=str)
    random.Random(seed).shuffle(names)
    wanted, taken = val_share * len(images), 0
    for position, key in enumerate(names):
        # At least one group on either side.
        is_val = position == 0 or (taken < wanted and position < len(names) - 1)
        taken += len(groups[key]) if is_val else 0
        for image in groups[key]:
            image["split"] = "val" if is_val else "train"
