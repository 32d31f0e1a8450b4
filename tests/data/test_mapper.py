# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From record to tensor: pixels and boxes stay together, and nothing of the record is lost."""

import logging
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.transforms import CropTransform, RandomFlip, ResizeShortestEdge
from detectron2.structures import BoxMode

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.augmentation_geometry import LesionSafeCrop, RandomAffine
from detrex_mammo.data.augmentation_photometric import RandomBlur, RandomNoise
from detrex_mammo.data.augmentation_resize import ResizeShortEdge, ResizeToSpacing
from detrex_mammo.data.augmentation_tile import LesionTile
from detrex_mammo.data.augmentation_warp import RandomElastic
from detrex_mammo.data.cache_build import build_cache
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

from .dicom_files import save_dicom

BOXES = [[100.0, 60.0, 30.0, 20.0], [130.0, 150.0, 16.0, 24.0]]  # xywh
EXTRA = {
    "patient_id": "P_1",
    "laterality": "R",
    "view": "CC",
    "pixel_spacing": [0.1, 0.1],
    "dataset": "test",
}


def annotation(box, category=0, iscrowd=0):
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
        "iscrowd": iscrowd,
    }


@pytest.fixture
def record(tmp_path):
    """A 200x160 image, dim but for two rectangles that fill their boxes; chest wall right."""
    pixels = np.full((200, 160), 20.0)
    for x, y, w, h in np.array(BOXES, int):
        pixels[y : y + h, x : x + w] = 200
    write_png16(tmp_path / "a.png", pixels)
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 200,
        "width": 160,
        "image_id": 5,
        "annotations": [annotation(BOXES[0], 1), annotation(BOXES[1], 0)],
        "breast_box": [60, 20, 160, 180],
        "chest_wall": "right",
        **EXTRA,
    }


def mapper(is_train=True, augmentations=(), cache_megabytes=0, **settings):
    return MammographyMapper(
        is_train, augmentations, Preprocessing(margin=0, **settings), cache_megabytes
    )


def bright_boxes(image):
    """Bounds (N, 4) xyxy of the bright rectangles, from top to bottom."""
    mask = (image[0].numpy() > 110).astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(mask)[2][1:]
    return np.array(sorted(([x, y, x + w, y + h] for x, y, w, h, _ in stats), key=lambda b: b[1]))


def test_crop_and_flip_by_hand(record):
    """The crop is columns 60 to 159, rows 20 to 179; x becomes 160 - x.

    100..130 becomes 30..60, 60..80 becomes 40..60; 130..146 becomes 14..30, 150..174: 130..154.
    """
    mapped = mapper()(record)
    assert mapped["image"].shape == (3, 160, 100) and mapped["image"].dtype == torch.float32
    assert mapped["image"].is_contiguous()
    instances = mapped["instances"]
    assert instances.image_size == (160, 100)
    assert instances.gt_boxes.tensor.tolist() == [[30, 40, 60, 60], [14, 130, 30, 154]]
    assert instances.gt_classes.tolist() == [1, 0]
    np.testing.assert_array_equal(bright_boxes(mapped["image"]), instances.gt_boxes.tensor)
    assert (mapped["height"], mapped["width"]) == (160, 100)
    assert mapped["geometry"] == Geometry((200, 160), (60, 20, 160, 180), True)
    assert {key: mapped[key] for key in EXTRA} == EXTRA and mapped["image_id"] == 5
    assert mapped["file_name"] == record["file_name"] and "annotations" not in mapped


def test_evaluation_has_no_truth_and_returns_to_the_original(record):
    mapped = mapper(is_train=False, augmentations=[ResizeToFit(80, 80)])(record)
    assert "instances" not in mapped and "annotations" not in mapped
    assert mapped["image"].shape == (3, 80, 50)
    assert (mapped["height"], mapped["width"]) == (160, 100)  # before the resize
    assert mapped["boxes_cut_by_crop"] == 0
    in_crop = bright_boxes(mapped["image"]) * 2.0
    original = mapped["geometry"].inverse_boxes(in_crop)
    expected = np.array(BOXES)
    expected[:, 2:] += expected[:, :2]
    np.testing.assert_allclose(original, expected, atol=1)


@pytest.mark.parametrize(
    "augmentation",
    [
        RandomFlip(prob=1.0, horizontal=False, vertical=True),
        RandomFlip(prob=1.0),
        ResizeToFit(320, 320),
        ResizeToFit(120, 120, scale_range=(0.8, 1.0), aspect_jitter=0.1),
        ResizeShortestEdge(150, 400),
        LesionSafeCrop(0.5, prob=1.0),
        RandomAffine(degrees=0, scale=(0.8, 1.2), prob=1.0),
        RandomAffine(degrees=0, scale=(1, 1), translate=0.08, prob=1.0),
        ResizeShortEdge([120, 150], 400),
        ResizeToSpacing(0.07, 400, 400),
    ],
    ids=lambda a: type(a).__name__,
)
def test_boxes_stay_on_their_rectangles(record, augmentation):
    for _ in range(5):
        mapped = mapper(augmentations=[augmentation, RandomIntensity(prob=0.0)])(record)
        boxes = mapped["instances"].gt_boxes.tensor.numpy()
        boxes = boxes[np.argsort(boxes[:, 1])]
        np.testing.assert_allclose(bright_boxes(mapped["image"]), boxes, rtol=0, atol=1.01)
        assert mapped["instances"].image_size == tuple(mapped["image"].shape[1:])


def test_pixels_keep_their_16_bits_through_crop_flip_and_vertical_flip(tmp_path):
    ramp = np.random.default_rng(0).permutation(65536).astype(np.uint16).reshape(256, 256)
    write_png16(tmp_path / "a.png", ramp)
    record = {
        "file_name": str(tmp_path / "a.png"),
        "height": 256,
        "width": 256,
        "breast_box": [0, 0, 256, 256],
        "chest_wall": "right",
    }
    vertical = RandomFlip(prob=1.0, horizontal=False, vertical=True)
    image = mapper(augmentations=[vertical])(record)["image"]
    assert len(image.unique()) == 65536
    expected = torch.from_numpy((ramp[::-1, ::-1] / np.float32(257)).astype(np.float32))
    for channel in image:
        torch.testing.assert_close(channel, expected, rtol=0, atol=0)


def test_the_training_crop_grows_to_hold_its_boxes_the_other_warns(record, caplog):
    record["breast_box"] = [110, 20, 160, 180]  # cuts the first box at x = 110
    mapped = mapper()(record)
    assert mapped["geometry"].crop == (100, 20, 160, 180)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[30, 40, 60, 60], [14, 130, 30, 154]]
    with caplog.at_level(logging.WARNING):
        mapped = mapper(is_train=False)(record)
    assert mapped["geometry"].crop == (110, 20, 160, 180) and mapped["boxes_cut_by_crop"] == 1
    assert "1 of 2 boxes reach out of the breast crop" in caplog.text


def test_crowds_negatives_and_boxes_cropped_away(record):
    record["annotations"][0]["iscrowd"] = 1
    assert mapper()(record)["instances"].gt_classes.tolist() == [0]
    record["annotations"] = []
    for augmentations in (
        [],
        [LesionSafeCrop(0.5, 1.0), RandomAffine(prob=1.0), ResizeToFit(64, 64)],
    ):
        instances = mapper(augmentations=augmentations)(record)["instances"]
        assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.shape == (0,)
        assert instances.gt_classes.dtype == torch.int64
    del record["annotations"]
    assert len(mapper()(record)["instances"]) == 0
    # Resized ten times smaller, a box of 5 pixels is half a pixel: nothing to learn.
    record["annotations"] = [annotation([70, 40, 5, 5])]
    assert len(mapper(augmentations=[ResizeToFit(16, 16)])(record)["instances"]) == 0


def test_the_record_is_not_changed(record):
    before = pickle.dumps(record)
    mapper(augmentations=[ResizeToFit(64, 64)])(record)
    assert pickle.dumps(record) == before


def test_same_seed_same_image(record):
    augmentations = [RandomFlip(horizontal=False, vertical=True), RandomAffine(), RandomIntensity()]
    results = []
    for _ in range(2):
        np.random.seed(3)
        results.append([mapper(augmentations=augmentations)(record)["image"] for _ in range(4)])
    for first, second in zip(*results):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("window", ["auto", "minmax"])
def test_the_cache_changes_nothing_and_reads_no_file_again(record, window, tmp_path):
    plain, cached = mapper(window=window), mapper(window=window, cache_megabytes=1)
    expected = plain(record)
    cached(record)
    (tmp_path / "a.png").unlink()
    for _ in range(2):
        mapped = cached(record)
        torch.testing.assert_close(mapped["image"], expected["image"], rtol=0, atol=0)
        assert mapped["geometry"] == expected["geometry"]
        mapped["image"].zero_()  # a caller's own
    with pytest.raises(UserError, match="does not exist"):
        plain(record)


def test_the_cache_keeps_to_its_size(record, tmp_path):
    small = mapper(cache_megabytes=0.01)  # 10 kB; the crop has 16,000 pixels
    small(record)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="does not exist"):
        small(record)
    with pytest.raises(UserError, match="cache_megabytes is -1"):
        mapper(cache_megabytes=-1)


def test_the_size_must_be_that_of_the_record(record):
    record["width"] = 150
    with pytest.raises(UserError, match="160x200 pixels, but its record says 150x200"):
        mapper()(record)


def test_settings_as_a_dict_and_through_a_worker(record):
    spec = Preprocessing(margin=0.0)
    from_dict = MammographyMapper(True, preprocessing=spec.to_dict())
    assert from_dict.preprocessing == spec
    with pytest.raises(UserError, match="unknown keys"):
        MammographyMapper(True, preprocessing={"crop": True})
    assert MammographyMapper(True).preprocessing == Preprocessing()
    copied = pickle.loads(pickle.dumps(from_dict))
    torch.testing.assert_close(copied(record)["image"], from_dict(record)["image"])


@pytest.mark.parametrize("cached", [False, True])
def test_a_16_bit_dicom_ramp_reaches_the_network(tmp_path, cached):
    """All 65536 stored values of a MONOCHROME1 file, from the file and from the cache."""
    ramp = np.random.default_rng(0).permutation(65536).astype(np.uint16).reshape(256, 256)
    path = save_dicom(tmp_path, ramp, bits=16, PhotometricInterpretation="MONOCHROME1")
    record = {"file_name": str(path), "height": 256, "width": 256}
    spec = Preprocessing(crop_breast=False, chest_wall="")
    if cached:
        build_cache(tmp_path / "cache", [record], spec, progress=False)
        path.unlink()
    folder = str(tmp_path / "cache") if cached else ""
    image = MammographyMapper(True, preprocessing=spec, cache_dir=folder)(record)["image"]
    assert len(image.unique()) > 60_000
    expected = torch.from_numpy((255 - ramp.astype(np.float64) * (255 / 65535)).astype(np.float32))
    torch.testing.assert_close(image[0], expected, rtol=0, atol=1e-4)


def test_a_box_of_which_little_is_left_is_dropped_with_its_class(record):
    """Crop and flip put the boxes at x 30..60 and 14..30; columns 0 to 31 keep a fifteenth."""
    cut = [CropTransform(0, 0, 32, 160)]
    for least, classes in ((0.0, [1, 0]), (0.06, [1, 0]), (0.1, [0])):
        made = MammographyMapper(True, cut, Preprocessing(margin=0), min_visibility=least)
        assert made(record)["instances"].gt_classes.tolist() == classes
    with pytest.raises(UserError, match="MammographyMapper got min_visibility=2"):
        MammographyMapper(True, min_visibility=2)


def test_the_nominal_size_by_hand(record):
    """The crop has 160x100 pixels, of 0.1 mm each; without a breast box the image has 200x160."""
    crop = LesionSafeCrop(0.5, prob=0.4)  # 1 - 0.4 * 0.25 = 0.9 of each side
    fit = ResizeToFit(80, 80, scale_range=(0.5, 1.0))  # 0.75 * 80 / 160 = 3/8
    for steps, expected in (
        ([], (160, 100)),
        ([RandomFlip(), RandomIntensity(), RandomAffine(), RandomNoise()], (160, 100)),
        ([fit], (60, 38)),
        ([ResizeToSpacing(0.2, 500, 500)], (80, 50)),
        ([ResizeToFit(80, 80), ResizeToSpacing(0.4, 500, 500)], (40, 25)),
        ([crop, ResizeToSpacing(0.2, 500, 500)], (72, 45)),
        ([ResizeShortEdge([40, 50, 60], 70)], (70, 44)),
        ([LesionTile(60, 120)], (60, 100)),
    ):
        assert mapper(augmentations=steps).nominal_size(record) == expected
    assert mapper(crop_breast=False).nominal_size(record) == (200, 160)
    del record["breast_box"]
    assert mapper().nominal_size(record) == (200, 160)
    del record["height"]
    with pytest.raises(UserError, match="has no height and width"):
        mapper().nominal_size(record)


def test_the_nominal_size_is_the_size_and_reads_nothing(record, tmp_path):
    """Where nothing is random: also of a crop that grows with its boxes, and of a cache's."""
    record["breast_box"] = [110, 20, 160, 180]
    found_in_pixels = {key: record[key] for key in ("file_name", "height", "width", "annotations")}
    spec = Preprocessing(margin=0.03)
    build_cache(tmp_path / "cache", [found_in_pixels], spec, progress=False)
    for one, folder in ((record, ""), (found_in_pixels, str(tmp_path / "cache"))):
        for is_train in (True, False):
            made = MammographyMapper(is_train, [ResizeToFit(90, 90)], spec, cache_dir=folder)
            assert made.nominal_size(one) == tuple(made(one)["image"].shape[1:])
    (tmp_path / "a.png").unlink()
    assert MammographyMapper(True, (), spec).nominal_size(record) == (170, 60)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_wrong_side_is_told_once_per_image_and_counted(tmp_path, caplog, cached, stored):
    """A breast at the right whose header says L, one that says R, and one that says nothing."""
    ys, xs = np.indices((120, 100)) + 0.5
    write_png16(tmp_path / "a.png", np.where(np.hypot(ys - 60, xs - 100) < 55, 120.0, 0))
    record = {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 100}
    if stored:
        record["chest_wall"] = "right"
    spec = Preprocessing()
    if cached:
        build_cache(tmp_path / "cache", [record], spec, progress=False)
    made = MammographyMapper(
        True, preprocessing=spec, cache_dir=str(tmp_path / "cache") if cached else ""
    )
    with caplog.at_level(logging.WARNING):
        made({**record, "laterality": "R"})
        made(record)
        assert made.num_laterality_conflicts == 0 and not caplog.text
        for _ in range(3):
            made({**record, "laterality": "L"})
    assert made.num_laterality_conflicts == 1
    assert caplog.text.count("laterality is 'L', but the chest wall lies on the right") == 1


def test_a_seed_fixes_every_augmentation(record):
    steps = [
        LesionTile(120, 80),
        ResizeToSpacing(0.08, 300, 300, scale_range=(0.5, 1.5)),
        RandomAffine(shear=5, translate=0.1, prob=1.0),
        RandomElastic(prob=1.0),
        RandomBlur(prob=1.0),
        RandomNoise(prob=1.0),
    ]
    results = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        results.append(mapper(augmentations=steps)(record)["image"])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert results[0].shape != results[2].shape or (results[0] != results[2]).any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augmentations": "mammography_strong"}, "augmentations holds 'mammography_strong'; it"),
        ({"augmentations": [{"height": 5}]}, r"augmentations holds \{'height': 5\}; it is a list"),
        ({"cache_megabytes": "all"}, "cache_megabytes is 'all'"),
    ],
)
def test_what_is_no_setting_is_one_sentence(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        MammographyMapper(True, **settings)
    assert "\n" not in str(caught.value)
