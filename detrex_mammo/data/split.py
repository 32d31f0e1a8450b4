# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Splits by patient, stratified by label and density; official splits stay as they are.

G patients, F folds, S strata.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from detrex_mammo.data.checks.patients import normal_split, patient_key, split_of_file
from detrex_mammo.data.coco_table import CocoTable, ImageRow, read_table
from detrex_mammo.data.dataset_folder import write_json
from detrex_mammo.data.split_files import FOLD, remove_earlier, sha256, write_files
from detrex_mammo.errors import UserError

NEGATIVE, UNKNOWN = "no lesion", "unknown"
LEFT_OUT = "left out"
_MOST_PASSES = 10


@dataclass
class SplitOptions:
    """How to divide.

    Attributes:
        folds: for cross-validation; 0 for one training and one validation set.
        val: share of the patients' images to validate on, without folds.
        test: share of the images that become ``test.json``, unless there is an official one.
        seed: of everything random.
        ignore_official: divide the images of official splits anew.
    """

    folds: int = 0
    val: float = 0.2
    test: float = 0.0
    seed: int = 0
    ignore_official: bool = False

    def check(self) -> None:
        """Raise a UserError if this cannot be."""
        if self.folds == 1 or self.folds < 0:
            raise UserError(f"--folds is {self.folds}; use 2 or more, or 0 for one val.json")
        for name, share in (("--val", self.val), ("--test", self.test)):
            if not 0 <= share < 1:
                raise UserError(f"{name} is {share}; use a share from 0 to less than 1")
        if not self.folds and not 0 < self.val + self.test < 1:
            raise UserError(
                f"--val {self.val} and --test {self.test} leave nothing to divide; together they "
                "are more than 0 and less than 1"
            )


@dataclass
class Split:
    """Where everything goes.

    Attributes:
        tables: the sources.
        sides: of each source, of each image: "train", "val", "test", "fold0", ...; ``LEFT_OUT``.
        patients: "dataset/patient": side.
        counts: side: stratum: number of images.
        notes: what a person should know.
    """

    tables: list[CocoTable]
    sides: list[list[str]]
    patients: dict[str, str]
    counts: dict[str, Counter[str]]
    notes: list[str] = field(default_factory=list)

    def files(self) -> dict[str, tuple[str, ...]]:
        """The sides that each file holds; its name tells the split."""
        sides = sorted({side for of_source in self.sides for side in of_source} - {LEFT_OUT})
        folds = [side for side in sides if side.startswith(FOLD)]
        files = {f"{side}.json": (side,) for side in sides if side not in folds}
        for fold in folds:
            files[f"{fold}/train.json"] = tuple(other for other in folds if other != fold)
            files[f"{fold}/val.json"] = (fold,)
        return files

    def describe(self) -> str:
        """Images of each stratum on each side, as a table, and the notes."""
        sides = sorted(self.counts)
        strata = sorted({name for counts in self.counts.values() for name in counts})
        rows = [(name, *(self.counts[side][name] for side in sides)) for name in strata]
        return "\n".join([tabulate(rows, headers=("images", *sides)), *self.notes])


def assign(counts: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Share out groups so that each fold gets its share of every stratum.

    Greedy: the groups that hold most come first, and each goes to the fold that lacks most of what
    it brings; this is the choice that lowers chi-squared, the distance to the wanted counts, most.
    Then each group may go elsewhere, again and again, until none does.

    Args:
        counts: (G, S) how much of each stratum a group holds.
        shares: F of them, of any sum.
        seed: of the order of equal groups.

    Returns:
        np.ndarray: (G,) fold of each group.
    """
    totals = counts.sum(axis=0)
    scale = np.sqrt(totals[totals > 0])
    held = counts[:, totals > 0] / scale
    squares = (held**2).sum(axis=1)
    order = np.random.default_rng(seed).permutation(len(held))
    order = order[np.argsort(-squares[order], kind="stable")].tolist()
    lacking = np.array(shares, dtype=np.float64)[:, None] / sum(shares) * scale
    folds = np.full(len(held), -1)
    for _ in range(_MOST_PASSES):
        before = folds.copy()
        for group in order:
            if folds[group] >= 0:
                lacking[folds[group]] += held[group]
            gains = lacking @ held[group]
            if folds[group] >= 0:  # stays unless another fold lacks more, rounding aside
                gains[folds[group]] += 1e-9
            folds[group] = gains.argmax()
            lacking[folds[group]] -= held[group]
        if (folds == before).all():
            break
    return folds


def plan_split(tables: Sequence[CocoTable], options: SplitOptions) -> Split:
    """Decide where every image goes.

    Images of an official split (their ``split`` key, or their file's name) other than training
    stay there. Training images and those without a split are divided; where a patient is in a
    split that stays, too, her other images are left out. Official training images next to official
    validation images are only divided into folds; those of patients who are in an official
    validation or test split are left out there, too.

    Raises:
        UserError: the options are not possible, or there is nothing to divide.
    """
    options.check()
    images = [(table, image) for table in tables for image in table.images]
    keys = _groups([image for _, image in images])
    group_of_key = {key: group for group, key in enumerate(dict.fromkeys(keys))}
    group_of = np.array([group_of_key[key] for key in keys])
    sides = [None if options.ignore_official else _official(t, image) for t, image in images]
    divided = (None,) if "val" in sides and not options.folds else (None, "train")
    to_divide = np.array([side in divided for side in sides])
    held, measured = np.zeros((2, len(group_of_key)), dtype=bool)
    held[group_of[~to_divide]] = True
    is_train = np.array([side == "train" for side in sides])
    measured[group_of[~to_divide & ~is_train]] = True
    leaking = (to_divide & held[group_of]) | (is_train & measured[group_of])
    stays = ~to_divide & ~leaking
    notes = _notes(tables, keys, [side if s else None for side, s in zip(sides, stays)])
    names, membership = _strata(tables)
    free = to_divide & ~leaking
    if not free.any() and not options.ignore_official:
        notes.append("everything is in an official split already: nothing was divided")
    side_of_group = _divide(group_of, free, membership, len(group_of_key), sides, options)
    for row in np.flatnonzero(to_divide | leaking).tolist():
        sides[row] = LEFT_OUT if leaking[row] else side_of_group[group_of[row]]
    if leaking.any():
        notes.append(
            f"left out: {leaking.sum()} images of {np.unique(group_of[leaking]).size} patients who "
            "are in an official split, too"
        )
    patients = {"/".join(key): side for key, side in zip(keys, sides) if side != LEFT_OUT}
    ends = np.cumsum([len(table.images) for table in tables])
    of_source = [sides[end - len(table.images) : end] for table, end in zip(tables, ends)]
    counts = _count(names, membership, group_of, sides)
    return Split(list(tables), of_source, patients, counts, notes)


def _groups(images: Sequence[ImageRow]) -> list[tuple[str, str]]:
    """What each image must stay together with: a patient, also of its study; a study; a file."""
    keys = [patient_key(image) for image in images]
    of_study = {(i.dataset, i.study_id): key for i, key in zip(images, keys) if i.study_id and key}
    groups = []
    for image, key in zip(images, keys):
        study = image.study_id
        rest = f"study {study}" if study else f"file {image.file_name}"
        groups.append(key or of_study.get((image.dataset, study)) or (image.dataset, rest))
    return groups


def _official(table: CocoTable, image: ImageRow) -> str | None:
    name = normal_split(image.split) or split_of_file(table.path)
    return re.sub(r"[^\w-]+", "_", name) if name else None  # it becomes a file's name


def _notes(tables, keys, kept_sides) -> list[str]:
    unknown = sum(image.patient_id is None for table in tables for image in table.images)
    notes = []
    if unknown:
        notes.append(
            f"warning: {unknown} images have no patient_id: each study, or each image without "
            "study_id, counts as a patient, so one woman may be on two sides"
        )
    if {"cbis-ddsm", "ddsm"} <= {dataset for dataset, _ in keys}:
        notes.append(
            "warning: CBIS-DDSM and another set made of DDSM show the same women under other "
            "names: split them apart and keep both on one side"
        )
    kept: dict[Any, set[str]] = {}
    for key, side in zip(keys, kept_sides):
        kept.setdefault(key, set()).add(side)
    shared = sum(len(found - {None}) > 1 for found in kept.values())
    if shared:
        notes.append(f"warning: {shared} patients are in two official splits, which stay so")
    return notes


def _divide(group_of, free, membership, num_groups, sides, options) -> list[str]:
    """Side of each group that has free images; of the others it means nothing."""
    counts = np.zeros((num_groups, membership.shape[1]))
    for column in range(membership.shape[1]):
        chosen = free & (membership[:, column] > 0)
        counts[:, column] = np.bincount(group_of[chosen], minlength=num_groups)
    groups = np.flatnonzero(counts[:, 0])
    side_of_group = np.full(num_groups, "train", dtype=object)
    test = 0.0 if "test" in sides else options.test
    val = 0.0 if options.folds else options.val
    needed = max(options.folds, 1) + bool(test) + bool(val)
    if 0 < len(groups) < needed:
        raise UserError(
            f"there are {len(groups)} patients to divide and {needed} sides to fill: use fewer "
            "--folds, or --val 0 or --test 0"
        )
    if test and len(groups):
        chosen = assign(counts[groups], (1 - test, test), options.seed)
        side_of_group[groups[chosen == 1]] = "test"
        groups = groups[chosen == 0]
    if options.folds:
        folds = assign(counts[groups], [1] * options.folds, options.seed)
        side_of_group[groups] = [f"{FOLD}{fold}" for fold in folds]
    elif val and len(groups):
        chosen = assign(counts[groups], (1 - test - val, val), options.seed)
        side_of_group[groups[chosen == 1]] = "val"
    return side_of_group.tolist()


def _strata(tables: Sequence[CocoTable]) -> tuple[list[str], np.ndarray]:
    """Names of strata, and which image is in which: (I, S) uint8; the first holds all images."""
    labels: list[set[str]] = []
    for table in tables:
        labels += _labels(table)
    densities = [f"density {i.density or UNKNOWN}" for table in tables for i in table.images]
    joint = len(set(densities)) > 1
    column_of: dict[str, int] = {"all": 0}
    rows, columns = [], []
    for row, (mine, density) in enumerate(zip(labels, densities)):
        names = ["all", density, *mine]
        names += [f"{name}, {density}" for name in mine] if joint else []
        rows += [row] * len(names)
        columns += [column_of.setdefault(name, len(column_of)) for name in names]
    membership = np.zeros((len(labels), len(column_of)), dtype=np.uint8)
    membership[rows, columns] = 1
    return list(column_of), membership


def _labels(table: CocoTable) -> list[set[str]]:
    """Classes and pathologies of each image's boxes; ``NEGATIVE`` where it has none."""
    labels: list[set[str]] = [set() for _ in table.images]
    names = [str(name) for _, name in table.categories]
    known = (table.image_of >= 0) & (table.category_of >= 0)
    for of_box, texts in ((table.category_of, names), (table.pathology_of, table.pathologies)):
        pairs = table.image_of[known] * len(texts) + of_box[known]
        for pair in np.unique(pairs).tolist():
            text = texts[pair % len(texts)]
            if text:
                labels[pair // len(texts)].add(text)
    return [mine or {NEGATIVE} for mine in labels]


def _count(names, membership, group_of, sides) -> dict[str, Counter[str]]:
    """Images of each stratum on each side, the combined strata left out, and patients."""
    sides = np.array(sides, dtype=object)
    counts = {}
    for side in sorted(set(sides)):
        chosen = sides == side
        sums = membership[chosen].sum(axis=0, dtype=np.int64).tolist()
        counts[side] = Counter({n: c for n, c in zip(names, sums) if c and ", density" not in n})
        counts[side]["(patients)"] = len(np.unique(group_of[chosen]))
    return counts


def split_dataset(
    paths: Sequence[Path],
    out: Path,
    options: SplitOptions,
    overwrite: bool = False,
    progress: bool = False,
) -> Split:
    """Divide COCO JSON files of one data set and write a JSON for each side, and ``splits.json``.

    Args:
        paths: the files, of the same categories; no image id is in two of them.
        out: folder to write: ``train.json``, ``val.json``, ``test.json``, or ``fold0/train.json``
            and so on. ``splits.json`` says which patient is where, and how it was made.
        options: how to divide.
        overwrite: replace files of an earlier split.
        progress: show bars.

    Raises:
        UserError: a file cannot be used, or one would be overwritten.
    """
    options.check()
    tables = [read_table(path, progress) for path in paths]
    _check_sources(tables)
    split = plan_split(tables, options)
    targets = {out / name: sides for name, sides in split.files().items()}
    for path in (*targets, out / "splits.json"):
        if path.exists() and (not overwrite or path.resolve() in [p.resolve() for p in paths]):
            raise UserError(f"{str(path)!r} is there already: choose another --out, or --overwrite")
    remove_earlier(out, {path.resolve() for path in (*targets, *paths)})
    write_files(tables, split.sides, targets, progress)
    record = {
        "options": asdict(options),
        "sources": {str(path): sha256(path) for path in paths},
        "files": {path.relative_to(out).as_posix(): sha256(path) for path in targets},
        "images": split.counts,
        "notes": split.notes,
        "patients": split.patients,
    }
    write_json(out / "splits.json", record)
    return split


def _check_sources(tables: Sequence[CocoTable]) -> None:
    seen: set[Any] = set()
    for table in tables:
        name = str(table.path)
        if table.categories != tables[0].categories:
            raise UserError(f"{name!r} has other categories than the first file: merge them first")
        for image in table.images:
            if image.id is None or image.file_name is None or image.id in seen:
                raise UserError(
                    f"image {image.index} of {name!r} has no id, no file_name or an id that is "
                    "taken: run tools/check_data.py on it, --fix repairs it"
                )
            seen.add(image.id)
