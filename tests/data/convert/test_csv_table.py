# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Plain tables: headers, separators, negatives, columns of the schema, and hostile rows."""

import pytest

from detrex_mammo.data.convert.csv_table import convert
from detrex_mammo.errors import UserError
from tests.data.convert.bad_pictures import assert_reported, write_bad, write_good
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

HEADER = "file,xmin,ymin,xmax,ymax,label"


@pytest.fixture
def folder(tmp_path):
    """A writer of ``table.csv`` beside three images of 30 x 40."""
    for name in "abc":
        write_picture(tmp_path / f"img/{name}.png", (40, 30))

    def write(text, encoding="utf-8"):
        (tmp_path / "table.csv").write_bytes(text.encode(encoding))
        return tmp_path

    return write


def test_boxes_negatives_and_the_schemas_columns(folder):
    root = folder(
        HEADER + ",patient,side,view,density,pixel_spacing,split,birads,lesion_id,pathology,"
        "iscrowd,ignore,source,score,comment\r\n"
        "img/a.png,1,2,5.5,6,Mass,p1,Left,cc,3,0.07,training,4a,7,MALIGNANT,0,1,mask,0.5,hello\r\n"
        'img/a.png,0,0,30,40,"Mass, large",p1,,,,,,,,,,,,,\r\n'
        "img/b.png,,,,,,p1,R,MLO,B,0.07\\0.08,val\r\n"
        "img/c.png,,,,,Normal,p2,,,,x\r\n",
        "utf-8-sig",
    )
    dataset = convert(root, root)
    keys = ("patient_id", "laterality", "view", "density", "pixel_spacing", "split", "birads")
    assert images_of(dataset, *keys) == {
        "img/a.png": ("p1", "L", "CC", "C", [0.07, 0.07], "train", "4a"),
        "img/b.png": ("p1", "R", "MLO", "B", [0.07, 0.08], "val", None),
        "img/c.png": ("p2", None, None, None, None, None, None),
    }
    keys = ("source", "lesion_id", "pathology", "iscrowd", "ignore", "score")
    assert boxes_of(dataset, *keys) == [
        ("img/a.png", "Mass", (1, 2, 4.5, 4), "mask", "7", "MALIGNANT", 0, 1, 0.5),
        ("img/a.png", "Mass, large", (0, 0, 30, 40), "box", None, None, 0, None, None),
    ]
    assert reported(dataset, "dropped") == {"columns that the schema lacks": 1}
    assert reported(dataset, "fixed") == {}


@pytest.mark.parametrize(
    "text",
    [
        "img/a.png,1.5,2,3,4,mass\nimg/b.png,,,,,\n",
        "img/b.png,,,,,normal,p1\nimg/a.png,1.5,2,3,4,mass,p1\n",
        "File;X1;Y1;X2;Y2;Class\nimg/a.png;1,5;2;3;4;mass\nimg/b.png;;;;;\n",
        "image_path\tx_min\ty_min\tx_max\ty_max\tcategory\na\t1.5\t2\t3\t4\tmass\nb\t\t\t\t\t\n",
        "label,ymax,xmax,ymin,xmin,filename\nmass,4,3,2,1.5,elsewhere\\img\\a.png\n,,,,,b.png\n",
    ],
)
def test_headers_separators_and_file_names_of_each_kind(folder, text):
    root = folder(text)
    dataset = convert(root, root)
    assert boxes_of(dataset) == [("img/a.png", "mass", (1.5, 2, 1.5, 2))]
    assert sorted(images_of(dataset)) == ["img/a.png", "img/b.png"]
    assert not dataset.report.counts["dropped"]


def test_the_header_decides_the_separator(folder):
    name = "a" + ",b" * 20  # more commas than semicolons
    root = folder(f"{HEADER.replace(',', ';')}\nimg/a.png;1,5;2,5;3,5;4,5;{name}\n")
    assert boxes_of(convert(root, root)) == [("img/a.png", name, (1.5, 2.5, 2, 2))]


def test_a_label_without_a_box_makes_no_negative(folder):
    root = folder(f"{HEADER}\nimg/a.png,,,,,mass\nimg/b.png,1,2,,4,mass\nimg/c.png,1,2,3,4,\n")
    dataset = convert(root, root)
    assert dataset.images == []
    assert reported(dataset, "dropped") == {
        "rows with a label but no box; no negatives": 1,
        "rows without four numbers": 1,
        "boxes without a label": 1,
        "images with a damaged label": 3,
    }


def test_rows_of_one_image_that_disagree_and_sizes(folder):
    root = folder(
        f"{HEADER},patient,width,height\nimg/a.png,1,2,3,4,m,p1,30,40\nimg/a.png,2,2,3,4,m,p2\n"
        "img/b.png,1,2,3,4,m,p1,60,80\nimg/c.png,1,2,3,4,m,p1,40,30\n"
    )
    dataset = convert(root, root)
    assert images_of(dataset, "patient_id") == {"img/a.png": ("p1",), "img/c.png": ("p1",)}
    assert reported(dataset, "fixed") == {
        "patient_id that differs between entries of one image; the first counts": 1,
        "sizes of images, taken from the file": 1,
    }
    assert reported(dataset, "dropped") == {"images of another size than their labels say": 1}


def test_values_that_are_none(folder):
    rows = ["9,9,5,20,m", "nan,1,5,5,m", "inf,1,5,5,m", "-5,30,40,60,m"]
    text = "\n".join(f"img/a.png,{row},yes,guess,../../x" for row in rows)
    root = folder(f"{HEADER},iscrowd,source,split\n{text}\n")
    dataset = convert(root, None, damaged_labels="keep")
    assert boxes_of(dataset, "iscrowd") == [("img/a.png", "m", (0, 30, 30, 10), 0)]
    assert "split" not in dataset.images[0]
    dropped = reported(dataset, "dropped")
    assert dropped["values of iscrowd that are no number"] == 4
    assert dropped["values of source that are none of mask, polygon, box, circle, ellipse, point"]
    assert dropped["values of split that cannot be a file's name"] == 4
    assert dropped["boxes without area in the image"] == 1
    assert dropped["boxes with a value that is no number"] == 2


def test_hostile_and_damaged_files_are_one_line_each(tmp_path):
    good, bad = write_good(tmp_path), write_bad(tmp_path)
    files = [*good, *bad, "../../etc/passwd", "/etc/hostname", "C:\\x.png", "none.png", "y" * 999]
    rows = [f"{file},1,2,3,4,m" for file in files for _ in range(2)]
    rows += [f"{good[0]},1,2,3,4,m,{'x' * 10},{'x' * 10}", f"{good[0]},1,2", '"open,1,2,3,4,m']
    (tmp_path / "t.csv").write_text("\n".join([HEADER, *rows]))
    dataset = convert(tmp_path, tmp_path, damaged_labels="keep")
    assert sorted(images_of(dataset)) == good
    assert len(dataset.annotations) == 2 * len(good)
    assert_reported(dataset, bad)
    dropped = reported(dataset, "dropped")
    assert dropped["paths that are empty or lead out of the folder"] == 3
    assert dropped["listed images that do not exist"] == 2
    assert dropped["rows with more cells than columns"] == 1
    assert dropped["rows without four numbers"] == 1
    assert dropped["rows that are no CSV (unexpected end of data)"] == 1
    assert sum(dropped.values()) == len(bad) + 8


@pytest.mark.parametrize(
    "text,options,message",
    [
        ("file,xmin,ymin,xmax,label\n", {}, "lacks the column 'ymax'"),
        ("a,b\n", {}, "lacks the column 'file'"),
        (f"{HEADER},filename\n", {}, "has two columns for 'file'"),
        (HEADER, {"table": "none.csv"}, "none.csv' does not exist"),
    ],
)
def test_a_table_that_is_none_ends_in_one_sentence(folder, text, options, message):
    with pytest.raises(UserError, match=message):
        convert(folder(text), None, **options)


def test_which_table_and_what_encoding(folder, tmp_path):
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        convert(folder(f"{HEADER}\nä.png,,,,,\n", "latin-1"), None)
    (tmp_path / "other.csv").write_text(HEADER)
    with pytest.raises(UserError, match="has other.csv, table.csv: name it with --table"):
        convert(tmp_path, None)
    assert convert(tmp_path, None, table="other.csv").images == []
