# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Tiles cover, and what several of them show is told once, at its place in the whole image."""

import copy

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from detrex_mammo.data.augmentation import ResizeToFit
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.errors import UserError
from detrex_mammo.layers import box_xyxy_to_cxcywh
from detrex_mammo.modeling.tiling import Tiles
from tests.modeling.tiny_detector import perturb, tiny_detector

GREY = (100, 200)  # of discs of class 0 and 1
ABSENT = -60.0  # logit of a query that found nothing
FRAME = tiny_detector(
    num_classes=2, topk=14, criterion=None, pixel_mean=[0] * 3, pixel_std=[1] * 3
).eval()  # the network is replaced


def detector_of(find, tiles):
    """A real detector whose network is replaced by ``find(image) -> [(xyxy, class)]``.

    Each box gets a score of its own at random: merging may not count on a whole box scoring best.
    """
    rng = np.random.default_rng(0)

    def predict(images, padding_mask=None, all_outputs=False):
        assert padding_mask is None and len(images) <= max(1, tiles.batch_size if tiles else 9)
        logits = torch.full((len(images), 12, 2), ABSENT)
        boxes = torch.full((len(images), 12, 4), 0.5)
        scale = torch.tensor(images.shape[:1:-1]).repeat(2)
        for index, image in enumerate(images):
            for query, (box, label) in enumerate(find(image)):
                logits[index, query, label] = rng.uniform(-1, 3)
                boxes[index, query] = box_xyxy_to_cxcywh(torch.tensor(box, dtype=torch.float32))
                boxes[index, query] /= scale
        return [{"pred_logits": logits, "pred_boxes": boxes}], None

    detector = copy.copy(FRAME)
    detector.tiles = tiles
    detector.predict = predict
    return detector


def find_discs(image):
    """Boxes of connected bright regions: whatever part of a disc an image shows."""
    found = []
    for label, grey in enumerate(GREY):
        regions, _ = ndimage.label(image[0].numpy() == grey)
        for rows, columns in ndimage.find_objects(regions):
            found.append(((columns.start, rows.start, columns.stop, rows.stop), label))
    return found


def draw(height, width, discs):
    """(3, h, w) float32 with discs (x, y, radius, class)."""
    image = torch.zeros(3, height, width)
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    for x, y, radius, label in discs:
        image[:, (columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = GREY[label]
    return image


def detections(output):
    """Sorted (class, box) of what was found."""
    found = output["instances"]
    assert (found.scores.diff() <= 0).all()
    found = found[found.scores > 1e-9]
    rows = torch.cat((found.pred_classes[:, None].float(), found.pred_boxes.tensor), dim=1)
    return sorted([round(number, 2) for number in row] for row in rows.tolist())


@st.composite
def scenes(draw_from):
    """An image, discs of any size up to a tile's that do not touch, and tiles."""
    whole = st.integers
    tile = draw_from(whole(16, 48)), draw_from(whole(16, 48))
    height, width = draw_from(whole(10, 150)), draw_from(whole(10, 150))
    discs, boxes = [], []
    for _ in range(draw_from(whole(1, 5))):
        x, y = draw_from(st.floats(1, width - 1)), draw_from(st.floats(1, height - 1))
        radius = draw_from(st.floats(1.5, min(tile) / 2 - 1))
        box = (x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1)
        apart = (box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes)
        if all(apart):
            boxes.append(box)
            discs.append((x, y, radius, draw_from(whole(0, 1))))
    tiles = Tiles(
        *tile,
        overlap=draw_from(st.sampled_from([0.2, 0.25, 0.5, 0.7])),
        batch_size=draw_from(whole(1, 5)),
        border=draw_from(st.sampled_from([0.0, 1.0, 8.0])),
    )
    return height, width, discs, tiles


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_every_disc_is_found_once_and_whole(scene):
    """On seams, corners and borders, larger than the overlap too: as in the image as a whole.

    The oracle is the same finder on the whole image, whose boxes are exact.
    """
    height, width, discs, tiles = scene
    inputs = [{"image": draw(height, width, discs), "height": 2 * height, "width": 3 * width}]
    expected = detections(detector_of(find_discs, None)(inputs)[0])
    found = detections(detector_of(find_discs, tiles)(inputs)[0])
    assert len(expected) == len(discs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


@settings(deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 90), st.integers(1, 90),
    st.floats(0, 0.95),
)  # fmt: skip
def test_tiles_cover_evenly(height, width, tile_height, tile_width, overlap):
    """Every pixel in a tile; inside the image; of one size; overlaps equal to a pixel."""
    tiles = Tiles(tile_height, tile_width, overlap)
    views = np.array(tiles.split(height, width))
    size = min(width, tile_width), min(height, tile_height)
    assert ((views[:, 2:] - views[:, :2]) == size).all()
    for axis, length in enumerate((width, height)):
        starts = np.unique(views[:, axis])
        assert starts[0] == 0 and starts[-1] + size[axis] == length
        if len(starts) > 1:
            overlaps = size[axis] - np.diff(starts)
            assert np.ptp(overlaps) <= 1
            assert overlaps.min() >= min(np.floor(overlap * size[axis]), size[axis] - 1)
    assert len(views) == len(np.unique(views[:, 0])) * len(np.unique(views[:, 1]))


def test_split_by_hand():
    """Width 100 in tiles of 40 that overlap by 10: 0, 30, 60; height 30 fits."""
    assert Tiles(40, 40).split(30, 100) == [(0, 0, 40, 30), (30, 0, 70, 30), (60, 0, 100, 30)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_come_back_through_the_whole_chain(data):
    """Crop, flip, resize, tile, and back: within 0.5 pixels of the original image.

    Each pixel holds its own place in the original image, from which the finder tells, exactly,
    where the lesion lies in whatever part it is shown.
    """
    whole = st.integers
    height, width = data.draw(whole(60, 400)), data.draw(whole(60, 400))
    x0, y0 = data.draw(whole(0, width - 50)), data.draw(whole(0, height - 50))
    crop = (x0, y0, data.draw(whole(x0 + 50, width)), data.draw(whole(y0 + 50, height)))
    geometry = Geometry((height, width), crop, data.draw(st.booleans()))
    frame = data.draw(whole(50, 300)), data.draw(whole(50, 300))
    side = st.floats(3, 12)
    left, top = data.draw(st.floats(x0, crop[2] - 12)), data.draw(st.floats(y0, crop[3] - 12))
    lesion = np.array([left, top, left + data.draw(side), top + data.draw(side)])

    columns, rows = np.arange(width, dtype=np.float32) + 0.5, np.arange(height) + 0.5
    place = np.stack([*np.meshgrid(columns, rows), np.zeros((height, width))], axis=-1)
    image = geometry.apply_image(place.astype(np.float32))
    image = ResizeToFit(*frame).get_transform(image).apply_image(image)
    tiles = Tiles(data.draw(whole(40, 90)), data.draw(whole(40, 90)), overlap=0.5)

    def find(tile):
        middle = tile[:, tile.shape[1] // 2, tile.shape[2] // 2].numpy()
        slopes = np.array([
            (tile[0, 9, -9] - tile[0, 9, 8]) / (tile.shape[2] - 17),
            (tile[1, -9, 9] - tile[1, 8, 9]) / (tile.shape[1] - 17),
        ])  # fmt: skip
        half = (tile.shape[2] // 2 + 0.5, tile.shape[1] // 2 + 0.5)
        corners = (lesion.reshape(2, 2) - middle[:2]) / slopes + half
        corners = corners.clip(0, (tile.shape[2], tile.shape[1]))
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [((*low, *high), 0)] if (high - low > 0.1).all() else []

    inputs = {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}
    inputs |= dict(zip(("height", "width"), geometry.size))
    if min(inputs["image"].shape[1:]) < 40:
        return  # too narrow to tell the slope
    found = detector_of(find, tiles)([inputs])[0]["instances"]
    found = found[found.scores > 1e-9]
    assert len(found) == 1
    back = geometry.inverse_boxes(found.pred_boxes.tensor.numpy())[0]
    np.testing.assert_allclose(back, lesion, rtol=0, atol=0.5)


def real_detector(tiles):
    """Two-stage, with weights that tell images apart: the same in every call."""
    torch.manual_seed(0)
    detector = tiny_detector(True, True, tiles=tiles, embed_dim=64, topk=18)
    return perturb(detector).eval()


def watch(detector):
    """The shapes of all batches that the network will see."""
    seen, predict = [], detector.predict
    detector.predict = lambda images, mask: (
        seen.append(tuple(images.shape)) or predict(images, mask)
    )
    return seen


@torch.no_grad()
def test_image_no_larger_than_a_tile_is_as_without_tiles():
    """Bit for bit: two sizes in one batch, padded as ever; and one beside a larger image."""
    plain, tiled = real_detector(None), real_detector(Tiles(64, 96, whole_image=True))
    inputs = [{"image": torch.rand(3, 64, 96) * 255}, {"image": torch.rand(3, 50, 70) * 255}]
    larger = {"image": torch.rand(3, 65, 97) * 255}
    pairs = list(zip(plain(inputs), tiled(inputs)))
    pairs += [(plain(inputs[:1])[0], tiled([inputs[0], larger])[0])]
    for one, other in pairs:
        one, other = one["instances"], other["instances"]
        assert one.image_size == other.image_size
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.pred_classes, other.pred_classes)


@torch.no_grad()
def test_real_detector_sees_each_tile():
    """All detections of tiles without overlap, each moved by its tile's corner.

    With a small image in the same batch, which is as if alone.
    """
    plain, tiled = real_detector(None), real_detector(Tiles(64, 64, overlap=0, batch_size=1))
    plain.topk = tiled.topk = 100  # of 6 x 7 queries x 3 classes
    large = {"image": torch.rand(3, 128, 192) * 255, "height": 256, "width": 576}
    small = {"image": torch.rand(3, 40, 64) * 255}
    rows = []
    for x0, y0, x1, y1 in [(x, y, x + 64, y + 64) for y in (0, 64) for x in (0, 64, 128)]:
        found = plain([{"image": large["image"][:, y0:y1, x0:x1]}])[0]["instances"]
        boxes = (found.pred_boxes.tensor + torch.tensor([x0, y0, x0, y0])) * torch.tensor(
            [3, 2, 3, 2]
        )
        rows.append(torch.cat((found.scores[:, None], boxes), dim=1))
    expected = torch.cat(rows)
    expected = expected[expected[:, 0].argsort(descending=True)][:100]
    one, other = (output["instances"] for output in tiled([large, small]))
    assert one.image_size == (256, 576)
    found = torch.cat((one.scores[:, None], one.pred_boxes.tensor), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    alone = plain([small])[0]["instances"]
    torch.testing.assert_close(other.scores, alone.scores, rtol=0, atol=0)
    torch.testing.assert_close(other.pred_boxes.tensor, alone.pred_boxes.tensor, rtol=0, atol=0)


def test_network_never_sees_more_than_a_batch_of_tiles():
    """Memory depends on the tile: 7 x 9 tiles of a large image, and the image shrunk into one."""
    tiles = Tiles(64, 48, batch_size=5, whole_image=True)
    detector = real_detector(tiles)
    seen = watch(detector)
    with torch.no_grad():
        detector([{"image": torch.rand(3, 350, 336) * 255}])
    assert sum(shape[0] for shape in seen) == 7 * 9 + 1
    assert all(n <= 5 and h <= 64 and w <= 48 for n, _, h, w in seen)
    assert seen[-1] == (1, 3, 50, 48)  # 350 x 336 fitted into 64 x 48


def test_whole_image_finds_what_no_tile_holds():
    """A disc of 60 pixels in tiles of 32, told by a finder that wants to see a disc whole."""

    def find(image):
        height, width = image.shape[1:]
        return [
            (box, label)
            for box, label in find_discs((image > 50) * float(GREY[0]))
            if 0 < box[0] and 0 < box[1] and box[2] < width and box[3] < height
        ]

    inputs = [{"image": draw(90, 120, [(61.0, 44.0, 30.0, 0), (110.0, 80.0, 5.0, 0)])}]
    (small,) = detections(detector_of(find, Tiles(32, 32))(inputs)[0])
    np.testing.assert_allclose(small, (0, 105, 75, 115, 85), rtol=0, atol=0.01)
    found = detections(detector_of(find, Tiles(32, 32, whole_image=True))(inputs)[0])
    assert len(found) == 2  # the small one is not told twice
    np.testing.assert_allclose(found[0], (0, 31, 14, 91, 74), rtol=0, atol=3.0)


@torch.no_grad()
def test_black_tiles_are_not_looked_at():
    """Breast in the left of four columns of tiles, the others black; all black: nothing found."""
    image = torch.zeros(3, 64, 232)
    image[:, :, :20] = torch.rand(3, 64, 20) * 255
    for skip, expected in ((True, 1), (False, 5)):
        detector = real_detector(Tiles(64, 64, batch_size=9, skip_uniform=skip))
        seen = watch(detector)
        detector([{"image": image}])
        assert [shape[0] for shape in seen] == [expected]
    found = real_detector(Tiles(64, 64))([{"image": torch.zeros(3, 64, 232), "height": 9}])[0]
    assert len(found["instances"]) == 0 and found["instances"].image_size == (9, 232)


@torch.no_grad()
def test_tiles_are_normalised_as_the_whole_image():
    """By the image's own statistics: its dark half stays darker than its bright half."""
    detector = tiny_detector(
        tiles=Tiles(64, 64, overlap=0.0), pixel_mean=None, pixel_std=None, embed_dim=64
    )
    levels, predict = [], detector.predict
    detector.predict = lambda images, mask: (
        levels.extend(images.mean((1, 2, 3)).tolist()) or predict(images, mask)
    )
    image = torch.rand(3, 64, 128) * 20 + 100
    image[:, :, 64:] += 100
    detector.eval()([{"image": image}])
    assert levels == pytest.approx([-1, 1], abs=0.05)  # deviation of about 50


def test_training_is_not_touched():
    inputs = [{"image": torch.rand(3, 100, 80) * 255}]
    inputs[0]["instances"] = Instances((100, 80), gt_boxes=Boxes(torch.tensor([[9.0, 9, 30, 40]])),
                                       gt_classes=torch.tensor([1]))  # fmt: skip
    losses = []
    for tiles in (None, Tiles(32, 32)):
        detector = real_detector(tiles)
        detector.training = True
        losses.append(detector(inputs))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_tiled_detector_can_be_copied():
    assert copy.deepcopy(real_detector(Tiles(32, 32))).tiles == Tiles(32, 32)


def test_mistakes_are_one_sentence():
    for mistake, message in (
        ({"height": 0}, "model.tiles.height is 0; it must be a whole number, at least 1"),
        ({"overlap": 1.0}, r"overlap is 1.0; it must be a share of the tile in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"merge_iou": 0.0}, r"merge_iou is 0.0; it must be in \(0, 1\]"),
        ({"border": -1.0}, "border is -1.0"),
        ({"width": "wide"}, "width is 'wide'; it must be a whole number"),
        ({"height": 8.5}, "height is 8.5; it must be a whole number"),
        ({"whole_image": 3}, "whole_image is 3; it must be true or false"),
    ):
        with pytest.raises(UserError, match=message):
            Tiles(**{"height": 8, "width": 8, **mistake})


@pytest.mark.parametrize("name", ["tiles", "test_time_augmentation"])
@pytest.mark.parametrize("value", [3, {"height": 8, "width": 8}])
def test_what_are_no_tiles_is_one_sentence(name, value):
    with pytest.raises(
        UserError, match=rf"model.{name} is .*; it must be null or a node"
    ) as caught:
        tiny_detector(**{name: value})
    assert "\n" not in str(caught.value)
