# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Checks that open the pictures: missing, unreadable, of another size, there twice."""

import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detrex_mammo.data.checks.findings import Findings, Repairs
from detrex_mammo.data.checks.patients import keeper, patient_key, side_of
from detrex_mammo.data.checks.picture import Picture, describe_picture
from detrex_mammo.data.checks.similar import near_identical
from detrex_mammo.data.checks.structure import is_frame, leads_out
from detrex_mammo.data.coco_table import CocoTable
from detrex_mammo.progress import counted

MISSING, UNREADABLE = "files that do not exist", "files that cannot be read"
NO_FRAME = "frames that their file does not have, or that a file of several needs"
WRONG_SIZE = "images whose pixels have another size than the JSON says"
# What readers say of a frame.
_FRAME_SENTENCE = re.compile(r"^frame is |has \d+ frames: choose one")


class _Use(NamedTuple):
    """Where a picture is used."""

    table: int
    row: int
    side: str
    patient: Any


def check_pixels(
    tables: Sequence[CocoTable],
    roots: Sequence[Path],
    findings: Findings,
    repairs: Sequence[Repairs],
    workers: int = 1,
    progress: bool = False,
) -> None:
    """Open every picture once and compare all of them.

    Args:
        tables: the files.
        roots: of each file: the folder that ``file_name`` is relative to.
        findings: gets the faults.
        repairs: of each file; gets what is to be left out.
        workers: processes.
        progress: show bars.
    """
    uses: dict[tuple[str, str | None], list[_Use]] = defaultdict(list)
    for number, (table, root) in enumerate(zip(tables, roots)):
        for row, image in enumerate(table.images):
            if image.file_name is None or leads_out(image.file_name) or not is_frame(image.frame):
                continue
            job = (os.path.normpath(root / image.file_name), image.frame)
            uses[job].append(_Use(number, row, side_of(table.path, image), patient_key(image)))
    jobs = []
    for job, users in uses.items():
        if os.path.isfile(job[0]):
            jobs.append(job)
        else:
            _leave_out(findings, repairs, MISSING, job[0], users)
    pictures, names = [], []
    results = counted(_map(jobs, workers), "checking", len(jobs), is_shown=progress)
    for job, found in zip(jobs, results):
        if isinstance(found, str):
            what = NO_FRAME if _FRAME_SENTENCE.search(found) else UNREADABLE
            _leave_out(findings, repairs, what, found, uses[job])
            continue
        _check_size(found, job, uses[job], tables, findings, repairs)
        pictures.append(found)
        names.append(job)
    _check_identical(pictures, names, uses, findings, repairs)
    _check_near(pictures, names, uses, findings, repairs, progress)


def _map(jobs: list, workers: int):
    if workers == 1 or len(jobs) < 2:
        yield from map(describe_picture, jobs)
        return
    # spawn: forking a process that has loaded torch or OpenCV threads can hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(describe_picture, jobs, chunksize=4)


def _leave_out(findings, repairs, what, example, users) -> None:
    findings.add("error", what, example)
    for use in users:
        repairs[use.table].images.setdefault(use.row, what)


def _check_size(found, job, users, tables, findings, repairs) -> None:
    for use in users:
        image = tables[use.table].images[use.row]
        if None in (image.height, image.width) or (image.height, image.width) == found.size:
            continue
        text = f"{job[0]}: {found.size[1]}x{found.size[0]}, not {image.width}x{image.height}"
        # Which of the two frames its boxes are in is anybody's guess.
        _leave_out(findings, repairs, WRONG_SIZE, text, [use])


def _check_identical(pictures, names, uses, findings, repairs) -> None:
    by_hash: dict[str, list[int]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        by_hash[picture.sha256].append(number)
    for numbers in by_hash.values():
        # Empty frames of one volume are the same, and say nothing.
        numbers = list({names[number][0]: number for number in reversed(numbers)}.values())[::-1]
        users = [use for number in numbers for use in uses[names[number]]]
        if len(users) > 1:
            told = " = ".join(_name(names[number]) for number in numbers[:3])
            _judge("identical pictures", users, told, findings, repairs, is_same=True)


def _check_near(pictures: list[Picture], names, uses, findings, repairs, progress: bool) -> None:
    for first, second, correlation in near_identical(pictures, progress):
        is_one_volume = names[first][0] == names[second][0]  # neighbours look alike
        if is_one_volume or pictures[first].sha256 == pictures[second].sha256:
            continue
        users = [*uses[names[first]], *uses[names[second]]]
        told = f"{_name(names[first])} ~ {_name(names[second])} ({correlation:.3f})"
        _judge("near-identical pairs of pictures", users, told, findings, repairs, is_same=False)


def _judge(what: str, users: list[_Use], told: str, findings, repairs, is_same: bool) -> None:
    """A picture of two sides or two patients spoils a result; twice on one side it counts twice."""
    sides = {use.side for use in users}
    patients = {use.patient for use in users if use.patient is not None}
    # Two data sets may well have two names for one woman.
    is_of_two = len(patients) > len({dataset for dataset, _ in patients})
    if len(sides) > 1:
        what = f"{what} on two sides of a split"
        findings.add("error", what, told)
        for use in users:
            if use.side != keeper(sides):
                repairs[use.table].images.setdefault(use.row, what)
    elif is_same and is_of_two:
        # Whose it is nobody can tell, and a later split by patient would leak.
        what = f"{what} of two patients"
        findings.add("error", what, told)
        for use in users:
            repairs[use.table].images.setdefault(use.row, what)
    else:
        findings.add("warning", f"{what} on one side", told)


def _name(job: tuple[str, str | None]) -> str:
    frame = "" if job[1] is None else f" frame {job[1]}"
    return os.path.basename(job[0]) + frame
