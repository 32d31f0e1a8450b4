# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Who is where: the same woman, or the same film, on two sides of a split."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from detrex_mammo.data.checks.findings import Findings, Repairs
from detrex_mammo.data.coco_table import CocoTable, ImageRow

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# Which side keeps a patient that two sides have: the one that measures.
_RANK = {"test": 2, "val": 1}
# CBIS-DDSM's patients; its PatientID is the name of a folder that holds it.
_CBIS_PATIENT = re.compile(r"(?<![A-Za-z0-9])P_(\d{5})(?!\d)")
# A case of DDSM, as DDSM and mini-DDSM write it: A-1141-1, C_0029_1.
_DDSM_CASE = re.compile(r"(?<![A-Za-z0-9])([A-D])[-_ ]?(\d{4})[-_ ]?(\d)(?!\d)", re.IGNORECASE)


def normal_split(name: str | None) -> str | None:
    """ "train", "val" or "test" for any usual name of them; any other name as it is."""
    return _WORDS.get(name.lower(), name) if name else None


def split_of_file(path: Path) -> str | None:
    """The split that a file's name tells, None if it tells none or two."""
    words = re.split(r"[^a-z]+", Path(path).stem.lower())
    found = {_WORDS[word] for word in words if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def side_of(path: Path, image: ImageRow) -> str:
    """Which side of a split an image is on: by its file's name, else its key, else its file."""
    return split_of_file(path) or normal_split(image.split) or Path(path).stem


def patient_key(image: ImageRow) -> tuple[str, str] | None:
    """The same for the same woman: data set (or the one it was derived from) and patient."""
    return None if image.patient_id is None else _key(image.dataset, image.patient_id)


@lru_cache(maxsize=1 << 16)
def _key(dataset: str, patient: str) -> tuple[str, str]:
    is_ddsm = "ddsm" in _plain(dataset)
    cbis = _CBIS_PATIENT.search(patient)
    if cbis and (is_ddsm or not dataset):
        return ("cbis-ddsm", cbis.group())
    case = _DDSM_CASE.search(patient) if is_ddsm else None
    if case:
        return ("ddsm", "".join(case.groups()).upper())
    return ("ddsm" if is_ddsm else _plain(dataset), patient)


def check_patients(
    tables: Sequence[CocoTable], findings: Findings, repairs: Sequence[Repairs]
) -> None:
    """Patients and files on two sides, and sets of common patients whose ids do not tell."""
    sides: dict[tuple, set[str]] = defaultdict(set)
    ddsm_sides: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        unknown = 0
        for image in table.images:
            key, side = patient_key(image), side_of(table.path, image)
            unknown += key is None
            if key is not None:
                sides[key].add(side)
            if "ddsm" in _plain(image.dataset):
                ddsm_sides[key[0] if key else _plain(image.dataset)].add(side)
        what = "images without patient_id: whether a patient is on two sides cannot be told"
        findings.add("warning", what, table.path.name, unknown)
        _check_split_key(table, findings)
    leaking = {key: found for key, found in sides.items() if len(found) > 1}
    what = "patients on two sides of a split"
    examples = [f"{key[1]} in {' and '.join(sorted(found))}" for key, found in leaking.items()]
    findings.add("error", what, examples, len(leaking))
    for table, repair in zip(tables, repairs):
        for row, image in enumerate(table.images):
            found = leaking.get(patient_key(image), ())
            if found and side_of(table.path, image) != keeper(found):
                repair.images.setdefault(row, what)
    _check_ddsm(ddsm_sides, findings)
    _check_files(tables, findings, repairs)


def keeper(sides) -> str:
    """The side that keeps what several have: test before val before any other."""
    return max(sorted(sides), key=lambda side: _RANK.get(side, 0))


def _check_split_key(table: CocoTable, findings: Findings) -> None:
    told = split_of_file(table.path)
    other = [i for i in table.images if told and i.split and normal_split(i.split) != told]
    examples = [f"{table.path.name}: {image.split}" for image in other[:1]]
    findings.add("warning", "images whose split is not that of their file", examples, len(other))


def _check_ddsm(ddsm_sides: dict[str, set[str]], findings: Findings) -> None:
    """CBIS-DDSM renamed DDSM's patients: together with DDSM or mini-DDSM only one side is safe."""
    everywhere = set().union(*ddsm_sides.values()) if ddsm_sides else set()
    if len(ddsm_sides) > 1 and len(everywhere) > 1:
        told = "; ".join(f"{name} in {', '.join(sorted(s))}" for name, s in ddsm_sides.items())
        what = "data sets made of DDSM, with other patient ids, on two sides of a split"
        findings.add("error", what, told, len(ddsm_sides))


def _check_files(tables, findings, repairs) -> None:
    """One file in two JSON files; without its folder a name only tells within a data set.

    Two frames of a file are two images of one breast, so they belong on one side, too.
    """
    sides: dict[tuple, set[str]] = defaultdict(set)
    keys = []
    for table in tables:
        keys.append([(i.dataset, str(table.path.parent), i.file_name) for i in table.images])
        for key, image in zip(keys[-1], table.images):
            sides[key].add(side_of(table.path, image))
    leaking = {key: found for key, found in sides.items() if len(found) > 1 and key[2]}
    what = "files on two sides of a split"
    findings.add("error", what, [key[2] for key in list(leaking)[:5]], len(leaking))
    for table, repair, names in zip(tables, repairs, keys):
        for row, (key, image) in enumerate(zip(names, table.images)):
            if key in leaking and side_of(table.path, image) != keeper(leaking[key]):
                repair.images.setdefault(row, what)


def check_categories_agree(tables: Sequence[CocoTable], findings: Findings) -> None:
    """The same id must be the same class in every file of a data set."""
    of_dataset: dict[str, CocoTable] = {}
    for table in tables:
        for dataset in sorted({image.dataset for image in table.images}):
            other = of_dataset.setdefault(dataset, table)
            here, there = dict(table.categories), dict(other.categories)
            differ = [i for i in {**there, **here} if here.get(i) != there.get(i)]
            examples = [
                f"id {i!r}: {there.get(i)!r} in {other.path.name}, {here.get(i)!r} in "
                f"{table.path.name}"
                for i in differ[:2]
            ]
            what = "categories that are not the same in all files of a data set"
            findings.add("error", what, examples, len(differ))


@lru_cache(maxsize=1024)
def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
