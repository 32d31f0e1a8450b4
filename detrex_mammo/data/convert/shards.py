# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dataset in several files, for readers that want so many: each image is in exactly one."""

from pathlib import Path

from detrex_mammo.data.convert.dataset import Dataset, write_coco
from detrex_mammo.errors import UserError


def write_shards(dataset: Dataset, folder: Path, count: int) -> list[Path]:
    """Write ``[SPLIT-]shard-00000-of-00010.json`` and so on; no more files than images.

    Args:
        dataset: complete, with its splits.
        folder: made if needed.
        count: files for each split.

    Returns:
        list[Path]: the files.

    Raises:
        UserError: the count is not positive.
    """
    if count < 1:
        raise UserError(f"--shards is {count}; give a positive number, or leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*shard-?????-of-?????.json"):  # of another count, they would mix
        old.unlink()
    content = dataset.to_coco()
    boxes = {image["id"]: [] for image in dataset.images}
    for annotation in dataset.annotations:
        boxes[annotation["image_id"]].append(annotation)
    files = []
    for split in sorted({image.get("split") or "" for image in dataset.images}):
        images = [image for image in dataset.images if (image.get("split") or "") == split]
        total = min(count, len(images))
        for index in range(total):
            part = images[index * len(images) // total : (index + 1) * len(images) // total]
            prefix = f"{split}-" if split else ""
            files.append(folder / f"{prefix}shard-{index:05d}-of-{total:05d}.json")
            annotations = (a for image in part for a in boxes[image["id"]])
            write_coco(files[-1], {**content, "images": part, "annotations": annotations})
    return files
