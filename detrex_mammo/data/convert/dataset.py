# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What every converter fills: COCO JSON with a mammogram's extra keys, and a report of every loss.

Boxes are (x, y, width, height) in pixels of the original image, the origin at its top left.
"""

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from detrex_mammo.data.json_stream import EntryWriter
from detrex_mammo.errors import UserError

SOURCES = ("mask", "polygon", "box", "circle", "ellipse", "point")
IMAGE_KEYS = (
    "patient_id",
    "study_id",
    "laterality",  # "L" or "R"
    "view",  # "CC", "MLO", ...
    "density",  # BI-RADS "A" to "D"
    "birads",
    "manufacturer",
    "pixel_spacing",  # [row, column], mm
    "bits_stored",
    "dataset",
    "split",
)
_MOST_EXAMPLES = 5
_SPLIT = re.compile(r"\w[\w.+-]{0,63}")  # it names the file of its images


class Report:
    """What a conversion kept, fixed and dropped, and why; nothing is lost without a line here."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {
            kind: Counter() for kind in ("kept", "fixed", "dropped")
        }
        self.examples: dict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, kind: str, reason: str, example: str = "") -> None:
        """Count one thing.

        Args:
            kind: "kept", "fixed" or "dropped".
            reason: the same words for the same reason.
            example: which file or row. Letters that no line of text can hold become "?".
        """
        reason = _one_line(reason)
        self.counts[kind][reason] += 1
        examples = self.examples[kind, reason]
        if example and len(examples) < _MOST_EXAMPLES:
            examples.append(_one_line(example))

    def move(self, what: str, reason: str, example: str) -> None:
        """Count one thing that was kept as dropped."""
        self.counts["kept"][what] -= 1
        self.counts["kept"] += Counter()  # without those that are 0
        self.add("dropped", reason, example)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file beside the dataset."""
        return {
            kind: {
                reason: {"count": count, "examples": self.examples[kind, reason]}
                for reason, count in counts.most_common()
            }
            for kind, counts in self.counts.items()
        }

    def describe(self) -> str:
        """A table for people."""
        rows = [
            (kind, count, reason, ", ".join(self.examples[kind, reason][:2]))
            for kind, counts in self.counts.items()
            for reason, count in counts.most_common()
        ]
        return tabulate(rows, headers=("", "number", "what, or why", "for example"))


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def write_coco(path: Path, content: dict[str, Iterable[Any]]) -> None:
    """Write COCO JSON entry by entry, whole or not at all: its text is never in memory.

    Args:
        path: of the file.
        content: as :meth:`Dataset.to_coco` gives it; its lists may be iterators.
    """
    with EntryWriter(path) as writer:
        for key, values in content.items():
            is_list = key in ("images", "annotations", "categories")
            for value in values if is_list else [values]:
                writer.add(key, json.dumps(value), is_list)


class Dataset:
    """Images, boxes and categories on their way into one JSON.

    Args:
        name: of the data set; each image gets it as ``dataset``.
        categories: names in the order of their ids, which start at 1; others are added as they
            come, if None.
    """

    def __init__(self, name: str, categories: Sequence[str] | None = None):
        self.name = name
        self.report = Report()
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._damaged: dict[int, None] = {}  # ids of images with a box that cannot be used
        self._is_open = categories is None
        self._categories = {name: index + 1 for index, name in enumerate(categories or [])}

    def add_image(self, file_name: str, height: int, width: int, **more: Any) -> dict[str, Any]:
        """Add an image, with or without lesions.

        Args:
            file_name: relative to the folder of images; it may not lead out of it.
            height: in pixels.
            width: in pixels.
            **more: of ``IMAGE_KEYS``; None and "" are left out. Other keys are kept, too.

        Returns:
            dict: the image, for :meth:`add_box`.

        Raises:
            UserError: the file name leads out of the folder, or ``split`` cannot name a file.
        """
        inside = os.path.normpath(file_name)
        if os.path.isabs(file_name) or inside.split(os.sep)[0] == "..":
            raise UserError(f"file name {file_name!r} leads out of the dataset's folder")
        image = {
            "id": len(self.images) + 1,
            "file_name": file_name,
            "height": int(height),
            "width": int(width),
            "dataset": self.name,
        }
        image.update({k: v for k, v in more.items() if v is not None and v != ""})
        if "split" in image and not _SPLIT.fullmatch(str(image["split"])):
            raise UserError(f"split {image['split']!r} of {file_name!r} is no name for a file")
        self.images.append(image)
        self.report.add("kept", "images")
        return image

    def add_box(
        self,
        image: dict[str, Any],
        box: Sequence[float],
        category: str,
        source: str = "box",
        **more: Any,
    ) -> dict[str, Any] | None:
        """Add a lesion, cut at the image's border; a box without area is dropped and reported.

        Args:
            image: from :meth:`add_image`.
            box: x, y, width, height in original pixels.
            category: name of the class.
            source: one of ``SOURCES``: what the box was made of.
            **more: ``pathology``, ``lesion_id`` (one lesion in several views), ``iscrowd``,
                ``ignore`` and others; None is left out.

        Returns:
            dict or None: the annotation, None if it was dropped.
        """
        assert source in SOURCES, source
        values = [float(value) for value in box]
        if not all(math.isfinite(value) for value in values):
            self.report.add("dropped", "boxes with a value that is no number", image["file_name"])
            self._damaged[image["id"]] = None
            return None
        x1, y1, width, height = values
        x2, y2 = min(x1 + width, image["width"]), min(y1 + height, image["height"])
        x1, y1 = max(x1, 0.0), max(y1, 0.0)
        if x2 <= x1 or y2 <= y1:
            self.report.add("dropped", "boxes without area in the image", image["file_name"])
            self._damaged[image["id"]] = None
            return None
        cut = [x1, y1, x2 - x1, y2 - y1]
        if any(abs(a - b) > 1e-6 for a, b in zip(cut, values)):
            self.report.add("fixed", "boxes cut at the image's border", image["file_name"])
        annotation = {
            "id": len(self.annotations) + 1,
            "image_id": image["id"],
            "category_id": self._category(category),
            "bbox": cut,
            "area": cut[2] * cut[3],
            "iscrowd": 0,
            "source": source,
        }
        annotation.update({k: v for k, v in more.items() if v is not None and v != ""})
        self.annotations.append(annotation)
        self.report.add("kept", "boxes")
        return annotation

    def without_damaged(self) -> "Dataset":
        """Itself, without the images of boxes that cannot be used: they are no negatives."""
        self.remove_images(self._damaged, "with a box that cannot be used")
        self._damaged.clear()
        return self

    def remove_images(self, ids: Collection[int], why: str) -> None:
        """Take images and their boxes out again; the others get new ids, in the same order.

        Args:
            ids: of the images.
            why: "with a damaged label", ...: the report's words behind "images".
        """
        file_of = {image["id"]: image["file_name"] for image in self.images if image["id"] in ids}
        for file_name in file_of.values():
            self.report.move("images", f"images {why}", file_name)
        for annotation in self.annotations:
            if annotation["image_id"] in file_of:
                file_name = file_of[annotation["image_id"]]
                self.report.move("boxes", f"boxes of images {why}", file_name)
        self.images[:] = [i for i in self.images if i["id"] not in file_of]
        self.annotations[:] = [a for a in self.annotations if a["image_id"] not in file_of]
        new = {image["id"]: index for index, image in enumerate(self.images, 1)}
        for image in self.images:
            image["id"] = new[image["id"]]
        for index, annotation in enumerate(self.annotations, 1):
            annotation.update(id=index, image_id=new[annotation["image_id"]])

    def to_coco(self) -> dict[str, Any]:
        """COCO JSON; the extra keys stand beside COCO's own."""
        categories = [{"id": index, "name": name} for name, index in self._categories.items()]
        return {
            "info": {"description": self.name},
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``annotations.json`` (or ``SPLIT.json`` for each split) and ``report.json``.

        Returns:
            list[Path]: the annotation files.
        """
        content = self.to_coco()
        splits = sorted({image["split"] for image in self.images if image.get("split")})
        files = []
        folder.mkdir(parents=True, exist_ok=True)
        for split in splits or [None]:
            ids = {i["id"] for i in self.images if split is None or i.get("split") == split}
            files.append(folder / f"{split or 'annotations'}.json")
            images = (image for image in self.images if image["id"] in ids)
            boxes = (a for a in self.annotations if a["image_id"] in ids)
            write_coco(files[-1], {**content, "images": images, "annotations": boxes})
        without = [image for image in self.images if splits and not image.get("split")]
        for image in without:
            self.report.add("dropped", "images without a split", image["file_name"])
        text = json.dumps(self.report.to_dict(), indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        return files

    def _category(self, name: str) -> int:
        if name not in self._categories:
            if not self._is_open:
                known = ", ".join(self._categories)
                raise UserError(f"category {name!r} is not among those chosen: {known}")
            self._categories[name] = len(self._categories) + 1
        return self._categories[name]
