# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What one picture is known by: its pixels' hash, and what survives storing it differently.

P is the number of coefficients, T the side of a thumbnail.
"""

import hashlib
from typing import NamedTuple

import cv2
import numpy as np

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.image_io import read_image
from detrex_mammo.errors import UserError

SIDE = 64  # of the picture that the coefficients are of
NUM_WAVES = 16  # coefficients along x and along y
NUM_SIGNS = NUM_WAVES**2 - 1  # without the mean
THUMBNAIL = 32
# A picture mirrored left to right has the other sign in every odd wave along x.
MIRROR = np.tile([1, -1], NUM_WAVES**2 // 2)[1:].astype(np.int8)


class Picture(NamedTuple):
    """Facts of one picture.

    Attributes:
        size: (height, width).
        sha256: of the pixels as a model gets them, with their shape.
        signs: (2, P) int8 of -1 and 1: perceptual hash of the whole and of the breast alone; the
            lowest waves of the picture, as in a pHash. Inverted grey inverts it.
        thumbnails: (2, T, T) float16, mean 0, norm 1, without the slowest changes of grey.
    """

    size: tuple[int, int]
    sha256: str
    signs: np.ndarray
    thumbnails: np.ndarray


def describe_picture(job: tuple[str, str | None]) -> Picture | str:
    """Read and describe a picture.

    Args:
        job: path, and the frame of a file that has several, from 0.

    Returns:
        Picture or str: the second says in one sentence why there is none.
    """
    path, frame = job
    try:
        number = None if frame is None else int(frame)
        return _describe(read_image(path, allow_for_processing=True, frame=number))
    except UserError as error:
        return str(error)
    except Exception as error:  # a stranger's file may fail in any way: one line, and the next
        return f"{path!r} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}"


def _describe(pixels: np.ndarray) -> Picture:
    hashed = hashlib.sha256(repr(pixels.shape).encode())
    hashed.update(np.ascontiguousarray(pixels).data)
    upright = _dark_ground(pixels)
    breast = find_breast(upright)
    x0, y0, x1, y1 = breast.box
    part = upright[y0:y1, x0:x1]
    part = part[:, ::-1] if breast.side == "right" else part
    marks = [_marks(upright), _marks(part)]
    return Picture(
        size=pixels.shape,
        sha256=hashed.hexdigest(),
        signs=np.stack([signs for signs, _ in marks]),
        thumbnails=np.stack([thumbnail for _, thumbnail in marks]),
    )


def _dark_ground(pixels: np.ndarray) -> np.ndarray:
    """The commonest grey of a mammogram is its background, which is made the dark end."""
    counts, ends = np.histogram(pixels[::4, ::4], 16)
    return pixels if counts.argmax() < 8 else ends[-1] - pixels


def _marks(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    small = np.ascontiguousarray(pixels, dtype=np.float32)
    small = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(small)[:NUM_WAVES, :NUM_WAVES].ravel()[1:]
    signs = np.where(waves > 0, 1, -1).astype(np.int8)
    fine = cv2.resize(small, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    fine -= cv2.GaussianBlur(fine, (0, 0), 2)
    fine -= fine.mean()
    return signs, (fine / max(float(np.linalg.norm(fine)), 1e-6)).astype(np.float16)
