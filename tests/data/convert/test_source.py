# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A label that cannot be read never makes its image a negative, in whatever format it is."""

import json

import pytest

from detrex_mammo.data.convert import coco, csv_table, kitti, voc, yolo
from detrex_mammo.data.convert.source import Source
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

SIZE = (40, 30)
# a sound label of the box (3, 4, 6, 8), one without numbers, one of a box without area
LABELS = {
    "yolo": ("0 0.2 0.2 0.2 0.2", "0 0.2 0.2 0.2 oops", "0 0.2 0.2 0 0.2"),
    "kitti": tuple(
        f"mass 0 0 0 {box} 0 0 0 0 0 0 0" for box in ("3 4 9 12", "3 4 9 oops", "3 4 3 12")
    ),
    "csv": ("3,4,9,12,mass", "3,4,9,oops,mass", "3,4,3,12,mass"),
    "voc": ("3 4 9 12", "3 4 9 oops", "3 4 3 12"),
    "coco": ([3, 4, 6, 8], [3, 4, 6, "oops"], [3, 4, 0, 8]),
}
MODULES = {"yolo": yolo, "kitti": kitti, "csv": csv_table, "voc": voc, "coco": coco}


def voc_xml(labels):
    names = ("xmin", "ymin", "xmax", "ymax")
    boxes = ["".join(f"<{n}>{v}</{n}>" for n, v in zip(names, box.split())) for box in labels]
    objects = "".join(f"<object><name>mass</name><bndbox>{b}</bndbox></object>" for b in boxes)
    return f"<annotation>{objects}</annotation>"


def write(root, kind, images):
    """A folder of a format: images {stem: labels}; no label is a negative."""
    for stem, labels in images.items():
        write_picture(root / f"images/{stem}.png", SIZE)
        (root / "labels").mkdir(exist_ok=True)
        if kind in ("yolo", "kitti"):
            (root / f"labels/{stem}.txt").write_text("\n".join(labels))
        elif kind == "voc":
            (root / f"labels/{stem}.xml").write_text(voc_xml(labels))
    if kind == "yolo":
        (root / "classes.txt").write_text("mass")
    elif kind == "csv":
        rows = [f"images/{n}.png,{row}" for n, rows in images.items() for row in rows or [",,,,"]]
        (root / "t.csv").write_text("\n".join(["file,xmin,ymin,xmax,ymax,label", *rows]))
    elif kind == "coco":
        numbers = {stem: number for number, stem in enumerate(images, 1)}
        content = {
            "images": [
                {"id": n, "file_name": f"images/{s}.png", "height": 40, "width": 30}
                for s, n in numbers.items()
            ],
            "annotations": [
                {"id": 9, "image_id": numbers[stem], "category_id": 1, "bbox": box}
                for stem, boxes in images.items()
                for box in boxes
            ],
            "categories": [{"id": 1, "name": "mass"}],
        }
        (root / "a.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("kind", LABELS)
def test_an_image_of_a_damaged_label_is_dropped_or_marked(tmp_path, kind):
    good, unreadable, flat = LABELS[kind]
    images = {
        "alone": [unreadable],
        "beside": [good, unreadable],
        "flat": [flat],
        "negative": [],
        "whole": [good],
    }
    root = write(tmp_path, kind, images)
    dataset = MODULES[kind].convert(root, root / "out")
    assert list(images_of(dataset)) == ["images/negative.png", "images/whole.png"]
    found = [(name, tuple(round(v, 9) for v in box)) for _, name, box in boxes_of(dataset)]
    assert found == [("mass", (3, 4, 6, 8))]
    assert reported(dataset, "kept") == {"images": 2, "boxes": 1}
    dropped = reported(dataset, "dropped")
    assert dropped["images with a damaged label"] == 3
    assert dropped["boxes of images with a damaged label"] == 1
    assert sum(dropped.values()) == 3 + 1 + 3  # and a line for each damaged label
    examples = dataset.report.examples["dropped", "images with a damaged label"]
    assert sorted(examples) == [f"images/{stem}.png" for stem in ("alone", "beside", "flat")]

    dataset = MODULES[kind].convert(root, root / "out", damaged_labels="keep")
    marks = images_of(dataset, "damaged_label")
    expected = {f"images/{stem}.png": (True,) for stem in ("alone", "beside", "flat")}
    expected |= {f"images/{stem}.png": (None,) for stem in ("negative", "whole")}
    assert marks == expected
    kept = {"images": 5, "boxes": 2, "images with a damaged label, marked damaged_label": 3}
    assert reported(dataset, "kept") == kept
    assert sum(reported(dataset, "dropped").values()) == 3


def test_ids_have_no_gaps_where_an_image_was_taken_out(tmp_path):
    good, bad, _ = LABELS["csv"]
    root = write(tmp_path, "csv", {"a": [good], "b": [good, bad], "c": [good, good]})
    dataset = csv_table.convert(root, root)
    assert [image["id"] for image in dataset.images] == [1, 2]
    assert [(a["id"], a["image_id"]) for a in dataset.annotations] == [(1, 1), (2, 2), (3, 2)]


def test_a_class_that_was_not_chosen_is_no_damage(tmp_path):
    write_picture(tmp_path / "a.png", SIZE)
    source = Source(tmp_path, classes=["mass"])
    image = source.add_image("a.png", {})
    assert source.add_box(image, (0, 0, 0, 0), "clip") is None
    assert len(source.finish().images) == 1
    assert source.add_box(image, (0, 0, 0, 0), "mass") is None
    assert source.finish().images == []
