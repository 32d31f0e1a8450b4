# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-S (Zenodo 4030660): 8-bit PNG images and a PNG mask for each class of tissue.

- ``<patient>/<patient>_<number>.png`` is an image, ``..._cancer.png`` a mask of it. A box is the
  bounds of a connected component.
- An image without a mask of a class has none of that class.
- The test images have masks of three readers, in ``annotator_1`` to ``annotator_3``.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, add_file

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


def convert(
    root: Path,
    out: Path,
    classes: Sequence[str] = ("cancer",),
    annotator: int = 1,
    min_pixels: int = 20,
) -> Dataset:
    """Read all PNG files below ``root``.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
        classes: of ``TISSUES``.
        annotator: whose masks the test images get, 1 to 3.
        min_pixels: of a component.
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
    for stem, path in tqdm(sorted(images.items()), desc="CSAW-S", unit="image", disable=None):
        wanted = {name: found[stem, f"_{name}"] for name in classes if (stem, f"_{name}") in found}
        _add_image(dataset, root, path, wanted, min_pixels)
    return dataset


def _reader(path: Path) -> int | None:
    matches = [_READER.fullmatch(part) for part in path.parts]
    return next((int(match.group(1)) for match in matches if match), None)


def _add_image(
    dataset: Dataset, root: Path, path: Path, found: dict[str, Path], min_pixels: int
) -> None:
    try:
        pixels = {name: masks.read_mask(mask) for name, mask in found.items()}
    except BadImage as error:
        dataset.report.add(
            "dropped", f"images with a mask that cannot be read ({error})", path.name
        )
        return
    relative = path.relative_to(root)
    image = add_file(
        dataset,
        root,
        relative.as_posix(),
        patient_id=f"csaws_{path.stem.split('_')[0]}",
        split="test" if "test_data" in relative.parts else "train",
    )
    for name, mask in pixels.items() if image else ():
        masks.add_components(dataset, image, mask, name, min_pixels)
