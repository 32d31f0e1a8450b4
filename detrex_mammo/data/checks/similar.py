# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pairs of near-identical pictures: resized, recompressed, cropped, mirrored, inverted."""

from collections.abc import Iterator

import numpy as np

from detrex_mammo.data.checks.picture import MIRROR, NUM_SIGNS, THUMBNAIL, Picture
from detrex_mammo.progress import counted

# Of 255 signs as many may differ in a candidate. Measured on 8 films: the same one at half its
# size, as JPEG, mirrored, inverted or cropped differs in up to 13, of another gamma (0.7) in up
# to 34; different films of two women, left and right of each among them, in 71 and more.
MOST_SIGNS = 40
# A candidate is one if its details correlate, too.
LEAST_CORRELATION = 0.95
_BLOCK = 2048


def near_identical(
    pictures: list[Picture], progress: bool = False
) -> Iterator[tuple[int, int, float]]:
    """Find near-identical pictures; the time grows with the square of their number.

    Yields:
        tuple: two indices, the smaller one first, and the correlation of their details.
    """
    if len(pictures) < 2:
        return
    signs = np.stack([picture.signs for picture in pictures]).astype(np.float32)
    whole, breast = signs[:, 0], signs[:, 1]
    least = NUM_SIGNS - 2 * MOST_SIGNS
    blocks = range(0, len(pictures), _BLOCK)
    for start in counted(blocks, "comparing", unit="block", is_shown=progress):
        block = slice(start, start + _BLOCK)
        agree = np.abs(whole[block] @ whole[start:].T)
        np.maximum(agree, np.abs((whole[block] * MIRROR) @ whole[start:].T), out=agree)
        np.maximum(agree, np.abs(breast[block] @ breast[start:].T), out=agree)
        firsts, seconds = np.nonzero(np.triu(agree >= least, 1))
        for first, second in zip((firsts + start).tolist(), (seconds + start).tolist()):
            found = _correlation(pictures[first].thumbnails, pictures[second].thumbnails)
            if found >= LEAST_CORRELATION:
                yield first, second, found


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The best of whole, mirrored whole and breast, (2, T, T) each; grey may be inverted."""
    assert first.shape == second.shape == (2, THUMBNAIL, THUMBNAIL), first.shape
    first, second = first.astype(np.float32), second.astype(np.float32)
    pairs = ((first[0], second[0]), (first[0][:, ::-1], second[0]), (first[1], second[1]))
    return max(abs(float((a * b).sum())) for a, b in pairs)
