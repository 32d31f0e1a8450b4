# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO to KITTI, YOLO and VOC: files worked by hand, and round trips that lose nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detrex_mammo.data.convert import coco, kitti, voc, yolo
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.export import Export, to_kitti, to_voc, to_yolo
from detrex_mammo.errors import UserError
from tests.data.convert.trees import boxes_of, images_of, write_picture

TOOL = Path(__file__).resolve().parents[3] / "tools/export_data.py"
CONTENT = {
    "images": [
        {"id": 1, "file_name": "s/a.png", "height": 40, "width": 32, "split": "train"},
        {"id": 2, "file_name": "b.png", "height": 40, "width": 32, "split": "val"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 4.5, 6], "truncated": 0.5},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [8, 10, 16, 20], "score": 0.25},
        {"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        {"id": 4, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "ignore": 1},
    ],
    "categories": [{"id": 1, "name": "Suspicious mass"}, {"id": 2, "name": "calc"}],
}


@pytest.fixture
def export(tmp_path):
    """An :class:`Export` of ``CONTENT``, with its two images."""
    (tmp_path / "in.json").write_text(json.dumps(CONTENT))
    for image in CONTENT["images"]:
        write_picture(tmp_path / image["file_name"], (40, 32))
    dataset = coco.convert(tmp_path, tmp_path, json=["in.json"])
    return Export(dataset, tmp_path / "out", tmp_path, "copy")


def test_yolo_files_by_hand(export):
    report = to_yolo(export)
    out = export.out
    # (1 + 2.25) / 32, (2 + 3) / 40, 4.5 / 32, 6 / 40; (8 + 8) / 32, (10 + 10) / 40, ...
    assert (out / "labels/train/s__a.txt").read_text() == (
        "0 0.1015625 0.125 0.140625 0.15\n1 0.5 0.5 0.5 0.5\n"
    )
    assert (out / "labels/val/b.txt").read_text() == ""
    assert (out / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n  0: Suspicious mass\n  1: calc\n"
    )
    assert (out / "images/train/s__a.png").is_file() and (out / "images/val/b.png").is_file()
    assert report.counts["dropped"] == {"crowd and ignore boxes, unknown to YOLO": 2}


@pytest.mark.parametrize(
    "segmentation,row,line",
    [
        ([[4, 8, 12, 8, 12, 20]], "0.125 0.2 0.375 0.2 0.375 0.5", None),
        # beyond the box, it is cut there
        ([[-4, 8, 12, 8, 12, 99]], "0.125 0.2 0.375 0.2 0.375 0.5", None),
        (
            [[4, 8, 8, 8, 8, 14], [8, 14, 12, 14, 12, 20]],
            "0.125 0.2 0.25 0.2 0.25 0.35 0.25 0.35 0.375 0.35 0.375 0.5",
            "outlines of several parts, joined to one",
        ),
        (None, "0.125 0.2 0.375 0.2 0.375 0.5 0.125 0.5", None),
        *(
            (
                bad,
                "0.125 0.2 0.375 0.2 0.375 0.5 0.125 0.5",
                "outlines that are no polygon, now their box",
            )
            for bad in (
                {"size": [40, 32], "counts": "x"},
                [[1, 2]],
                [["a"] * 6],
                [[99, 99] * 3],
                "x",
            )
        ),
    ],
)
def test_yolo_segments_by_hand(tmp_path, segmentation, row, line):
    """A box of 8 x 12 at (4, 8) of an image of 32 x 40: 4 / 32, 8 / 40, 12 / 32, 20 / 40."""
    dataset = Dataset("any", ["m"])
    image = dataset.add_image("a.png", 40, 32)
    dataset.add_box(image, (4, 8, 8, 12), "m", segmentation=segmentation)
    report = to_yolo(Export(dataset, tmp_path / "out", tmp_path), segments=True)
    assert (tmp_path / "out/labels/train/a.txt").read_text() == f"0 {row}\n"
    assert report.counts["fixed"] == ({line: 1} if line else {})


def test_outlines_come_back_from_yolo_as_they_were(tmp_path):
    write_picture(tmp_path / "a.png", (128, 64))
    dataset = Dataset("any", ["m"])
    outline = [2.0, 4.0, 32.0, 8.0, 16.0, 64.0]
    image = dataset.add_image("a.png", 128, 64)
    dataset.add_box(image, (2, 4, 30, 60), "m", "polygon", segmentation=[outline])
    found = write_yolo_segments(dataset, tmp_path / "out", tmp_path)
    assert [a["segmentation"] for a in found.annotations] == [[outline]]
    assert boxes_of(found, "source") == [("images/train/a.png", "m", (2, 4, 30, 60), "polygon")]


def test_kitti_files_by_hand(export):
    report = to_kitti(export)
    out = export.out
    assert (out / "train/labels/s__a.txt").read_text() == (
        "Suspicious_mass 0.5 0 0 1 2 5.5 8 0 0 0 0 0 0 0\n"
        "calc 0 0 0 8 10 24 30 0 0 0 0 0 0 0 0.25\n"
        "DontCare 0 0 0 0 0 4 4 0 0 0 0 0 0 0\n"
        "DontCare 0 0 0 0 0 5 5 0 0 0 0 0 0 0\n"
    )
    assert (out / "val/labels/b.txt").read_text() == ""
    assert (out / "sequence.txt").read_text() == "train\nval\n"
    assert json.loads((out / "mapping.json").read_text()) == {
        "Suspicious_mass": "Suspicious mass",
        "calc": "calc",
    }
    assert report.counts["fixed"] == {"crowd and ignore boxes, now DontCare": 2}


@pytest.mark.parametrize("one_based,corners", [(False, "1 2 5.5 8"), (True, "2 3 5.5 8")])
def test_voc_files_by_hand(export, one_based, corners):
    report = to_voc(export, one_based)
    text = (export.out / "Annotations/s__a.xml").read_text()
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"        <{n}>{v}</{n}>\n" for n, v in zip(names, corners.split()))
    assert (
        f"""  <object>
    <name>Suspicious mass</name>
    <pose>Unspecified</pose>
    <truncated>1</truncated>
    <difficult>0</difficult>
    <bndbox>
{box.replace("        ", "      ")}    </bndbox>
  </object>
"""
        in text
    )
    assert "<filename>s__a.png</filename>" in text and "<width>32</width>" in text
    assert text.count("<difficult>1</difficult>") == 2
    assert (export.out / "ImageSets/Main/train.txt").read_text() == "s__a\n"
    assert (export.out / "ImageSets/Main/val.txt").read_text() == "b\n"
    assert report.counts["fixed"] == {"crowd boxes, now difficult": 1}


NAMES = st.text(st.sampled_from("aAbZ09 _-.é<&>\"'#:%"), min_size=1, max_size=8).map(str.strip)
EIGHTHS = st.integers(0, 8 * 64).map(lambda number: number / 8)


@st.composite
def datasets(draw, exact):
    """Images of 64 x 128 with boxes inside; coordinates in eighths, or any if not ``exact``."""
    names = draw(st.lists(NAMES.filter(bool), min_size=1, max_size=4, unique=True))
    dataset = Dataset("any", names)
    number = EIGHTHS if exact else st.floats(0, 64)
    for index in range(draw(st.integers(1, 4))):
        split = draw(st.sampled_from(["train", "val", "test"]))
        image = dataset.add_image(f"{index}.png", 128, 64, split=split)
        for _ in range(draw(st.integers(0, 4))):
            x1, y1, x2, y2 = (draw(number) for _ in range(4))
            box = (min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
            if min(box[2:]) > 0.01:
                dataset.add_box(image, box, draw(st.sampled_from(names)))
    return dataset


def write_yolo(dataset, out, root):
    to_yolo(Export(dataset, out, root, "link"))
    return yolo.convert(out, out)


def write_yolo_segments(dataset, out, root):
    to_yolo(Export(dataset, out, root, "link"), segments=True)
    return yolo.convert(out, out)


def write_kitti(dataset, out, root):
    to_kitti(Export(dataset, out, root, "link"))
    return kitti.convert(out, out, mapping=out / "mapping.json")


def write_voc(dataset, out, root, one_based=False):
    to_voc(Export(dataset, out, root, "link"), one_based)
    return voc.convert(out, out, one_based=one_based)


def write_voc_from_one(dataset, out, root):
    return write_voc(dataset, out, root, one_based=True)


def write_coco(dataset, out, root):
    dataset.write(out)
    return coco.convert(out, out, no_image_files=True)


WAYS = [write_coco, write_kitti, write_voc, write_voc_from_one, write_yolo, write_yolo_segments]


def content_of(dataset):
    """Splits by image and boxes in order, by file name without folders."""
    splits = {file.rpartition("/")[2]: keys for file, keys in images_of(dataset, "split").items()}
    boxes = [(file.rpartition("/")[2], name, box) for file, name, box in boxes_of(dataset)]
    return splits, sorted(boxes, key=lambda entry: entry[0])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("exact", [True, False])
def test_round_trips(tmp_path_factory, way, exact):
    root = tmp_path_factory.mktemp("images")
    for index in range(4):
        write_picture(root / f"{index}.png", (128, 64))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(datasets(exact))
    def check(dataset):
        out = tmp_path_factory.mktemp("out") / "new"
        splits, boxes = content_of(dataset)
        found_splits, found = content_of(way(dataset, out, root))
        assert found_splits == splits
        assert [entry[:2] for entry in found] == [entry[:2] for entry in boxes]
        for (*_, box), (*_, expected) in zip(found, boxes):
            # Powers of two divide without a rest, so that even YOLO's fractions are exact.
            assert box == (expected if exact else pytest.approx(expected, rel=0, abs=1e-9))

    check()


def test_classes_keep_their_order_in_formats_that_know_it(tmp_path):
    write_picture(tmp_path / "0.png", (128, 64))
    dataset = Dataset("any", ["z", "a b", "a_b", "m", "dontcare"])
    image = dataset.add_image("0.png", 128, 64)
    for name in ("m", "a_b", "z", "a b", "dontcare"):
        dataset.add_box(image, (1, 2, 3, 4), name)
    for way in (write_kitti, write_yolo):
        found = way(dataset, tmp_path / way.__name__, tmp_path)
        assert found.to_coco()["categories"] == dataset.to_coco()["categories"]
        assert [a["category_id"] for a in found.annotations] == [4, 3, 1, 2, 5]
    table = json.loads((tmp_path / "write_kitti/mapping.json").read_text())
    assert table == {"z": "z", "a_b": "a b", "a_b_2": "a_b", "m": "m", "dontcare_2": "dontcare"}


def test_images_that_would_share_a_label_file_get_names_of_their_own(tmp_path):
    dataset = Dataset("any", ["m"])
    for number, name in enumerate(("a/x.png", "a__x.jpg", "A__X.png", "x\n.png")):
        image = dataset.add_image(name, 128, 64)
        dataset.add_box(image, (number, 0, 5, 5), "m")
    report = to_yolo(Export(dataset, tmp_path / "out", tmp_path))
    names = sorted(path.name for path in (tmp_path / "out/labels/train").iterdir())
    assert names == ["A__X-3.txt", "a__x-2.txt", "a__x.txt", "x_.txt"]
    assert report.counts["fixed"] == {"images renamed: two would share a label file": 2}


def test_values_of_other_tools_that_are_no_numbers_and_texts_that_no_xml_holds(tmp_path):
    write_picture(tmp_path / "a.png", (128, 64))
    dataset = Dataset("any", ["m"])
    image = dataset.add_image("a.png", 128, 64)
    more = {"truncated": "yes", "occluded": None, "score": [1], "pose": "\x00\x01 left"}
    dataset.add_box(image, (1, 2, 3, 4), "m").update(more)
    for way in (write_kitti, write_voc):
        found = way(dataset, tmp_path / way.__name__, tmp_path)
        assert [box for _, _, box in boxes_of(found)] == [(1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["a\nb", " a", "a\x00"])
def test_class_names_that_no_line_can_hold_are_refused(tmp_path, name):
    dataset = Dataset("any", [name])
    dataset.add_image("a.png", 128, 64)
    with pytest.raises(UserError, match="does not fit into a label file"):
        Export(dataset, tmp_path / "out", tmp_path)


def run(*arguments):
    """The tool's exit code and all that it prints."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_tool(tmp_path):
    for split, images in (("train", CONTENT["images"][:1]), ("val", CONTENT["images"][1:])):
        ids = {image["id"] for image in images}
        boxes = [a for a in CONTENT["annotations"] if a["image_id"] in ids]
        content = {**CONTENT, "images": [dict(image, split=None) for image in images]}
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps({**content, "annotations": boxes}))
    files = ("--json", tmp_path / "train.json", tmp_path / "val.json")
    code, text = run("voc", *files, "--out", tmp_path / "out")
    assert code == 0 and "crowd boxes, now difficult" in text, text
    assert (tmp_path / "out/ImageSets/Main/val.txt").read_text() == "b\n"
    code, text = run("kitti", *files, "--out", tmp_path / "out")
    assert code == 2 and text.startswith("error: --out") and "is not empty" in text
    code, text = run("yolo", *files, "--out", tmp_path / "new", "--one-based")
    assert code == 2 and "--one-based is of format voc" in text
    code, text = run("kitti", *files, "--out", tmp_path / "new", "--segments")
    assert code == 2 and "--segments is of format yolo" in text
    code, text = run("yolo", *files, "--out", tmp_path / "segments", "--segments")
    corners = "0.03125 0.05 0.171875 0.05 0.171875 0.2 0.03125 0.2"
    rows = (tmp_path / "segments/labels/train/s__a.txt").read_text().splitlines()
    assert code == 0 and rows[0] == f"0 {corners}", text
    code, text = run("yolo", *files, "--out", tmp_path / "new", "--place", "copy")
    assert code == 2 and "--place copy needs --image-root" in text


def test_missing_images_and_unknown_splits(tmp_path):
    dataset = Dataset("any", ["m"])
    dataset.add_image("a.png", 128, 64, split="fold0")
    report = to_voc(Export(dataset, tmp_path / "voc", tmp_path, "copy"))
    assert report.counts["dropped"] == {"image files that do not exist": 1}
    with pytest.raises(UserError, match="YOLO knows the splits train, val, test, not fold0"):
        to_yolo(Export(dataset, tmp_path / "yolo", tmp_path))
    with pytest.raises(UserError, match="lists no image"):
        Export(Dataset("none"), tmp_path / "none", tmp_path)
