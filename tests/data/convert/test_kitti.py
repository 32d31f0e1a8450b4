# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""KITTI folders: columns, mappings, sequences, splits and shards, each trap with its records."""

import json
from collections import Counter

import pytest

from detrex_mammo.data.convert.kitti import convert
from detrex_mammo.errors import UserError
from tests.data.convert.bad_pictures import assert_reported, write_bad, write_good
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture


def row(kind, *box, score=None, truncated=0, occluded=0):
    """A label line: corners as KITTI has them."""
    words = [kind, truncated, occluded, "-1.57", *box, *[0] * 7]
    return " ".join(map(str, words + ([] if score is None else [score])))


def add(root, sequence, name, *lines, images="images", labels="labels"):
    """An image of 30 x 40 and its label file."""
    write_picture(root / sequence / images / f"{name}.png", (40, 30))
    path = root / sequence / labels / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join(lines))


def write_mapping(root, table):
    """``mapping.json``'s path."""
    path = root / "mapping.json"
    path.write_text(json.dumps(table))
    return path


def test_sequences_columns_and_class_names_with_spaces(tmp_path):
    add(tmp_path, "s1", "a", row("Mass", 1, 2, 5.5, 6), row("Suspicious mass", 1, 2, 3, 4))
    add(tmp_path, "s1", "empty")
    add(tmp_path, "s2", "b", row("Mass", 1, 2, 3, 4, score=0.25, truncated=0.5, occluded=2))
    add(tmp_path, "s3", "not_listed", row("Mass", 1, 2, 3, 4))
    (tmp_path / "sequence.txt").write_text(f"s2\r\n{tmp_path.resolve()}/s1\n\n")
    dataset = convert(tmp_path, tmp_path)
    assert list(images_of(dataset)) == ["s2/images/b.png", "s1/images/a.png", "s1/images/empty.png"]
    assert boxes_of(dataset, "score", "truncated", "occluded") == [
        ("s2/images/b.png", "Mass", (1, 2, 2, 2), 0.25, 0.5, 2),
        ("s1/images/a.png", "Mass", (1, 2, 4.5, 4), None, None, None),
        ("s1/images/a.png", "Suspicious mass", (1, 2, 2, 2), None, None, None),
    ]
    assert reported(dataset, "dropped") == {}


def test_capitals_in_the_mapping_work_and_its_order_is_that_of_the_ids(tmp_path):
    table = {"Mass": "mass", "SUSPICIOUS Calc": "calcification", "Marker": None, "clip": "mass"}
    kinds = ("Mass", "mass", "Suspicious calc", "marker", "Other", "CLIP", "DontCare")
    add(tmp_path, ".", "a", *(row(kind, 1, 2, 3, 4) for kind in kinds))
    dataset = convert(tmp_path, tmp_path, mapping=write_mapping(tmp_path, table))
    names = [name for _, name, _ in boxes_of(dataset)]
    assert names == ["mass", "mass", "calcification", "mass"]
    assert dataset.to_coco()["categories"] == [
        {"id": 1, "name": "mass"},
        {"id": 2, "name": "calcification"},
    ]
    assert reported(dataset, "dropped") == {
        "boxes of a type that the mapping lacks": 2,
        "DontCare regions": 1,
    }
    examples = dataset.report.examples["dropped", "boxes of a type that the mapping lacks"]
    assert examples == ["labels/a.txt:4: marker", "labels/a.txt:5: Other"]


def test_two_keys_that_differ_by_capitals_only_are_told_apart(tmp_path):
    add(tmp_path, ".", "a", *(row(kind, 1, 2, 3, 4) for kind in ("Mass", "mass", "MASS")))
    table = write_mapping(tmp_path, {"Mass": "big", "mass": "small"})
    dataset = convert(tmp_path, tmp_path, mapping=table)
    assert [name for _, name, _ in boxes_of(dataset)] == ["big", "small", "big"]


@pytest.mark.parametrize("options", [{"columns": "15"}, {"mapping": {"point 1": "Point 1"}}])
def test_a_type_that_ends_in_a_number(tmp_path, options):
    add(tmp_path, ".", "a", row("Point 1", 1, 2, 3, 4))
    if "mapping" in options:
        options = {"mapping": write_mapping(tmp_path, options["mapping"])}
    dataset = convert(tmp_path, tmp_path, **options)
    assert boxes_of(dataset, "score") == [("images/a.png", "Point 1", (1, 2, 2, 2), None)]


def test_lines_that_are_no_labels(tmp_path):
    lines = [row("m", 1, 2, 3, 4)[:-4], "m 1 2", row("m", 1, "x", 3, 4), row("m", 5, 5, 5, 9)]
    lines += [row("m", 1, 2, "nan", 4), row("m", 1, 2, 3, 4, truncated="inf")]
    add(tmp_path, ".", "a", *lines, row("m", -3, 2, 3, 4), "")
    dataset = convert(tmp_path, tmp_path, damaged_labels="keep")
    assert boxes_of(dataset) == [("images/a.png", "m", (0, 2, 3, 2))]
    assert reported(dataset, "dropped") == {
        "label lines without 15 or 16 columns of numbers": 4,
        "boxes without area in the image": 1,
        "boxes with a value that is no number": 1,
    }
    assert reported(dataset, "fixed") == {"boxes cut at the image's border": 1}


def test_a_missing_label_file_is_a_negative_only_by_policy(tmp_path):
    add(tmp_path, ".", "a", row("m", 1, 2, 3, 4))
    write_picture(tmp_path / "images/b.png", (40, 30))
    dataset = convert(tmp_path, tmp_path)
    assert list(images_of(dataset)) == ["images/a.png"]
    assert reported(dataset, "dropped") == {"images without a label file": 1}
    dataset = convert(tmp_path, tmp_path, without_labels="negative")
    assert list(images_of(dataset)) == ["images/a.png", "images/b.png"]
    assert len(dataset.annotations) == 1


def test_the_original_folders_and_folders_of_other_names(tmp_path):
    add(tmp_path, "training", "a", row("m", 1, 2, 3, 4), images="image_2", labels="label_2")
    dataset = convert(tmp_path, tmp_path)
    assert images_of(dataset, "split") == {"training/image_2/a.png": ("train",)}
    add(tmp_path, "s", "a", row("m", 1, 2, 3, 4), images="jpgs", labels="txts")
    dataset = convert(tmp_path, tmp_path, images_folder="jpgs", labels_folder="txts")
    assert list(images_of(dataset)) == ["s/jpgs/a.png"] and len(dataset.annotations) == 1


@pytest.fixture
def many(tmp_path):
    """Three sequences of 10, 7 and 3 images; patients p0 to p4 appear in all of them."""
    for sequence, count in (("s1", 10), ("s2", 7), ("s3", 3)):
        for number in range(count):
            add(tmp_path, sequence, f"p{number % 5}_{number}", row("m", 1, 2, 3, 4))
    return tmp_path


PATIENT = r"(?P<patient_id>p\d)_"


@pytest.mark.parametrize("mode", ["random", "sequence", "patient"])
def test_splits_keep_groups_whole_and_are_the_same_again(many, mode):
    options = {"split": mode, "val_share": 0.3, "file_pattern": PATIENT}
    dataset = convert(many, many, **options)
    splits = Counter(image["split"] for image in dataset.images)
    assert set(splits) == {"train", "val"} and sum(splits.values()) == 20
    assert 0 < splits["val"] <= (6 if mode == "random" else 12)
    assert splits["val"] == 6 or mode != "random"
    group = {
        "random": lambda image: image["file_name"],
        "sequence": lambda image: image["file_name"].split("/")[0],
        "patient": lambda image: image["patient_id"],
    }[mode]
    sides = {(group(image), image["split"]) for image in dataset.images}
    assert len(sides) == len({name for name, _ in sides})
    again = convert(many, many, **options)
    assert images_of(again, "split") == images_of(dataset, "split")
    (many / "sequence.txt").write_text("s3\ns2\ns1\n")  # another order of the same images
    assert images_of(convert(many, many, **options), "split") == images_of(dataset, "split")
    others = [convert(many, many, seed=seed, **options) for seed in range(8)]
    assert any(images_of(o, "split") != images_of(dataset, "split") for o in others)


@pytest.mark.parametrize("shards,per_file", [(1, [20]), (3, [6, 7, 7]), (8, None), (32, [1] * 20)])
def test_each_image_is_in_exactly_one_shard(many, shards, per_file):
    dataset = convert(many, many / "out", shards=shards)
    files = sorted((many / "out/shards").iterdir())
    contents = [json.loads(file.read_text()) for file in files]
    assert files[0].name == f"shard-00000-of-{len(files):05d}.json"
    assert len(files) == min(shards, 20)
    ids = [image["id"] for content in contents for image in content["images"]]
    assert sorted(ids) == [image["id"] for image in dataset.images]
    assert sum(len(content["annotations"]) for content in contents) == 20
    for content in contents:
        assert {a["image_id"] for a in content["annotations"]} == {
            image["id"] for image in content["images"]
        }
    if per_file:
        assert sorted(len(content["images"]) for content in contents) == per_file


def test_shards_of_splits_replace_those_of_an_earlier_run(many):
    convert(many, many / "out", shards=4)
    convert(many, many / "out", shards=2, split="random")
    names = sorted(file.name for file in (many / "out/shards").iterdir())
    assert names == [
        f"{split}-shard-0000{index}-of-00002.json" for split in ("train", "val") for index in (0, 1)
    ]


def test_hostile_and_damaged_files_are_one_line_each(tmp_path):
    images = tmp_path / "s" / "images"
    good, bad = write_good(images), write_bad(images)
    (tmp_path / "s/labels").mkdir()
    for name in [*good, *bad]:
        (tmp_path / f"s/labels/{name.rpartition('.')[0]}.txt").write_text(row("m", 1, 2, 3, 4))
    write_picture(images / "bad_label.png", (40, 30))
    (tmp_path / "s/labels/bad_label.txt").write_bytes(b"\xff\xfe\x00m 1 2")
    lines = ["s", "../up", "/etc", "s/../../x", "s", "none", "z" * 999, "a\0b"]
    (tmp_path / "sequence.txt").write_text("\n".join(lines))
    dataset = convert(tmp_path, tmp_path)
    assert sorted(images_of(dataset)) == [f"s/images/{name}" for name in good]
    assert len(dataset.annotations) == len(good)
    assert_reported(dataset, bad, "images/")
    dropped = reported(dataset, "dropped")
    assert dropped["images whose label file is no text"] == 1
    assert dropped["paths that are empty or lead out of the folder"] == 4
    assert dropped["sequences listed twice"] == 1
    assert dropped["sequences without a folder of images"] == 2
    assert sum(dropped.values()) == len(bad) + 8


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "patient"}, "2 images have no patient_id.*--file-pattern"),
        ({"split": "sequence"}, "there is only one such group"),
        ({"split": "random", "val_share": 1.5}, "--val-share is 1.5; it lies between 0 and 1"),
        ({"shards": -1}, "--shards is -1"),
        ({"sequences": "../list.txt"}, "must lie in --root"),
        ({"sequences": "list.txt"}, "list.txt' does not exist"),
        ({"mapping": "none.json"}, "'none.json' is no JSON file"),
        ({"mapping": {"a": 1}}, "is not .*type in the files"),
        ({"images_folder": "none"}, "holds no usable KITTI image"),
    ],
)
def test_wrong_options_end_in_one_sentence(tmp_path, options, message):
    add(tmp_path, ".", "a", row("m", 1, 2, 3, 4))
    add(tmp_path, ".", "b", row("m", 1, 2, 3, 4))
    if isinstance(options.get("mapping"), dict):
        options = {"mapping": write_mapping(tmp_path, options["mapping"])}
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path, **options)
