# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pasted lesions: their contrast, size, place, box, class and origin."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from detrex_mammo.data.cache_build import build_cache
from detrex_mammo.data.copy_paste import LesionCopyPaste, cut_out, paste
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

HEIGHT, WIDTH = 400, 300
WHOLE = Preprocessing(crop_breast=False, chest_wall="")


def breast(level=80.0, slope=0.0):
    """(400, 300) float32: a half disc at the left on black, brighter towards the chest wall."""
    ys, xs = np.indices((HEIGHT, WIDTH)) + 0.5
    inside = np.hypot((ys - 200) / 190, xs / 270) < 1
    return np.where(inside, level - slope * xs, 0).astype(np.float32)


def disc(centre, halves):
    ys, xs = np.indices((HEIGHT, WIDTH)) + 0.5
    return np.hypot((xs - centre[0]) / halves[0], (ys - centre[1]) / halves[1]) < 1


def record(folder, name, discs=(), level=80.0, **extra):
    """An image on disk with a lesion of 50 grey values in each (x, y, half width, half height)."""
    pixels = breast(level)
    annotations = []
    for number, (x, y, w, h) in enumerate(discs):
        pixels[disc((x, y), (w, h))] += 50
        box = [x - w, y - h, 2 * w, 2 * h]
        annotations.append({"bbox": box, "category_id": number, "iscrowd": 0})
    path = folder / f"{name}.png"
    write_png16(path, pixels)
    facts = {"file_name": str(path), "height": HEIGHT, "width": WIDTH, "image_id": name}
    return {**facts, "annotations": annotations, "view": "CC", "dataset": "a", **extra}


def mapper(records, *, preprocessing=WHOLE, cache=None, **settings):
    made = MammographyMapper(
        True,
        preprocessing=preprocessing,
        copy_paste=LesionCopyPaste(**{"prob": 1.0, "max_lesions": 1, **settings}),
        **(cache or {}),
    )
    made.attach(records)
    return made


def plain(one):
    return MammographyMapper(True, preprocessing=WHOLE)(one)


def test_contrast_by_hand():
    """A lesion of 50 on tissue that falls by 0.1 a column: its contrast is 50, whatever the slope.

    On 60 it becomes 110 inside and stays 60 in its corners, where the ellipse is outside 1.5.
    """
    donor = breast(120, slope=0.1)
    donor[disc((100, 200), (20, 12))] += 50
    boxes = np.array([[80.0, 188, 120, 212]])
    lesion = cut_out(donor, boxes, np.array([3]), 0)
    assert lesion.category == 3
    pixels = breast(100)
    before = pixels.copy()
    np.random.seed(0)
    box = paste(pixels, np.zeros((0, 4)), breast() > 0, lesion)
    np.testing.assert_allclose(box[2:] - box[:2], [40, 24])
    centre = (box[:2] + box[2:]) / 2
    change = pixels - before
    np.testing.assert_allclose(change[disc(centre, (19, 11))], 50, atol=0.1)
    np.testing.assert_allclose(change[~disc(centre, (21, 13))], 0, atol=0.1)
    assert (change[~disc(centre, (30.1, 18.1))] == 0).all()


def test_the_box_is_that_of_what_changed_and_the_record_is_untouched(tmp_path):
    records = [record(tmp_path, "a"), record(tmp_path, "b", [(100, 150, 15, 25)])]
    before = pickle.dumps(records)
    for seed in range(10):
        np.random.seed(seed)
        mapped = mapper(records)(records[0])
        change = (mapped["image"] - plain(records[0])["image"])[0].numpy()
        ys, xs = np.nonzero(change > 25)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        (box,) = mapped["instances"].gt_boxes.tensor.numpy()
        np.testing.assert_allclose(box, found, rtol=0, atol=1)
        assert mapped["instances"].gt_classes.tolist() == [0]
    assert pickle.dumps(records) == before


def test_lesions_lie_in_the_breast_and_on_no_other(tmp_path):
    own = [(80, 120, 30, 30), (90, 250, 35, 40)]
    records = [record(tmp_path, "a", own), record(tmp_path, "b", [(100, 150, 15, 25)])]
    made = mapper(records, max_lesions=4)
    np.random.seed(0)
    counts = []
    for _ in range(15):
        boxes = made(records[0])["instances"].gt_boxes.tensor.numpy()
        counts.append(len(boxes) - 2)
        np.testing.assert_array_equal(boxes[0], [50, 90, 110, 150])
        for number, box in enumerate(boxes[2:], 2):
            others = np.delete(boxes, number, axis=0)
            apart = (others[:, 2:] <= box[:2]) | (others[:, :2] >= box[2:])
            assert apart.any(axis=1).all()
            centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
            assert (breast()[disc(centre, half)] > 0).all()
    assert min(counts) >= 0 and max(counts) >= 3 and len(set(counts)) > 2


def test_lesions_keep_their_millimetres(tmp_path):
    """30 x 50 pixels of 0.1 mm are 3 x 5 mm: 15 x 25 at 0.2 mm, 20 x 40 at 0.125 x 0.15 mm."""
    for spacing, expected in (([0.2, 0.2], [15, 25]), ([0.125, 0.15], [20, 40])):
        records = [
            record(tmp_path, "a", pixel_spacing=spacing),
            record(tmp_path, "b", [(100, 150, 15, 25)], pixel_spacing=[0.1, 0.1]),
        ]
        np.random.seed(1)
        mapped = mapper(records)(records[0])
        x0, y0, x1, y1 = mapped["instances"].gt_boxes.tensor[0].tolist()
        np.testing.assert_allclose([x1 - x0, y1 - y0], expected, rtol=0.02)
        change = (mapped["image"] - plain(records[0])["image"])[0].numpy()
        area = (change > 25).sum()
        np.testing.assert_allclose(area, np.pi / 4 * expected[0] * expected[1], rtol=0.05)


def test_without_spacing_they_keep_their_share_of_the_breast(tmp_path):
    """The donor is the same breast in an image of half the size: its lesion becomes twice it."""
    records = [record(tmp_path, "a"), record(tmp_path, "b", [(100, 200, 16, 30)])]
    small = tmp_path / "b.png"
    pixels = cv2.imread(str(small), cv2.IMREAD_UNCHANGED)
    write_png16(small, cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    records[1].update(height=HEIGHT // 2, width=WIDTH // 2)
    records[1]["annotations"][0]["bbox"] = [42.0, 85, 16, 30]
    np.random.seed(0)
    mapped = mapper(records)(records[0])
    x0, y0, x1, y1 = mapped["instances"].gt_boxes.tensor[0].tolist()
    np.testing.assert_allclose([x1 - x0, y1 - y0], [32, 60], rtol=0.02)


def origins(made, one, count=20):
    """Classes that one image gets in ``count`` tries."""
    np.random.seed(0)
    kept = len(one["annotations"])
    return {c for _ in range(count) for c in made(one)["instances"].gt_classes.tolist()[kept:]}


def other_class(one, category):
    for annotation in one["annotations"]:
        annotation["category_id"] = category
    return one


def test_lesions_come_from_allowed_images_only(tmp_path):
    """Own lesion 0, same view 1, other view 2, other dataset 3."""
    place = [(100, 200, 12, 12)]
    records = [
        record(tmp_path, "own", [(60, 100, 12, 12)]),
        other_class(record(tmp_path, "same", place), 1),
        other_class(record(tmp_path, "view", place, view="MLO"), 2),
        other_class(record(tmp_path, "set", place, dataset="b"), 3),
    ]
    assert origins(mapper(records), records[0]) == {1}
    assert origins(mapper(records, same_view=False), records[0]) == {1, 2}
    assert origins(mapper(records, same_dataset=False), records[0]) == {1, 3}
    both = mapper(records, same_view=False, same_dataset=False)
    assert origins(both, records[0], 40) == {1, 2, 3}
    assert origins(mapper(records, same_view=False, classes=[2]), records[0]) == {2}
    assert origins(mapper(records), records[3]) == set()  # no other image of its dataset
    assert origins(mapper(records), {**records[0], "dataset": "unknown"}) == set()
    with pytest.raises(UserError, match=r"classes=\[7\], but the training set has no box"):
        mapper(records, classes=[7])


def test_balanced_classes(tmp_path):
    """Nine lesions of class 0 and one of class 1: a tenth, and half when balanced."""
    places = [(50 + 50 * i, 100 + 90 * j, 9, 9) for i in range(3) for j in range(3)]
    common = other_class(record(tmp_path, "common", places), 0)
    rare = other_class(record(tmp_path, "rare", [(100, 200, 9, 9)]), 1)
    records = [record(tmp_path, "own"), common, rare]
    for balance, low, high in ((False, 0, 0.3), (True, 0.3, 0.7)):
        made = mapper(records, balance_classes=balance)
        np.random.seed(0)
        drawn = [c for _ in range(40) for c in made(records[0])["instances"].gt_classes.tolist()]
        assert len(drawn) > 25 and low <= np.mean(drawn) <= high


def test_lesions_that_cannot_be_cut_out():
    """At the image's edge, at the skin, and beside another lesion."""
    pixels = breast()
    boxes = np.array([[1.0, 190, 21, 210], [255, 190, 275, 210], [100, 100, 120, 120]])
    classes = np.zeros(4, np.int64)
    assert cut_out(pixels, boxes, classes, 0) is None
    assert cut_out(pixels, boxes, classes, 1) is None
    assert cut_out(pixels, boxes, classes, 2) is not None
    close = np.vstack([boxes, [123, 105, 130, 110]])
    assert cut_out(pixels, close, classes, 2) is None


def test_places_that_are_unlike_or_too_bright():
    """60 brighter than its own place; and 230, where 50 more do not fit under 255."""
    for own, other in ((80, 145), (230, 230)):
        donor = breast(own - (20 if own == 230 else 0))
        donor[disc((100, 200), (20, 20))] += 45
        lesion = cut_out(donor, np.array([[80.0, 180, 120, 220]]), np.array([0]), 0)
        pixels = breast(other)
        before = pixels.copy()
        assert paste(pixels, np.zeros((0, 4)), breast() > 0, lesion) is None
        np.testing.assert_array_equal(pixels, before)
        assert paste(breast(own - 40), np.zeros((0, 4)), breast() > 0, lesion) is not None


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_caches_change_nothing_and_a_seed_fixes_all(tmp_path, cache):
    records = [
        record(tmp_path, "a", [(60, 100, 12, 12)]),
        record(tmp_path, "b", [(100, 150, 15, 25)]),
        record(tmp_path, "c", [(90, 210, 15, 15)]),
    ]
    spec = Preprocessing()
    if cache == "disk":
        build_cache(tmp_path / "cache", records, spec, progress=False)
        settings = {"cache_dir": str(tmp_path / "cache")}
    else:
        settings = {"cache_megabytes": 50}
    results = []
    for made in (
        mapper(records, preprocessing=spec),
        mapper(records, preprocessing=spec, cache=settings),
        pickle.loads(pickle.dumps(mapper(records, preprocessing=spec))),  # in another process
    ):
        np.random.seed(4)
        results.append([made(one) for _ in range(3) for one in records])
    for other in results[1:]:
        for first, second in zip(results[0], other):
            torch.testing.assert_close(first["image"], second["image"], rtol=0, atol=0)
            boxes = [m["instances"].gt_boxes.tensor for m in (first, second)]
            torch.testing.assert_close(*boxes, rtol=0, atol=0)
    assert max(len(m["instances"]) for m in results[0]) == 2


def test_settings_of_the_mapper(tmp_path):
    records = [record(tmp_path, "a"), record(tmp_path, "b", [(100, 150, 15, 25)])]
    made = MammographyMapper(True, copy_paste=LesionCopyPaste())
    with pytest.raises(UserError, match="call mapper.attach"):
        made(records[0])
    with pytest.raises(UserError, match="for training only"):
        MammographyMapper(False, copy_paste=LesionCopyPaste())
    MammographyMapper(True).attach(records)  # nothing to do
    with pytest.raises(UserError, match="copy_paste is True; it is null or a LesionCopyPaste"):
        MammographyMapper(True, copy_paste=True)
    never = mapper([], prob=0.0)(records[0])  # off: it needs no lesion, and draws no number
    torch.testing.assert_close(never["image"], plain(records[0])["image"], rtol=0, atol=0)
    assert len(never["instances"]) == 0


def test_off_it_takes_no_random_number(tmp_path):
    """So that the augmentation of a run without it is what it was."""
    one = record(tmp_path, "a")
    np.random.seed(1)
    mapper([], prob=0.0)(one)
    drawn = np.random.uniform()
    np.random.seed(1)
    assert drawn == np.random.uniform()
