# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pascal VOC: one XML file for each image, and lists of the images of each split.

Both layouts: ``JPEGImages/ Annotations/ ImageSets/Main/train.txt``, and MammoMix's ``train.txt
train/images/ train/labels/ ...``. Without lists an image's split is the folder that it lies in.
"""

import argparse
import re
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import parse

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.source import (
    Source,
    add_common_arguments,
    label_files,
    read_lines,
    split_of,
)
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OTHER_LISTS = {"Segmentation", "Layout", "Action"}  # of ImageSets, beside Main
_FLAG = re.compile(r"\s+-?[01]$")  # "2007_000027 -1": the class is not in this image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    add_common_arguments(parser, without_labels="drop")
    parser.add_argument(
        "--one-based",
        action="store_true",
        help="the first pixel is 1 and xmax, ymax lie in the box, as in VOC2007 to VOC2012; "
        "otherwise coordinates are edges, from 0",
    )


def convert(
    root: Path,
    out: Path,
    without_labels: str = "drop",
    one_based: bool = False,
    **common: Any,
) -> Dataset:
    """Read a VOC folder; class names stay as they are, ``difficult`` becomes ``ignore``.

    Args:
        root: one dataset's folder, or that of several in MammoMix's layout.
        out: where the dataset will be written; nothing is written here.
        without_labels: "drop" an image without an XML file, or take it as "negative".
        one_based: see :func:`add_arguments`.
        **common: see :class:`Source`.

    Raises:
        UserError: root is no folder or holds no image.
    """
    source = Source(root, **common)
    entries = _listed_images(source)
    if not entries:
        raise UserError(f"--root {str(root)!r} holds no image: give the folder of a VOC dataset")
    for relative, split in counted(entries, "VOC"):
        _add(source, relative, split, without_labels == "negative", one_based)
    return source.finish()


def _listed_images(source: Source) -> list[tuple[str, str]]:
    """(path, split) of each image; one in no list goes where its folder says."""
    found: list[tuple[str, str]] = []
    lists = [
        path
        for path in sorted(source.root.rglob("*.txt"))
        if split_of(path.stem) and not _OTHER_LISTS & set(path.parts)
    ]
    for path in lists:
        folder = path.relative_to(source.root).parent
        near = folder.parent.parent if folder.name == "Main" else folder
        where = path.relative_to(source.root).as_posix()
        try:
            lines = read_lines(path)
        except UserError:
            source.drop("lists that are no text", where)
            continue
        for line in filter(None, lines):
            line = _FLAG.sub("", line) if folder.name == "Main" else line
            relative = source.find_image(line, where, near.as_posix())
            if relative is not None:
                found.append((relative, split_of(path.stem)))
    listed = {relative for relative, _ in found}
    for relative in source.images_below("."):
        if relative in listed:
            continue
        split = next(filter(None, map(split_of, PurePosixPath(relative).parts[:-1])), "")
        if lists and not split:
            source.drop("images in no list", relative)
            continue
        if lists:
            source.fix("images in no list; their folder is their split", relative)
        found.append((relative, split))
    return found


def _add(source: Source, relative: str, split: str, takes_unlabelled: bool, one_based: bool):
    labels = [path for path in label_files(relative, ".xml") if source.has(path)]
    if not labels:
        if takes_unlabelled:
            source.add_image(relative, {"split": split})
        else:
            source.drop("images without an XML file", relative)
        return
    try:
        tree = parse(source.root / labels[0]).getroot()
    # defusedxml's own are ValueErrors; an unknown encoding is a LookupError.
    except (ParseError, ValueError, LookupError, OSError) as error:
        kind = "forbidden (entities)" if isinstance(error, ValueError) else "damaged"
        source.drop(f"images whose XML file is {kind}", labels[0])
        return
    size = _numbers(tree.find("size"), ("height", "width"))
    image = source.add_image(relative, {"split": split}, size)
    if image is None:
        return
    for element in tree.iterfind("object"):
        box = _numbers(element.find("bndbox"), _CORNERS)
        label = (element.findtext("name") or "").strip()
        if box is None or not label:
            source.damage(image, "objects without a name or without four numbers", labels[0])
            continue
        x1, y1, x2, y2 = box
        if one_based:
            x1, y1 = x1 - 1, y1 - 1
        source.add_box(image, (x1, y1, x2 - x1, y2 - y1), label, _flags(element))


def _numbers(element: Element | None, names: tuple[str, ...]) -> tuple[float, ...] | None:
    """Texts of an element's children as numbers; None if one is missing or none."""
    if element is None:
        return None
    try:
        return tuple(float(element.findtext(name) or "none") for name in names)
    except ValueError:
        return None


def _flags(element: Element) -> dict[str, Any]:
    """``ignore``, ``truncated`` and ``pose`` where they say something."""
    pose = (element.findtext("pose") or "").strip()
    return {
        "ignore": 1 if (element.findtext("difficult") or "").strip() == "1" else None,
        "truncated": 1 if (element.findtext("truncated") or "").strip() == "1" else None,
        "pose": None if pose in ("", "Unspecified") else pose,
    }
