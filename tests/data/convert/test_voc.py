# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pascal VOC in both layouts, its traps and hostile files, each with its expected records."""

import pytest

from detrex_mammo.data.convert.voc import convert
from detrex_mammo.errors import UserError
from tests.data.convert.bad_pictures import assert_reported, write_bad, write_good
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><object><name>&x;</name></object></annotation>"""


def xml(*objects, size=(30, 40)):
    """A VOC file; objects are (name, xmin, ymin, xmax, ymax, further XML)."""
    width, height = size
    parts = []
    for name, x1, y1, x2, y2, *more in objects:
        corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        text = f"<object><name>{name}</name><bndbox>{corners}</bndbox>{''.join(more)}</object>"
        parts.append(text)
    start = f"<size><width>{width}</width><height>{height}</height><depth>1</depth></size>"
    return f"<annotation><filename>wrong.jpg</filename>{start}{''.join(parts)}</annotation>"


def add(root, split, name, content, suffix=".png"):
    """An image of 30 x 40 and its XML in MammoMix's layout."""
    write_picture(root / split / "images" / f"{name}{suffix}", (40, 30))
    labels = root / split / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    if content is not None:
        (labels / f"{name}.xml").write_text(content)


@pytest.fixture
def mammomix(tmp_path):
    """MammoMix's folder of one dataset, lists written with paths from the folder above it."""
    root = tmp_path / "splits" / "DDSM"
    mass = ("Mass, Malignant", 3, 4, 10.5, 20, "<difficult>1</difficult><truncated>1</truncated>")
    add(root, "train", "a", xml(mass, ("calcification", 1, 2, 3, 4)))
    add(root, "train", "b", xml())
    add(root, "val", "c_train_1", xml(("calcification", 0, 0, 30, 40)))
    add(root, "test", "a", xml(("mass", 5, 5, 9, 9)))
    (root / "train.txt").write_text("DDSM/train/images/a.png\r\nDDSM/train/images/b.png")
    # MammoMix replaces every "train" of the path, the file's name keeps it.
    (root / "val.txt").write_text("DDSM/val/images/c_val_1.png\n")
    (root / "test.txt").write_text("\ufeffDDSM/test/images/a.png\n\n", encoding="utf-8")
    return root


def test_mammomix_layout_with_real_class_names_and_negatives(mammomix):
    dataset = convert(mammomix, mammomix)
    assert images_of(dataset, "split", "dataset", "height", "width", "bits_stored") == {
        "test/images/a.png": ("test", "DDSM", 40, 30, 8),
        "train/images/a.png": ("train", "DDSM", 40, 30, 8),
        "train/images/b.png": ("train", "DDSM", 40, 30, 8),
        "val/images/c_train_1.png": ("val", "DDSM", 40, 30, 8),
    }
    assert boxes_of(dataset, "ignore", "truncated", "source") == [
        ("test/images/a.png", "mass", (5, 5, 4, 4), None, None, "box"),
        ("train/images/a.png", "Mass, Malignant", (3, 4, 7.5, 16), 1, 1, "box"),
        ("train/images/a.png", "calcification", (1, 2, 2, 2), None, None, "box"),
        ("val/images/c_train_1.png", "calcification", (0, 0, 30, 40), None, None, "box"),
    ]
    assert reported(dataset, "fixed") == {"images in no list; their folder is their split": 1}
    assert reported(dataset, "dropped") == {"listed images that do not exist": 1}


def test_the_folder_above_gives_the_same(mammomix):
    one = boxes_of(convert(mammomix, mammomix))
    above = boxes_of(convert(mammomix.parent, mammomix))
    assert above == [(f"DDSM/{file}", *rest) for file, *rest in one]


def test_devkit_layout_counts_from_one(tmp_path):
    for name in ("2007_01", "2007_02", "2007_03"):
        write_picture(tmp_path / f"JPEGImages/{name}.jpg", (40, 30))
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text(xml(("mass", 1, 1, 30, 40)))
    main = tmp_path / "ImageSets/Main"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("2007_01  1\n2007_02 -1\n")
    (main / "val.txt").write_text("2007_03\n")
    (main / "trainval.txt").write_text("2007_01\n2007_02\n2007_03\n")
    (main / "mass_train.txt").write_text("2007_01 1\n")
    (tmp_path / "ImageSets/Segmentation").mkdir()
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_01\n")
    dataset = convert(tmp_path, tmp_path, one_based=True)
    files = [f"JPEGImages/2007_0{number}.jpg" for number in (1, 2, 3)]
    assert boxes_of(dataset) == [(file, "mass", (0, 0, 30, 40)) for file in files]
    assert [i["split"] for i in dataset.images] == ["train", "train", "val"]
    assert not dataset.report.counts["dropped"] and not dataset.report.counts["fixed"]
    # Taken as edges from 0, the same numbers are a box that starts one pixel later.
    assert boxes_of(convert(tmp_path, tmp_path))[0][2] == (1, 1, 29, 39)


def test_images_without_lists_boxes_beyond_the_image_and_rows_that_are_none(tmp_path):
    rows = [("mass", -5, 30, 40, 60), ("mass", 9, 9, 5, 20), ("mass", 1, 1, 1, 9), ("", 1, 1, 2, 2)]
    rows += [("mass", "nan", 1, 5, 5), ("mass", "six", 1, 5, 5), ("mass", 50, 1, 60, 5)]
    add(tmp_path, "train", "a", xml(*rows).replace("</annotation>", "<object/></annotation>"))
    dataset = convert(tmp_path, tmp_path, damaged_labels="keep")
    assert boxes_of(dataset) == [("train/images/a.png", "mass", (0, 30, 30, 10))]
    assert dataset.images[0]["split"] == "train"
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}
    assert reported(dataset, "dropped") == {
        "boxes without area in the image": 3,
        "boxes with a value that is no number": 1,
        "objects without a name or without four numbers": 3,
    }


@pytest.mark.parametrize(
    "size,kept,line",
    [
        ((30, 40), True, None),
        ((40, 30), True, "sizes of images, taken from the file"),
        ((0, 0), True, "sizes of images, taken from the file"),
        ((60, 80), False, "images of another size than their labels say"),
    ],
)
def test_the_size_in_the_xml_is_checked(tmp_path, size, kept, line):
    add(tmp_path, "train", "a", xml(("mass", 1, 2, 3, 4), size=size))
    dataset = convert(tmp_path, tmp_path)
    assert [(i["height"], i["width"]) for i in dataset.images] == [(40, 30)] * kept
    lines = {**dataset.report.counts["fixed"], **dataset.report.counts["dropped"]}
    assert lines == ({line: 1} if line else {})


@pytest.mark.parametrize("policy,count", [("drop", 0), ("negative", 1)])
def test_an_image_without_xml_is_a_negative_only_by_policy(tmp_path, policy, count):
    add(tmp_path, "train", "a", None)
    dataset = convert(tmp_path, tmp_path, without_labels=policy)
    assert len(dataset.images) == count and not dataset.annotations
    assert reported(dataset, "dropped") == ({} if count else {"images without an XML file": 1})


def test_chosen_classes_give_ids_and_the_file_name_gives_a_patient(tmp_path):
    add(tmp_path, "train", "P_7_right_mlo", xml(("b", 1, 2, 3, 4), ("x", 1, 2, 3, 4)))
    pattern = r"(?P<patient_id>P_\d+)_(?P<laterality>left|right)_(?P<view>cc|mlo)"
    dataset = convert(tmp_path, tmp_path, classes=["a", "b"], file_pattern=pattern, name="mine")
    (image,) = dataset.images
    assert [image[k] for k in ("patient_id", "laterality", "view", "dataset")] == [
        *("P_7", "R", "MLO", "mine")
    ]
    assert [a["category_id"] for a in dataset.annotations] == [2]
    assert reported(dataset, "dropped") == {"boxes of a class that was not chosen": 1}


def test_hostile_and_damaged_files_are_one_line_each(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    good = write_good(images)
    bad = write_bad(images)
    labels.mkdir()
    for name in [*good, *bad]:
        (labels / name.rpartition(".")[0]).with_suffix(".xml").write_text(xml(("m", 1, 2, 3, 4)))
    texts = {"bomb": BOMB, "outside": OUTSIDE, "empty": "", "cut": xml(("m", 1, 2, 3, 4))[:60]}
    for name, text in {**texts, "binary": "\x00\xff"}.items():
        write_picture(images / f"xml_{name}.png", (40, 30))
        (labels / f"xml_{name}.xml").write_text(text, encoding="latin-1")
    lines = [*good, *bad, *(f"xml_{name}.png" for name in (*texts, "binary"))]
    lines += ["../../../etc/passwd", "/etc/hostname", "..\\up.png", "C:\\a.png", good[0], "x" * 999]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    dataset = convert(tmp_path, tmp_path)
    assert sorted(images_of(dataset)) == [f"images/{name}" for name in good]
    assert len(dataset.annotations) == len(good)
    assert_reported(dataset, bad, "images/")
    dropped = reported(dataset, "dropped")
    assert dropped["images whose XML file is forbidden (entities)"] == 2
    assert dropped["images whose XML file is damaged"] == 3
    assert dropped["paths that are empty or lead out of the folder"] == 4
    assert dropped["images listed twice"] == 1
    assert dropped["listed images that do not exist"] == 1
    assert sum(dropped.values()) == len(bad) + 11
    by_file = images_of(dataset, "bits_stored", "patient_id", "view")
    assert by_file["images/deep.png"] == (16, None, None)
    assert by_file["images/good.dcm"] == (12, "p9", "MLO")


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "holds no image"),
        ({"file_pattern": "(a"}, "is no regular expression"),
        ({"file_pattern": "(?P<who>a)"}, r"has the named groups \['who'\]; use some of patient_id"),
    ],
)
def test_wrong_options_end_in_one_sentence(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path, **options)
    with pytest.raises(UserError, match="is no folder"):
        convert(tmp_path / "none", tmp_path)
