# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Seconds and memory of a FROC with intervals on a large synthetic data set.

Measured in a process of its own, which loads neither torch nor anything else that a FROC does not
need (Linux only). Memory is the most that the process held, the data set's arrays included.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrex_mammo.benchmark.child import ChildError, in_child
from detrex_mammo.benchmark.results import Row
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.study import Study, read_study
from detrex_mammo.evaluation.tables import PredictionTable

if TYPE_CHECKING:  # it brings torch
    from detrex_mammo.benchmark.session import Session

TIME, MEMORY = "FROC with intervals", "peak memory of the process"
CANDIDATE = "froc_bootstrap"
SIZE, QUICK = (100_000, 100, 2000), (2_000, 20, 200)  # images, predictions in each, replicates
CLASSES = ("mass", "calcification")
SHARE, SKILL = 0.3, 0.8  # lesions in an image, chance that one is predicted


def run(session: "Session") -> None:
    """Make a data set, score it; with four images a patient, and with one."""
    images, predictions, replicates = QUICK if session.quick else SIZE
    for views in (4, 1):
        case = (
            f"{images:,} images x {predictions} predictions, {replicates:,} replicates over "
            f"{-(-images // views):,} patients, {len(CLASSES)} classes"
        )
        for _ in range(session.rounds(1)):
            session.say(case)
            sizes = {"images": images, "predictions": predictions, "replicates": replicates}
            try:
                found = in_child(measure, views=views, **sizes)
            except ChildError as error:
                session.results.add(Row(case, TIME, CANDIDATE, error=str(error)))
                continue
            for row in (
                Row(case, TIME, CANDIDATE, values=[found["seconds"]]),
                Row(case, MEMORY, CANDIDATE, unit="B", values=[found["peak"]]),
            ):
                session.results.add(row)
            session.say(f"  {found['seconds']:.1f} s, {found['peak'] / 1e9:.2f} GB; {found['cpm']}")


def measure(images: int, predictions: int, replicates: int, views: int) -> dict[str, Any]:
    """Time and memory of one FROC with intervals, in this process.

    Returns:
        dict: ``seconds``, ``peak`` in bytes, ``cpm`` as a text.
    """
    study, table = synthetic(images, predictions, views)
    start = time.perf_counter()
    found = froc_bootstrap(study, table, bootstrap=Bootstrap(replicates))
    cpm = found.overall.cpm()
    found.overall.band()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak": _peak_bytes(),
        "cpm": f"CPM {cpm.value:.3f} [{cpm.low:.3f}, {cpm.high:.3f}] of {cpm.of}",
    }


def _peak_bytes() -> int:
    """The most that this process held; the system's own count also holds that of its parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def synthetic(images: int, predictions: int, views: int) -> tuple[Study, PredictionTable]:
    """Ground truth and predictions of a set whose scores are all different.

    Args:
        images: number of them.
        predictions: in each image.
        views: images of each patient.
    """
    rng = np.random.default_rng(0)
    entries = [{"id": i, "patient_id": str(i // views)} for i in range(images)]
    place = np.sort(rng.integers(0, images, int(SHARE * images)))
    corners, sizes = rng.uniform(0, 2000, (len(place), 2)), rng.uniform(50, 300, (len(place), 2))
    labels = rng.integers(0, len(CLASSES), len(place))
    boxes = np.concatenate([corners, sizes], axis=1)
    annotations = [
        {"image_id": i, "bbox": box, "category_id": label}
        for i, box, label in zip(place.tolist(), boxes.tolist(), labels.tolist(), strict=True)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    study = read_study({"images": entries, "annotations": annotations, "categories": categories})

    number = images * predictions
    found = PredictionTable(
        image_index=np.repeat(np.arange(images), predictions),
        boxes=rng.uniform(0, 2200, (number, 4)),
        scores=rng.beta(1, 8, number),
        categories=rng.integers(0, len(CLASSES), number),
    )
    found.boxes[:, 2:] = found.boxes[:, :2] + rng.uniform(20, 300, (number, 2))
    # The first prediction of an image lies on its last lesion.
    hit = rng.random(len(place)) < SKILL
    rows = place[hit] * predictions
    found.boxes[rows] = study.lesions.boxes[hit]
    found.categories[rows] = study.lesions.categories[hit]
    found.scores[rows] = rng.beta(3, 3, len(rows))
    return study, found
