# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-S (Zenodo 4030660): 8-bit PNG images and a PNG mask for each class of tissue.

- ``<patient>/<patient>_<number>.png`` is an image, ``..._cancer.png`` a mask of it. A box is the
  bounds of a connected component.
- An image without a mask of a class has none of that class.
- The test images have masks of three readers, in ``annotator_1`` to ``annotator_3``.
- ``training_random_splits.json`` holds the authors' random subsets of the training patients,
  {number of patients: {repetition: [patient, ...]}}. An image says in ``training_subsets`` in which
  ones it is ("10/3"); --training-subset takes one. Their ``suggested_validation_split.json``, a
  list of patients, makes val. Both are looked for anywhere below --root.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, add_file
from detrex_mammo.data.convert.source import split_of
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

TISSUES = (
    "cancer",
    "calcifications",
    "axillary_lymph_nodes",
    "foreign_object",
    "mammary_gland",
    "nipple",
    "non-mammary_tissue",
    "pectoral_muscle",
    "skin",
    "text",
    "thick_vessels",
    "unclassified",
)
_SUBSETS, _VALIDATION = "training_random_splits.json", "suggested_validation_split.json"
_READER = re.compile(r"annotator_(\d)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--classes", nargs="+", choices=TISSUES, default=["cancer"], metavar="CLASS"
    )
    parser.add_argument("--annotator", type=int, default=1, help="reader of the test images")
    parser.add_argument(
        "--min-pixels", type=int, default=20, help="smaller components are left out as noise"
    )
    parser.add_argument(
        "--training-subset",
        default="",
        help=f"a subset of {_SUBSETS}, such as 10/3: its patients alone are the training set",
    )


def convert(
    root: Path,
    out: Path,
    classes: Sequence[str] = ("cancer",),
    annotator: int = 1,
    min_pixels: int = 20,
    training_subset: str = "",
) -> Dataset:
    """Read all PNG files below ``root``, and the authors' splits.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
        classes: of ``TISSUES``.
        annotator: whose masks the test images get, 1 to 3.
        min_pixels: of a component.
        training_subset: "" for all training patients.

    Raises:
        UserError: there is no PNG file, or no such subset.
    """
    pngs = tables.find(root, ["**/anonymized_dataset/**/*.png", "**/test_data/**/*.png"], "PNG")
    dataset = Dataset("csaw-s", classes)
    chosen = [path for path in pngs if _reader(path) in (None, annotator)]
    endings = [f"_{tissue}" for tissue in TISSUES]
    images, found = masks.find_pairs(chosen, endings)
    all_images, _ = masks.find_pairs(pngs, endings)
    for stem in sorted({stem for stem, _ in found} - set(all_images)):
        dataset.report.add("dropped", "masks without an image", stem)
    images = {**all_images, **images}  # an image may lie in another reader's folder only
    splits = _Splits(dataset, root, training_subset)
    for stem, path in counted(sorted(images.items()), "CSAW-S"):
        wanted = {name: found[stem, f"_{name}"] for name in classes if (stem, f"_{name}") in found}
        known = splits.of(_patient(stem), is_test="test_data" in path.relative_to(root).parts)
        if known is None:
            dataset.report.add("dropped", "training images not in the subset", path.name)
        else:
            _add_image(dataset, root, path, wanted, min_pixels, known)
    return dataset


def _patient(text: Any) -> str:
    """ "012" of "012_3", "012" or 12."""
    return str(text).strip().split("_")[0].zfill(3)


class _Splits:
    """What the authors' files say of a patient.

    Args:
        dataset: its report gets a line for each file.
        root: the files lie anywhere below it.
        chosen: subset to train on, "" for all.

    Raises:
        UserError: there is no such subset.
    """

    def __init__(self, dataset: Dataset, root: Path, chosen: str):
        self.chosen = chosen
        self.subsets: dict[str, list[str]] = defaultdict(list)  # patient: names
        self.split: dict[str, str] = {}
        self.names: list[str] = []
        for name in (_SUBSETS, _VALIDATION):
            for path in sorted(root.rglob(name))[:1]:
                try:
                    self._read(path)
                except (OSError, ValueError, RecursionError):
                    dataset.report.add("dropped", "files of splits that cannot be read", name)
                else:
                    dataset.report.add("kept", "files of the authors' splits", name)
        if chosen and chosen not in self.names:
            held = ", ".join(self.names[:8]) or "none"
            raise UserError(
                f"--training-subset {chosen!r} is not in {_SUBSETS} below --root, which has {held}"
            )

    def of(self, patient: str, is_test: bool) -> dict[str, Any] | None:
        """Keys of an image's record; None if it is not to be trained on."""
        if is_test:
            return {"split": "test"}
        split = self.split.get(patient, "train")
        subsets = self.subsets.get(patient)
        if split == "train" and self.chosen and self.chosen not in (subsets or ()):
            return None
        return {"split": split, "training_subsets": subsets}

    def _read(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if path.name == _VALIDATION and isinstance(content, list):
            content = {"val": content}
        found = dict(_leaves(content))
        if not found:
            raise ValueError("no list of patients")
        for name, patients in found.items():
            split = split_of(name.rpartition("/")[2])
            if not split:
                self.names.append(name)
            for patient in patients:
                if split:
                    self.split[patient] = split
                else:
                    self.subsets[patient].append(name)


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """("10/3", patients) of each list, however deep it lies in tables.

    Raises:
        ValueError: there is something else.
    """
    if isinstance(content, list):
        if not name or not all(isinstance(entry, str | int) for entry in content):
            raise ValueError("no list of patients")
        yield name, sorted({_patient(entry) for entry in content})
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _leaves(value, f"{name}/{key}" if name else str(key))
    else:
        raise ValueError("neither a table nor a list")


def _reader(path: Path) -> int | None:
    matches = [_READER.fullmatch(part) for part in path.parts]
    return next((int(match.group(1)) for match in matches if match), None)


def _add_image(
    dataset: Dataset,
    root: Path,
    path: Path,
    found: dict[str, Path],
    min_pixels: int,
    known: dict[str, Any],
) -> None:
    try:
        pixels = {name: masks.read_mask(mask) for name, mask in found.items()}
    except BadImage as error:
        dataset.report.add(
            "dropped", f"images with a mask that cannot be read ({error})", path.name
        )
        return
    patient = f"csaws_{path.stem.split('_')[0]}"
    relative = path.relative_to(root).as_posix()
    image = add_file(dataset, root, relative, patient_id=patient, **known)
    for name, mask in pixels.items() if image else ():
        masks.add_components(dataset, image, mask, name, min_pixels)
