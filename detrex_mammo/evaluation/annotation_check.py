# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Whether the content of a COCO annotation file can be scored: the first thing wrong, by name."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from detrex_mammo.errors import UserError

KEYS = ("images", "annotations", "categories")


def check_annotations(content: Any, source: str) -> None:
    """Refuse what no metric could use.

    Args:
        content: of the file.
        source: the file in words.

    Raises:
        UserError: something is missing, twice there, of the wrong kind, or about an image or a
            category that the file does not have.
    """
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f"{source} lacks {', '.join(missing)}: a COCO detection file has images, annotations "
            "and categories"
        )
    for key in KEYS:
        entries = content[key]
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            raise UserError(f"{key} of {source} is no list of objects: write it as COCO has it")
    images = _ids(content["images"], "image", source, (int, str))
    categories = _ids(content["categories"], "category", source, (int,))
    for image in content["images"]:
        _check(image, f"image {image['id']!r}", source, _OF_IMAGE)
    for category in content["categories"]:
        _check(category, f"category {category['id']!r}", source, {"name": _TEXT}, required=True)
    for row, entry in enumerate(content["annotations"]):
        what = f"annotation {entry.get('id', f'number {row}')!r}"
        _check(entry, what, source, {"bbox": _BOX}, required=True)
        _check(entry, what, source, _OF_ANNOTATION)
        for key, known in (("image_id", images), ("category_id", categories)):
            value = entry.get(key)
            if not isinstance(value, int | str) or value not in known:
                raise UserError(
                    f"{what} of {source} has {key} {value!r}, which is not in the file: correct "
                    "it, or leave the annotation out"
                )


def _ids(entries: Iterable[Mapping[str, Any]], what: str, source: str, kinds: tuple) -> set:
    known: set = set()
    for row, entry in enumerate(entries):
        value = entry.get("id")
        if not isinstance(value, kinds) or isinstance(value, bool):
            words = "a whole number" + (" or a text" if str in kinds else "")
            raise UserError(f"{what} number {row} of {source} has the id {value!r}, not {words}")
        if value in known:
            raise UserError(f"{source} has the {what} id {value!r} twice: give each its own")
        known.add(value)
    return known


def _check(
    entry: Mapping[str, Any],
    what: str,
    source: str,
    kinds: Mapping[str, tuple[str, Callable[[Any], bool]]],
    required: bool = False,
) -> None:
    for key, (words, fits) in kinds.items():
        value = entry.get(key)
        if (required or value is not None) and not fits(value):
            raise UserError(f"{what} of {source} has {key} {value!r}, but it is {words}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_text(value: Any) -> bool:
    """Half of a pair of UTF-16 is in no text, although JSON can hold it."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _are_numbers(number: int, positive: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        is_list = isinstance(value, list | tuple) and len(value) == number
        return is_list and all(_is_number(v) and (v > 0 or not positive) for v in value)

    return fits


_NUMBER = ("a number", _is_number)
_SIZE = ("a number of pixels above 0", lambda value: _is_number(value) and value > 0)
_TEXT = ("a text", _is_text)
_BOX = ("x, y, width, height in finite pixels", _are_numbers(4))
_OF_IMAGE = {
    "width": _SIZE,
    "height": _SIZE,
    "pixel_spacing": ("two lengths above 0 in mm", _are_numbers(2, positive=True)),
    "breast_box": ("x0, y0, x1, y1 in pixels", _are_numbers(4)),
    "slice": _NUMBER,
    "num_slices": _NUMBER,
}
_OF_ANNOTATION = {"area": _NUMBER, "slice": _NUMBER, "num_slices": _NUMBER}
