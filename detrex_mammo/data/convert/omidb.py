# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""OMI-DB (OPTIMAM): parsed by the package ``omidb``, which is installed on its own.

- A mark has several features; the first of mass, calcification, distortion, asymmetry is its
  class, all stand in its record. A feature that is not set is unknown, not absent.
- The package calls a mark's first corner the lower left one; corners are ordered here, and
  --origin says where y counts from. Look at some marks before you train.
- Raw FOR PROCESSING images have the same view FOR PRESENTATION and are left out.
- An image without marks is a negative only if its client is normal. What the package cannot
  parse or link to an episode, it leaves out; it is counted here.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import add_file, add_raw_argument
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

# feature of a mark: class; the first that is set counts
CLASSES = {
    "mass": "mass",
    "suspicious_calcifications": "calcification",
    "calcifications": "calcification",
    "architectural_distortion": "architectural distortion",
    "focal_asymmetry": "asymmetry",
}
_OTHER = "other"
CATEGORIES = (*dict.fromkeys(CLASSES.values()), _OTHER)
_FEATURES = (*CLASSES, "dystrophic_calcification", "fat_necrosis", "milk_of_calcium")
_FEATURES += ("other_benign_cluster", "plasma_cell_mastitis", "benign_skin_feature")
_FEATURES += ("suture_calcification", "vascular_feature")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument("--origin", choices=("top", "bottom"), default="top", help="of a mark's y")
    add_raw_argument(parser)


def convert(
    root: Path, out: Path, origin: str = "top", allow_for_processing: bool = False
) -> Dataset:
    """Read ``data`` and ``images`` below ``root``.

    Args:
        root: holds ``data/CLIENT/imagedb_CLIENT.json`` and ``images/CLIENT/STUDY/IMAGE.dcm``.
        out: unused; the images stay where they are.
        origin: "top" or "bottom".
        allow_for_processing: also take raw images.

    Raises:
        UserError: the package is not installed, or ``root`` is another folder.
    """
    try:
        from loguru import logger
        from omidb.parser import DB
    except ImportError as error:
        raise UserError(
            f"omi-db needs a package that cannot be imported ({error}): pip install omidb"
        ) from error
    tables.find(root, ["data/*/imagedb_*.json", "data/*/IMAGEDB_*.json"], "client of OMI-DB")
    logger.disable("omidb")  # it logs what it leaves out; the report counts that
    dataset = Dataset("omi-db", CATEGORIES)
    for name in counted(sorted(DB(root / "data").clients), "OMI-DB", unit="client"):
        clients = list(DB(root / "data", root / "images", clients=[name]))
        marks_in_file = _marks_in_file(root / "data" / name)
        if not clients or marks_in_file is None:
            dataset.report.add("dropped", "clients that omidb cannot parse", name)
            continue
        for image in _images(clients[0]):
            number = marks_in_file.pop(image["id"], 0)
            _add_image(dataset, root, image, number, origin, allow_for_processing)
        for left in marks_in_file:
            dataset.report.add("dropped", "images that omidb links to no episode", left)
    return dataset.without_damaged()


def _marks_in_file(folder: Path) -> dict[str, int] | None:
    """{image: number of marks} of a client's file, None if it cannot be read."""
    paths = [*folder.glob("imagedb_*.json"), *folder.glob("IMAGEDB_*.json")]
    try:
        studies = json.loads(paths[0].read_text(encoding="utf-8-sig"))["STUDIES"]
        return {
            name: len(marks) if isinstance(marks, dict) else 0
            for study in studies.values()
            for series in study.values()
            if isinstance(series, dict)
            for name, marks in series.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _images(client: Any) -> Iterator[dict[str, Any]]:
    """Each image with what is known of it around it."""
    for episode in client.episodes:
        for study in episode.studies:
            for series in study.series:
                for image in series.images:
                    yield {
                        "id": image.id,
                        "client": client.id,
                        "is_normal": client.status.name == "N",
                        "episode": episode.id,
                        "study": study.id,
                        "marks": image.marks,
                    }


def _add_image(
    dataset: Dataset,
    root: Path,
    found: dict[str, Any],
    number: int,
    origin: str,
    allow_for_processing: bool,
) -> None:
    marks = found["marks"]
    name = tables.inside(f"images/{found['client']}/{found['study']}/{found['id']}.dcm")
    if len(marks) < number:
        dataset.report.add("dropped", "images with a mark that omidb cannot parse", found["id"])
        return
    if not marks and not found["is_normal"]:
        reason = "images without marks of clients that are not normal"
        dataset.report.add("dropped", reason, found["id"])
        return
    if name is None or not name.startswith(f"images/{found['client']}/"):
        dataset.report.add("dropped", "images whose path leads out of the folder", found["id"])
        name = None
    known = {"patient_id": found["client"], "study_id": found["study"]}
    image = add_file(dataset, root, name, allow_for_processing, **known) if name else None
    for mark in marks:
        if image is None:
            dataset.report.add("dropped", "marks of an image that was dropped", found["id"])
        else:
            _add_mark(dataset, image, mark, found, origin)


def _add_mark(
    dataset: Dataset, image: dict[str, Any], mark: Any, found: dict[str, Any], origin: str
) -> None:
    corners = mark.boundingBox
    (x1, x2), (y1, y2) = sorted((corners.x1, corners.x2)), sorted((corners.y1, corners.y2))
    if origin == "bottom":
        y1, y2 = image["height"] - y2, image["height"] - y1
    features = [name for name in _FEATURES if getattr(mark, name)]
    lesions = "+".join(sorted(mark.lesion_ids or ()))  # unique within an episode only
    dataset.add_box(
        image,
        (x1, y1, x2 - x1, y2 - y1),
        next((CLASSES[name] for name in features if name in CLASSES), _OTHER),
        features=features or None,
        lesion_id=f"{found['client']}_{found['episode']}_{lesions}" if lesions else None,
        conspicuity=mark.conspicuity.value if mark.conspicuity else None,
    )
