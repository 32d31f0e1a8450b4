# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A tile has its size, halves no lesion, and lies where it should."""

import numpy as np
from detectron2.data.transforms import AugInput
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.augmentation_tile import LesionTile

from .test_augmentation_geometry import images_with_boxes


def cut(image, boxes, *arguments, **settings):
    """(x0, y0, x1, y1) of the tile."""
    augmented = AugInput(image, boxes=np.array(boxes, float).reshape(-1, 4))
    crop = LesionTile(*arguments, **settings)(augmented)
    assert augmented.image.shape == (crop.h, crop.w)
    return np.array([crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h])


def is_halved(box, tile):
    touches = (box[:2] < tile[2:]).all() and (box[2:] > tile[:2]).all()
    return touches and not ((box[:2] >= tile[:2]).all() and (box[2:] <= tile[2:]).all())


def positions(size, tile):
    for y in range(size[0] - tile[0] + 1):
        for x in range(size[1] - tile[1] + 1):
            yield np.array([x, y, x + tile[1], y + tile[0]])


@settings(max_examples=150, deadline=None)
@given(
    images_with_boxes(),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 2**31),
)
def test_no_lesion_is_ever_halved(case, height, width, lesion_prob, seed):
    """Grows only where every position of its size cuts a lesion, by trying them all.

    Boxes as the pixels they touch: a tile has whole pixels.
    """
    size, boxes = case
    np.random.seed(seed)
    tile = cut(np.ones(size, np.float32), boxes, height, width, lesion_prob)
    assert (tile[:2] >= 0).all() and (tile[2:] <= size[::-1]).all()
    assert not any(is_halved(box, tile) for box in boxes)
    asked = (min(height, size[0]), min(width, size[1]))
    got = (tile[3] - tile[1], tile[2] - tile[0])
    whole = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    if lesion_prob and len(boxes):
        assert any(not is_halved(box, tile) and (box[:2] < tile[2:]).all() for box in boxes)
    elif any(not any(is_halved(box, place) for box in whole) for place in positions(size, asked)):
        assert got == asked
    assert got[0] >= asked[0] and got[1] >= asked[1]


def test_a_tile_on_a_lesion_holds_one_whole_and_reaches_every_place():
    """A 4x4 lesion in a 10x10 tile: 7 x 7 positions, each of them drawn now and then."""
    np.random.seed(0)
    image = np.arange(900, dtype=np.float32).reshape(30, 30)
    seen = {tuple(cut(image, [[12, 13, 16, 17]], 10, 10, 1.0)[:2]) for _ in range(600)}
    assert seen == {(x, y) for x in range(6, 13) for y in range(7, 14)}


def test_two_lesions_are_drawn_alike():
    np.random.seed(0)
    boxes = [[2, 2, 6, 6], [50, 50, 90, 90]]
    first = sum(
        cut(np.ones((100, 100), np.float32), boxes, 45, 45, 1.0)[0] < 20 for _ in range(300)
    )
    assert 110 < first < 190


def test_the_share_of_tiles_on_lesions():
    np.random.seed(0)
    box = np.array([40, 40, 44, 44])
    tiles = [cut(np.ones((90, 90), np.float32), [box], 20, 20, 0.3) for _ in range(300)]
    held = sum((box[:2] >= t[:2]).all() and (box[2:] <= t[2:]).all() for t in tiles)
    assert 60 < held < 120  # elsewhere is free of lesions


def test_elsewhere_is_on_the_breast():
    """A bright half disc at the left on black; the tile's centre lies on it."""
    ys, xs = np.indices((200, 160))
    breast = (np.hypot(ys - 100, xs) < 90).astype(np.float32) * 120
    np.random.seed(0)
    for _ in range(40):
        x0, y0, x1, y1 = cut(breast, [[20, 90, 40, 110]], 30, 30, 0.0)
        assert np.hypot((y0 + y1) / 2 - 100, (x0 + x1) / 2) < 94  # the mask is a coarse one
        assert x0 >= 40 or x1 <= 20 or y0 >= 110 or y1 <= 90


def test_a_lesion_larger_than_the_tile_is_kept_whole():
    np.random.seed(0)
    tile = cut(np.ones((60, 50), np.float32), [[10.5, 5, 40, 20], [29, 18, 45, 44.2]], 16, 16, 1.0)
    assert tile.tolist() == [10, 5, 45, 45]


def test_a_small_image_stays_and_boxes_outside_do_not_count():
    np.random.seed(0)
    assert cut(np.ones((9, 50), np.float32), [], 20, 20)[[1, 3]].tolist() == [0, 9]
    assert LesionTile(20, 20).nominal_size(9, 50) == (9, 20)
    sizes = cut(np.ones((40, 40), np.float32), [[-9, 3, -2, 8], [41, 1, 50, 9]], 10, 10, 1.0)
    assert (sizes[2:] - sizes[:2]).tolist() == [10, 10]
