# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The best score of each image in a predictions file."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def best_scores(path: str | Mapping[str, str], image_ids: Sequence[Any]) -> np.ndarray:
    """Highest score of each image.

    Args:
        path: COCO results JSON: a list of records with ``image_id`` and ``score`` among others.
            Of several datasets mixed: name of a part -> its file; the ids in it are the part's own.
        image_ids: N of the dataset.

    Returns:
        ndarray: (N,) float64, -inf for an image without a prediction.

    Raises:
        UserError: the file is missing, is no such list, or knows none of the images.
    """
    if isinstance(path, Mapping):
        best = {
            f"{part}/{image_id}": score
            for part, file in path.items()
            for image_id, score in _read(file).items()
        }
        path = ", ".join(path.values())
    else:
        best = _read(path)
    scores = np.array([best.get(image_id, -math.inf) for image_id in image_ids])
    if not np.isfinite(scores).any():
        raise UserError(
            f"predictions file {path!r} has {len(best)} images, such as {next(iter(best))!r}, but "
            f"none of the dataset's {len(scores)}, such as {image_ids[0]!r}: give predictions on "
            "the training images (of several datasets mixed: {part: file})"
        )
    unknown = len(best.keys() - set(image_ids))
    if unknown:
        logger.warning(
            "%s: %d of its %d images are not in the training data", path, unknown, len(best)
        )
    return scores


def _read(path: str) -> dict[Any, float]:
    """Best score by image id; a record is dropped as soon as it is read."""
    if not isinstance(path, str):
        raise UserError(f"predictions file {path!r} is no path of a file")
    best: dict[Any, float] = {}
    count = 0

    def keep(record: dict[str, Any]) -> None:
        nonlocal count
        score = record["score"]
        if isinstance(score, bool) or not math.isfinite(score):
            raise ValueError
        image_id = record["image_id"]
        best[image_id] = max(score, best.get(image_id, -math.inf))
        count += 1

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_hook=keep)
    except OSError as error:
        raise UserError(f"predictions file {path!r} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"predictions file {path!r} is not whole JSON ({error})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"predictions file {path!r}, record {count}, lacks an image_id or a finite score: a "
            "record has image_id, category_id, bbox and score"
        ) from error
    if not isinstance(content, list) or not count:
        raise UserError(f"predictions file {path!r} must hold a list of records, at least one")
    return best
