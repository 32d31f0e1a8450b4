# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pictures of a report's gallery: read, shrunk and packed ahead of the page that takes them."""

import logging
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.image_io import read_image
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.report.content import View
from detrex_mammo.inference.canvas import stretch

logger = logging.getLogger(__name__)
LONGER_SIDE = 720  # pixels of a picture in the page
QUALITY = 80  # of its JPEG
_AHEAD = 8  # pictures that are read before they are asked for, for each worker


class ReportPictures:
    """A function from a view to its JPEG; to be called for the views in their order.

    Args:
        images: image entries of the annotation file.
        image_root: folder that ``file_name`` is relative to.
        views: in the order in which they will be asked for.
        window: grey values of DICOM files, see ``Preprocessing.window``.
        workers: processes that read; 0 reads in this one.
    """

    def __init__(
        self,
        images: Iterable[Mapping[str, Any]],
        image_root: str | Path,
        views: Iterable[View],
        window: str = "auto",
        workers: int = 0,
    ):
        self._images = {image["id"]: image for image in images}
        self._root, self._window = Path(image_root), window
        self._rest: Iterator[View] = iter(views)
        # Forked from a process that trains, with its threads, a child may hang.
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, spawn) if workers else None
        self._ahead = _AHEAD * workers
        self._waiting: deque[tuple[View, Future]] = deque()
        self.unread: list[str] = []

    def __enter__(self) -> "ReportPictures":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self.unread:
            logger.warning(
                "%d images cannot be shown in the report, the first because %s",
                len(self.unread),
                self.unread[0],
            )

    def __call__(self, view: View) -> bytes | None:
        """JPEG of the view's frame; None if the file cannot be read, which is told at the end."""
        try:
            return self._jpeg(view)
        except UserError as error:
            self.unread.append(str(error))
            return None

    def _jpeg(self, view: View) -> bytes:
        if self._pool is None:
            return picture_of(*self._task(view))
        while len(self._waiting) < self._ahead and (following := next(self._rest, None)):
            self._waiting.append((following, self._pool.submit(picture_of, *self._task(following))))
        expected, result = self._waiting.popleft()
        if expected is not view:
            raise AssertionError(f"view {view.title} was asked for, {expected.title} was next")
        return result.result()

    def _task(self, view: View) -> tuple[Path, Any, str, tuple[int, int, int, int]]:
        image = self._images[view.image_id]
        return self._root / image["file_name"], image.get("frame"), self._window, view.frame


def picture_of(path: Path, frame: int | None, window: str, box: tuple[int, int, int, int]) -> bytes:
    """Read an image and pack a part of it for the eye.

    Args:
        path: of a mammogram.
        frame: of a multi-frame file.
        window: grey values.
        box: (x0, y0, x1, y1) whole pixels of the part.

    Raises:
        UserError: the file cannot be read.
    """
    cv2.setNumThreads(1)
    x0, y0, x1, y1 = box
    pixels = read_image(path, window, allow_for_processing=True, frame=frame)[y0:y1, x0:x1]
    if not pixels.size:
        raise UserError(f"image {str(path)!r} has no pixels in its box {list(box)}")
    scale = min(1.0, LONGER_SIDE / max(pixels.shape))
    size = [max(1, round(side * scale)) for side in pixels.shape[::-1]]
    small = stretch(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return cv2.imencode(".jpg", np.ascontiguousarray(small), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[
        1
    ].tobytes()
