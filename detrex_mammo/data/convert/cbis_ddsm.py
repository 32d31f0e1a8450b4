# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CBIS-DDSM (TCIA): films as DICOM, one row and one mask for each lesion.

Facts of the set that this file answers (all counted on its four tables):
- PatientID is the name of a folder; the patient is the ``P_00173`` in it.
- A path of the tables names series that today's downloads keep in other folders and files, so a
  file is looked up by its path and else by its SeriesInstanceUID.
- Mask and crop are swapped in places: the mask is the one of two values and of about the film's
  size. Some masks have another scale than their film.
- A film with masses and calcifications is there twice; each copy alone looks like a film without
  the other's lesions. 31 patients are in the training set of one and the test set of the other.
- There are no normal films.
"""

import argparse
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, Header, add_file, read_header
from detrex_mammo.progress import counted

TYPES = ("mass", "calcification")
_FOLDER = re.compile(r"(Mass|Calc)-(Training|Test)_(P_\d+)_(LEFT|RIGHT)_([A-Z]+)(?:_\d+)?")
_COLUMNS = ("patient_id", "pathology", "image file path", "ROI mask file path")
_LARGEST_RATIO = 2.0  # of a mask's side to the film's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="of lesion")
    parser.add_argument(
        "--category", choices=("type", "pathology"), default="type", help="what a class is"
    )
    parser.add_argument(
        "--leak",
        choices=("repair", "report"),
        default="repair",
        help="patients of both official splits: all their films to the test set, or only told",
    )


@dataclass
class _Lesion:
    """One row of a table, its paths resolved."""

    where: str
    kind: str  # "mass" or "calcification"
    film: Path
    mask_candidates: list[Path]
    named_mask: Path | None
    cells: dict[str, str]


@dataclass
class _View:
    """All that is known of one film."""

    patient: str
    side: str
    name: str
    films: dict[str, Path] = field(default_factory=dict)  # split: file
    lesions: list[_Lesion] = field(default_factory=list)
    is_whole: bool = True  # no lesion is known to be missing


def convert(
    root: Path,
    out: Path,
    types: tuple[str, ...] = TYPES,
    category: str = "type",
    leak: str = "repair",
) -> Dataset:
    """Read the tables below ``root`` and make one image of each film.

    Args:
        root: holds the four tables and the case folders, at any depth.
        out: unused; the images stay where they are.
        types: of ``TYPES``.
        category: "type" or "pathology".
        leak: "repair" moves a patient of both splits to the test set and keeps one copy of a film;
            "report" keeps both copies, each with all lesions, in their official splits.
    """
    names = [f"**/{kind[:4]}_case_description_*_set.csv" for kind in types]
    csvs = tables.find(root, names, "table of CBIS-DDSM")
    classes = [t for t in TYPES if t in types] if category == "type" else ["benign", "malignant"]
    dataset = Dataset("cbis-ddsm", classes)
    _header.cache_clear()
    files = _Files(root)
    views: dict[tuple[str, str, str], _View] = {}
    for path in csvs:
        for where, cells in tables.read_rows(path, _COLUMNS, dataset.report):
            kind = TYPES[path.name.startswith("calc")]
            _add_row(dataset, files, views, where, kind, cells)
    _mend_splits(dataset, views, leak)
    for view in counted(views.values(), "CBIS-DDSM", unit="film"):
        _add_view(dataset, root, view, category)
    dataset.report.add("kept", "no normal films: false positives are counted on abnormal ones only")
    return dataset


class _Files:
    """The DICOM files of each case folder."""

    def __init__(self, root: Path):
        self.root = root
        self.folders: dict[str, list[Path]] = defaultdict(list)
        for parent, _, names in sorted(os.walk(root)):
            case = next((p for p in Path(parent).parts[::-1] if _FOLDER.fullmatch(p)), None)
            if case:
                self.folders[case] += [Path(parent, n) for n in sorted(names) if _is_dcm(n)]

    def resolve(self, relative: str) -> list[Path]:
        """The file of a table's path, or else all files of its series."""
        files = self.folders.get(relative.split("/")[0], [])
        named = [file for file in files if file.as_posix().endswith("/" + relative)]
        if named:
            return named[:1]
        series = relative.split("/")[-2] if "/" in relative else ""
        return [file for file in files if _series(file) == series]


def _is_dcm(name: str) -> bool:
    return name.lower().endswith(".dcm")


@cache
def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except BadImage:
        return None


def _series(path: Path) -> str | None:
    header = _header(path)
    return header.texts["SeriesInstanceUID"] if header else None


def _add_row(
    dataset: Dataset,
    files: _Files,
    views: dict[tuple[str, str, str], _View],
    where: str,
    kind: str,
    cells: dict[str, str],
) -> None:
    """Put one lesion to its view."""
    paths = [tables.inside(cells[name]) for name in ("image file path", "roi mask file path")]
    crop = tables.inside(cells.get("cropped image file path", ""))
    folder = _FOLDER.fullmatch(paths[0].split("/")[0]) if paths[0] else None
    if folder is None:
        dataset.report.add("dropped", "rows with a path that is none of CBIS-DDSM", where)
        return
    paths[1] = paths[1] or ""  # such a lesion has no mask
    _, part, patient, side, name = folder.groups()
    if cells["patient_id"] != patient:
        dataset.report.add("fixed", "rows of another patient than their folder's", where)
    view = views.setdefault((patient, side, name), _View(patient, side[0], name))
    films = files.resolve(paths[0])
    if not films:
        films = files.folders.get(folder.group(0), [])
        if len(films) != 1:
            dataset.report.add("dropped", "lesions whose film is missing", f"{where}: {paths[0]}")
            view.is_whole = False
            return
        dataset.report.add("fixed", "films of an unknown series, found by their folder", where)
    elif not films[0].as_posix().endswith("/" + paths[0]):
        dataset.report.add("fixed", "films not at the table's path, found by their series", where)
    named = files.resolve(paths[1])
    candidates = list(dict.fromkeys([*named, *(files.resolve(crop) if crop else [])]))
    candidates = candidates or files.folders.get(paths[1].split("/")[0], [])
    is_named = bool(named) and named[0].as_posix().endswith("/" + paths[1])
    view.films.setdefault("train" if part == "Training" else "test", films[0])
    lesion = _Lesion(where, kind, films[0], candidates, named[0] if is_named else None, cells)
    view.lesions.append(lesion)


def _mend_splits(dataset: Dataset, views: dict[tuple[str, str, str], _View], leak: str) -> None:
    """Find patients of both splits; with "repair", move them and keep one copy of a film."""
    splits = defaultdict(set)
    for view in views.values():
        splits[view.patient] |= set(view.films)
    for patient in sorted(patient for patient, both in splits.items() if len(both) > 1):
        if leak == "report":
            reason = "patients of both splits, left there: the test set is not independent"
            dataset.report.add("kept", reason, patient)
            continue
        dataset.report.add("fixed", "patients of both splits, moved to the test set", patient)
        for view in views.values():
            if view.patient == patient and view.films:
                view.films = {"test": view.films.get("test") or view.films["train"]}
    for view in views.values():
        if len({lesion.film for lesion in view.lesions}) > len(view.films):
            example = f"{view.patient} {view.side} {view.name}"
            dataset.report.add("fixed", "films there twice, as Mass and as Calc, merged", example)


def _add_view(dataset: Dataset, root: Path, view: _View, category: str) -> None:
    cells = [lesion.cells for lesion in view.lesions]
    birads = [int(b) for c in cells if (b := tables.number(c.get("assessment"))) is not None]
    densities = [c.get("breast_density") or c.get("breast density") for c in cells]
    found = [(lesion, _box(dataset, lesion, category)) for lesion in view.lesions]
    for split, film in view.films.items():
        is_whole = view.is_whole and all(box is not None for _, box in found)
        if _header(film) is not None and not is_whole:
            # without one of its boxes it would teach that there is nothing
            example = f"{split} {view.patient} {view.side} {view.name}"
            dataset.report.add("dropped", "films with a lesion that has no box", example)
            continue
        image = add_file(
            dataset,
            root,
            film.relative_to(root).as_posix(),
            patient_id=view.patient,
            laterality=view.side,
            view=view.name,
            density=next((d for d in map(tables.density, densities) if d), None),
            birads=str(max(birads)) if birads else None,
            split=split,
        )
        if image is None:
            continue
        size = (image["height"], image["width"])
        for lesion, box in found:
            _add_lesion(dataset, image, lesion, masks.scaled(*box, size), category)


def _add_lesion(
    dataset: Dataset, image: dict, lesion: _Lesion, box: masks.Box, category: str
) -> None:
    cells = lesion.cells
    pathology = cells["pathology"].lower()
    number = cells.get("abnormality id", "")
    dataset.add_box(
        image,
        box,
        lesion.kind if category == "type" else pathology.split("_")[0],
        source="mask",
        pathology=pathology,
        lesion_id=f"{image['patient_id']}_{image['laterality']}_{lesion.kind}_{number}",
        birads=cells.get("assessment"),
        lesion_type=lesion.kind,
    )


def _box(
    dataset: Dataset, lesion: _Lesion, category: str
) -> tuple[masks.Box, tuple[int, int]] | None:
    """A lesion's box and the (height, width) of the mask it was measured in; None, reported."""
    film = _header(lesion.film)
    if film is None:
        dataset.report.add("dropped", "lesions whose film cannot be read", lesion.where)
        return None
    known = lesion.cells["pathology"].lower().startswith(("benign", "malignant"))
    if category == "pathology" and not known:
        dataset.report.add("dropped", "lesions of unknown pathology", lesion.where)
        return None
    reasons = []
    for path in sorted(lesion.mask_candidates, key=lambda path: _unlike(_header(path), film)):
        header = _header(path)
        if header is not None and _unlike(header, film) > math.log(_LARGEST_RATIO):
            continue
        try:
            mask = masks.read_mask(path)
        except BadImage as error:
            reasons.append(str(error))
            continue
        if not ((mask == mask.min()) | (mask == mask.max())).all():
            continue
        box = masks.box_of(masks.foreground(mask))
        if box is None or mask.min() == mask.max():
            reasons.append("mask without a lesion")
            continue
        if lesion.named_mask not in (None, path):
            dataset.report.add("fixed", "masks and crops that were swapped", lesion.where)
        if mask.shape != (film.height, film.width):
            example = f"{lesion.where}: {mask.shape} for {(film.height, film.width)}"
            dataset.report.add("fixed", "masks of another size than the film, scaled", example)
        return box, mask.shape
    reason = reasons[0] if reasons else "none of two values and of the film's size"
    dataset.report.add("dropped", f"lesions without a mask ({reason})", lesion.where)
    return None


def _unlike(header: Header | None, film: Header) -> float:
    """Larger log ratio of two sides; 0 for equal sizes."""
    if header is None:
        return math.inf
    ratios = (header.height / film.height, header.width / film.width)
    return max(abs(math.log(ratio)) for ratio in ratios)
