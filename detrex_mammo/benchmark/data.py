# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images per second of the mammography loader, from files and from its cache, by processes."""

import gc
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from detrex_mammo.benchmark.results import Row
from detrex_mammo.benchmark.session import Session
from detrex_mammo.benchmark.timing import one_line
from detrex_mammo.benchmark.units import RATE, quantity_text
from detrex_mammo.config import get_config, instantiate
from detrex_mammo.data.cache_build import build_cache
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.data.image_io import read_picture, write_png16
from detrex_mammo.data.synthetic_breast import synthetic_breast
from detrex_mammo.evaluation.hardware import num_cores

CONFIG = "configs/common/data/mammography.py"
QUANTITY = "training images mapped"
MAX_WORKERS = 16
BATCH = 2
PREFETCHED = 2  # items that each worker of torch's DataLoader makes ahead


def run(session: Session) -> None:
    """Make synthetic mammograms, then load them with 0, 1, 2, ... workers in turn.

    As PNG, as RLE-compressed DICOM, and from the cache that ``tools/cache_data.py`` makes of it.
    """
    pitch, count, timed = (1.0, 2, 4) if session.quick else (0.1, 6, 24)
    workers = worker_counts(2 if session.quick else num_cores())
    rounds = session.rounds(3)
    with tempfile.TemporaryDirectory(prefix="detrex_mammo_benchmark_") as folder:
        session.say(f"drawing {count} synthetic mammograms")
        height, width = write_dataset(Path(folder), pitch, count)
        session.say("compressing and caching them")
        caches = {"16-bit PNG": "", "DICOM, RLE Lossless": "", "cache": str(Path(folder, "cache"))}
        write_dicom(Path(folder))
        write_cache(Path(folder, "dicom"), Path(caches["cache"]))
        for number in range(rounds):
            for source, cache in caches.items():
                images = Path(folder) if source == "16-bit PNG" else Path(folder, "dicom")
                for num_workers in workers:
                    case = f"{source}, {height} x {width} to 1333 x 800"
                    row = Row(case, QUANTITY, worker_name(num_workers), unit=RATE)
                    try:
                        rate = images_per_second(images, num_workers, timed, cache)
                        row.values.append(rate)
                        shown = f"{source}, {row.candidate}, {quantity_text(rate, RATE)}"
                        session.say(f"  {number + 1} of {rounds}: {shown}")
                    except Exception as error:  # the other numbers of workers are still measured
                        row.error = one_line(error)
                    session.results.add(row)


def worker_name(count: int) -> str:
    """As in the tables."""
    return f"{count} worker{'' if count == 1 else 's'}"


def worker_counts(cores: int) -> list[int]:
    """0, then 1, 2, 4, ... up to the number of cores.

    Args:
        cores: processors of this machine.
    """
    counts = [0, 1]
    while counts[-1] * 2 <= min(cores, MAX_WORKERS):
        counts.append(counts[-1] * 2)
    return counts


def write_dataset(folder: Path, pitch_mm: float, count: int) -> tuple[int, int]:
    """Synthetic mammograms as 16-bit PNG, each with a box, and ``train.json``.

    Returns:
        tuple[int, int]: height and width of the images.
    """
    images, annotations = [], []
    for index in range(count):
        background = synthetic_breast(np.random.default_rng(index), pitch_mm)
        name = f"{index}.png"
        write_png16(folder / name, background.pixels)
        height, width = background.pixels.shape
        y, x = (int(v) for v in np.argwhere(background.tissue).mean(axis=0))
        record = {**background.record, "chest_wall": background.chest_wall}
        images.append({"id": index, "file_name": name, "height": height, "width": width, **record})
        side = height // 20
        box = [max(0, x - side // 2), max(0, y - side // 2), side, side]
        annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "lesion"}]
    (folder / "train.json").write_text(json.dumps(content))
    return height, width


def write_dicom(folder: Path) -> None:
    """The PNG dataset of a folder once more in its ``dicom``, as most archives store it."""
    import pydicom
    from pydicom.uid import RLELossless

    target = folder / "dicom"
    target.mkdir()
    content = json.loads((folder / "train.json").read_text())
    for image in content["images"]:
        pixels = read_picture(folder / image["file_name"])
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = pydicom.uid.DigitalMammographyXRayImageStorageForPresentation
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation, dataset.PixelData = 0, pixels.astype("<u2").tobytes()
        dataset.compress(RLELossless)
        image["file_name"] = Path(image["file_name"]).with_suffix(".dcm").name
        dataset.save_as(target / image["file_name"], enforce_file_format=True)
    (target / "train.json").write_text(json.dumps(content))


def write_cache(folder: Path, cache: Path) -> None:
    """Cache of a dataset as the shipped loader preprocesses it."""
    preprocessing = instantiate(get_config(CONFIG).dataloader.train.mapper.preprocessing)
    name = f"benchmark_cached_{cache.parent.name}"
    records = load_coco_json(name, str(folder / "train.json"), str(folder))
    report = build_cache(cache, records, preprocessing, progress=False)
    if report.failed:
        raise AssertionError(report.failed[0])


def images_per_second(folder: Path, workers: int, count: int, cache: str = "") -> float:
    """Rate of the shipped training loader, without what its workers had made ahead.

    Args:
        folder: see :func:`write_dataset`.
        workers: processes beside this one; 0 maps in this one.
        count: images to time, for each worker beyond the first as many more.
        cache: folder of :func:`write_cache`; "" reads the images.
    """
    config = get_config(CONFIG).dataloader.train
    config.dataset.name = f"benchmark_{folder.parent.name}_{folder.name}"
    config.mapper.cache_dir = cache
    config.dataset.json_file, config.dataset.image_root = str(folder / "train.json"), str(folder)
    config.total_batch_size, config.num_workers = BATCH, workers
    images = _images(instantiate(config))
    ahead = (PREFETCHED + 1) * workers + 2 * BATCH
    for _ in islice(images, ahead):
        pass
    count *= max(1, workers)
    start = time.perf_counter()
    for _ in islice(images, count):
        pass
    rate = count / (time.perf_counter() - start)
    del images
    gc.collect()  # ends the workers
    return rate


def _images(loader) -> Iterator[dict]:
    for batch in loader:
        yield from batch
