# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""YOLO folders of several makers, rows of each kind and hostile files, with expected records."""

import pytest

from detrex_mammo.data.convert.yolo import convert
from detrex_mammo.errors import UserError
from tests.data.convert.bad_pictures import assert_reported, write_bad, write_good
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

ROW = "0 0.5 0.25 0.2 0.1\n"  # of 30 x 40 pixels: centre (15, 10), size (6, 4)
BOX = (12, 8, 6, 4)


def add(root, image, text=ROW):
    """An image of 30 x 40, and its label file if there is a text."""
    write_picture(root / image, (40, 30))
    if text is not None:
        label = root / image.replace("images/", "labels/").replace(".png", ".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)


def rounded(dataset, *keys):
    """``boxes_of`` with coordinates to the 1e-9th pixel: fractions are not exact."""
    found = boxes_of(dataset, *keys)
    return [(f, n, tuple(round(v, 9) for v in box), *rest) for f, n, box, *rest in found]


def test_data_yaml_with_folders_lists_and_several_of_them(tmp_path):
    add(tmp_path, "images/train/a.png")
    add(tmp_path, "images/more/b.png", "1 0.5 0.25 0.2 0.1\r\n")
    add(tmp_path, "images/val/c.png", None)
    add(tmp_path, "images/test/d.png", "")
    (tmp_path / "val.txt").write_text("./images/val/c.png\n")
    (tmp_path / "data.yaml").write_text(
        "\ufeffpath: .\ntrain: [images/train, images/more]\nval: val.txt\ntest: images/test\n"
        "names:\n  0: Mass\n  1: Suspicious Calcification\n",
        encoding="utf-8",
    )
    dataset = convert(tmp_path, tmp_path)
    assert images_of(dataset, "split") == {
        "images/train/a.png": ("train",),
        "images/more/b.png": ("train",),
        "images/val/c.png": ("val",),
        "images/test/d.png": ("test",),
    }
    assert rounded(dataset) == [
        ("images/train/a.png", "Mass", BOX),
        ("images/more/b.png", "Suspicious Calcification", BOX),
    ]
    assert [c["name"] for c in dataset.to_coco()["categories"]] == [
        "Mass",
        "Suspicious Calcification",
    ]
    assert not dataset.report.counts["dropped"] and not dataset.report.counts["fixed"]


def test_roboflow_folders_with_paths_from_elsewhere(tmp_path):
    for split in ("train", "valid"):
        add(tmp_path, f"{split}/images/a.png")
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path.parent}/elsewhere\ntrain: ../train/images\nval: ../valid/images\n"
        "test: ../test/images\nnc: 1\nnames: ['mass']\n"
    )
    dataset = convert(tmp_path, tmp_path)
    assert images_of(dataset, "split") == {
        "train/images/a.png": ("train",),
        "valid/images/a.png": ("val",),
    }
    assert len(rounded(dataset)) == 2
    assert reported(dataset, "fixed") == {
        "path of data.yaml, taken as its own folder": 1,
        "paths of data.yaml, taken inside of its folder": 2,
    }
    assert reported(dataset, "dropped") == {"paths that are empty or lead out of the folder": 1}


@pytest.mark.parametrize("layout", ["images/train/a.png", "train/images/a.png", "train/a.png"])
def test_folders_without_data_yaml(tmp_path, layout):
    add(tmp_path, layout)
    (tmp_path / "classes.txt").write_text("mass\n\n")
    dataset = convert(tmp_path, tmp_path)
    assert images_of(dataset, "split") == {layout: ("train",)}
    assert rounded(dataset) == [(layout, "mass", BOX)]


def test_rows_of_each_kind(tmp_path):
    rows = [
        ("0 0.5 0.25 0.2 0.1 0.75", (12, 8, 6, 4), "box", 0.75),
        ("0 0.1 0.2 0.4 0.2 0.3 0.5", (3, 8, 9, 12), "polygon", None),
        ("0 0.1 0.1 0.3 0.1 0.3 0.5 0.1 0.5", (3, 4, 6, 16), "polygon", None),  # rotated box
        ("0.0 0.95 0.5 0.2 0.1", (25.5, 18, 4.5, 4), "box", None),  # over the border
    ]
    wrong = ["0 0.5 0.5 0.1", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7", "0 a 0.5 0.1 0.1", "0 nan .5 .1 .1"]
    wrong += ["2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0.5 .5 .5 .1 .1", "inf .5 .5 .1 .1"]
    wrong += ["0 15 20 6 4", "0 .5 .5 0 .1", ""]
    add(tmp_path, "images/a.png", "\n".join([row for row, *_ in rows] + wrong))
    dataset = convert(tmp_path, tmp_path, classes=["mass", "other"], damaged_labels="keep")
    assert rounded(dataset, "source", "score") == [("images/a.png", "mass", *r) for _, *r in rows]
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}
    assert reported(dataset, "dropped") == {
        "rows that are neither a box nor a polygon": 2,
        "rows with a value that is no number": 2,
        "boxes with a value that is no number": 1,
        "rows of a class without a name": 3,
        "rows in pixels or beyond the image; they are fractions of it": 1,
        "boxes without area in the image": 1,
    }


def test_a_polygon_stays_beside_its_box_and_is_cut_with_it(tmp_path):
    """Fractions of 30 x 40 pixels."""
    add(tmp_path, "images/a.png", "0 0.1 0.2 0.4 0.2 0.3 0.5\n0 -0.1 0.5 0.5 0.5 0.5 1.5 0.1 1.5\n")
    dataset = convert(tmp_path, tmp_path, classes=["mass"])
    assert [[round(v, 9) for v in a["segmentation"][0]] for a in dataset.annotations] == [
        [3, 8, 12, 8, 9, 20],
        [0, 20, 15, 20, 15, 40, 3, 40],
    ]
    assert rounded(dataset) == [
        ("images/a.png", "mass", (3, 8, 9, 12)),
        ("images/a.png", "mass", (0, 20, 15, 20)),
    ]
    add(tmp_path, "images/a.png", "0 0.5 0.25 0.2 0.1\n")
    assert "segmentation" not in convert(tmp_path, tmp_path, classes=["mass"]).annotations[0]


def test_an_image_without_labels_is_a_negative_unless_it_is_to_be_dropped(tmp_path):
    add(tmp_path, "images/a.png", None)
    dataset = convert(tmp_path, tmp_path, classes=["mass"])
    assert len(dataset.images) == 1 and not dataset.annotations
    dataset = convert(tmp_path, tmp_path, classes=["mass"], without_labels="drop")
    assert reported(dataset, "dropped") == {"images without a label file": 1}


def test_two_numbers_of_one_name_are_one_category(tmp_path):
    add(tmp_path, "images/a.png", ROW + ROW.replace("0", "2", 1))
    dataset = convert(tmp_path, tmp_path, classes=["mass", "other", "mass"])
    assert [a["category_id"] for a in dataset.annotations] == [1, 1]
    assert [c["name"] for c in dataset.to_coco()["categories"]] == ["mass", "other"]


def test_hostile_and_damaged_files_are_one_line_each(tmp_path):
    images = tmp_path / "images"
    good, bad = write_good(images), write_bad(images)
    (tmp_path / "labels").mkdir()
    for name in [*good, *bad]:
        (tmp_path / f"labels/{name.rpartition('.')[0]}.txt").write_text(ROW)
    write_picture(images / "bad_label.png", (40, 30))
    (tmp_path / "labels/bad_label.txt").write_bytes(b"\xff\xfe\x000 1 2")
    lines = [*(f"images/{name}" for name in [*good, *bad, "bad_label.png"]), good[0]]
    lines += ["../../etc/passwd", "/etc/hostname", "images/none.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "data.yaml").write_text(
        "train: list.txt\nval: [/etc, ../.., none.txt, bad.txt, 5]\nnames: [mass]\n"
        f"path: {'q' * 999}\ntest: [{'q' * 999}, ../{'q' * 999}]\n"
    )
    dataset = convert(tmp_path, tmp_path)
    assert sorted(images_of(dataset)) == [f"images/{name}" for name in good]
    assert len(dataset.annotations) == len(good)
    assert_reported(dataset, bad, "images/")
    dropped = reported(dataset, "dropped")
    assert dropped["images whose label file is no text"] == 1
    assert dropped["paths that are empty or lead out of the folder"] == 5
    assert dropped["lists that are no text"] == 1
    assert dropped["folders and lists that do not exist"] == 2
    assert dropped["listed images that do not exist"] == 1
    assert dropped["images listed twice"] == 1
    assert sum(dropped.values()) == len(bad) + 11


ALIASES = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    "text,message",
    [
        ("names: [a\n", "is no YAML file"),
        ("- a\n", "has no keys"),
        ("train: images\n", "nothing in .* names the classes"),
        ("names: !!python/object/apply:os.getcwd []\n", "is no YAML file"),
        ("names: {a: mass}\n", "are no list of names"),
        ("names: ['']\n", "are no list of names"),
        (f"{ALIASES}names: [*a29]\n", "are no list of names"),
        (f"{ALIASES}names: [mass]\npath: *a29\ntrain: *a29\nval: no\n", "holds no image"),
    ],
)
def test_a_data_yaml_that_is_none(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path)
