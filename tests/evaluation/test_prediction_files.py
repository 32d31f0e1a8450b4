# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predictions as JSON and CSV: what is read, matched by name, and refused in one sentence."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation import prediction_files
from detrex_mammo.evaluation.prediction_files import read_prediction_table, read_predictions
from detrex_mammo.evaluation.predictions import predictions_from_records
from detrex_mammo.evaluation.study import read_study

ANNOTATIONS = {
    "images": [
        {"id": 7, "file_name": "a/one.png"},
        {"id": 9, "file_name": "a/two.png"},
        {"id": 12, "file_name": "b/two.png"},
    ],
    "annotations": [],
    "categories": [{"id": 3, "name": "mass"}, {"id": 5, "name": "calcification"}],
}
ONE_CLASS = {**ANNOTATIONS, "categories": ANNOTATIONS["categories"][:1]}
RECORD = {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}


def write(folder, text, name="p.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image_id,category,x,y,width,height,score\n7,3,1,2,3,4,.5\n",
        "image_id,category_id,x1,y1,x2,y2,score\n7,mass,1,2,4,6,0.5",
        "image_id,category,x,y,width,height,score\n7.0,3.0,1,2,3,4,0.5\n",
        "score,y2,x2,y1,x1,category,file_name\n5e-1,6,4,2,1,mass,a/one.png\n",
        "\ufeffImage_ID, Category ,x,y,width,height,Score,reader\r\n7, mass,1,2,3,4,0.5,B\r\n\r\n",
        'file_name,category,x,y,width,height,score,slice\n"one.png","3",1,2,3,4,0.5,\n',
    ],
)
def test_csv_by_hand(tmp_path, text):
    """One box (1, 2) to (4, 6): BOM, CRLF, quotes, blanks, any order, either form, more columns."""
    assert read_predictions(write(tmp_path, text), ANNOTATIONS) == [RECORD]


def test_csv_of_one_class_and_with_slices(tmp_path):
    text = "image_id,x,y,width,height,score,slice\n9,1,2,3,4,0.5,31\n7,1,2,3,4,0.5,\n"
    path = write(tmp_path, text)
    first, second = read_predictions(path, ONE_CLASS)
    assert first == {**RECORD, "image_id": 9, "slice": 31} and second == RECORD
    table = read_prediction_table(path, ONE_CLASS, read_study(ONE_CLASS))
    np.testing.assert_array_equal(table.slices, [31, np.nan])


def test_csv_without_annotations(tmp_path):
    """Ids that are numbers become numbers; others stay text."""
    text = "image_id,category,x,y,width,height,score\n7,3,1,2,3,4,0.5\n007,3,1,2,3,4,0.5\n"
    records = read_predictions(write(tmp_path, text))
    assert [record["image_id"] for record in records] == [7, "007"]
    assert records[0] == RECORD


@pytest.mark.parametrize("given_id", [7, "7", 7.0])
def test_ids_are_matched_as_text(tmp_path, given_id):
    for own in (7, "7"):
        images = [{"id": own}]
        path = write(tmp_path, json.dumps([{**RECORD, "image_id": given_id}]), "p.json")
        (record,) = read_predictions(path, {**ANNOTATIONS, "images": images})
        assert record["image_id"] == own and type(record["image_id"]) is type(own)


def test_json_keeps_what_else_a_record_has(tmp_path):
    path = write(tmp_path, json.dumps([{**RECORD, "model": "a"}]).encode("utf-8-sig"), "p.json")
    assert read_predictions(path) == [{**RECORD, "model": "a"}]


CSV = "image_id,category,x,y,width,height,score\n7,3,1,2,3,4,0.5\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lacks the columns image_id .or file_name.; category; x1.*; score: its header is"),
        ("image_id,category,x1,y1,x2,width,score\n", "lacks the columns x1, y1, x2, y2"),
        (CSV + "8,3,1,2,3,4,0.5", "line 3: image '8' is not in the annotation file"),
        (CSV + "7,4,1,2,3,4,0.5", "line 3: category '4' is not.*3 .mass., 5 .calcification."),
        (CSV + "7,3,1,2,3,4,nan", "line 3: score is 'nan', but it is a finite number"),
        (CSV + "7,3,1,2,3,4,", "line 3: score is ''"),
        (CSV + "7,3,1,inf,3,4,0.5", "line 3: y is 'inf'"),
        (CSV + "7,3,1,2,-3,4,0.5", "line 3: width -3 and height 4 must not be below 0"),
        (CSV + "7,3,1,2,3,4", "line 3 has 6 values, but the header 7"),
        (CSV.replace("image_id", "file_name"), "line 2: no image.*file_name '7'"),
        (CSV.replace("image_id", "file_name").replace("7", "two.png"), "more than one.*'two.png'"),
        (b"image_id,category,x,y,width,height,score\n\xe9,3,1,2,3,4,0.5\n", "is not UTF-8"),
        # Above the csv module's limit, and above that which the reading of tables sets.
        (CSV + '"' + "x" * 2_000_000, "line 3, is no CSV"),
    ],
)
def test_broken_csv(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(write(tmp_path, text), ANNOTATIONS)
    assert "\n" not in str(caught.value)


def test_names_need_the_annotation_file(tmp_path):
    with pytest.raises(UserError, match="line 2: category 'mass' is no id, and a name needs"):
        read_predictions(write(tmp_path, CSV.replace(",3,1", ",mass,1")))
    with pytest.raises(UserError, match="line 2: a file_name needs the annotation file"):
        read_predictions(write(tmp_path, CSV.replace("image_id", "file_name")))


def changed(**change):
    return json.dumps([RECORD, {**RECORD, **change}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("", "is not whole JSON .it is empty"),
        ("{}", "list of records"),
        ("[", "is not whole JSON"),
        ("[{", "is not whole JSON"),
        ("[" + json.dumps(RECORD), "is not whole JSON"),
        ("[" + json.dumps(RECORD) * 2 + "]", "'{' stands where"),
        (json.dumps([RECORD]) + "x", "something follows"),
        ('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', "record 0, lacks category_id, score"),
        ("[3]", "record 0, lacks image_id"),
        (changed(score=float("nan")), "record 1: score is nan"),
        (changed(score=None), "record 1: score is None"),
        (changed(score=True), "record 1: score is True"),
        (changed(score="high"), "record 1: score is 'high'"),
        (changed(bbox=[0, 0, 1]), "record 1: bbox is .0, 0, 1., but it is x, y, w, h"),
        (changed(bbox=[0, 0, 1, None]), "record 1: height is None"),
        (changed(bbox=[0, 0, -1, 1]), "record 1: width -1"),
        (changed(image_id=8), "record 1: image 8 is not in the annotation file"),
        (changed(image_id=[7]), "record 1: image .7. is not in"),
        (changed(category_id="cyst"), "record 1: category 'cyst' is not"),
        (changed(slice="x"), "record 1: slice is 'x'"),
        ("[" * 100_000, "is not whole JSON"),
    ],
)
def test_broken_json(tmp_path, text, words):
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(path, ANNOTATIONS)
    assert "\n" not in str(caught.value)


def test_broken_without_annotations(tmp_path):
    with pytest.raises(UserError, match="record 1: image_id is .7., but it is a number or a text"):
        read_predictions(write(tmp_path, changed(image_id=[7]), "p.json"))
    with pytest.raises(UserError, match="record 1: category 'mass' is no id"):
        read_predictions(write(tmp_path, changed(category_id="mass"), "p.json"))
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path)


def test_images_without_predictions_are_counted_and_said(tmp_path, caplog):
    path = write(tmp_path, json.dumps([RECORD]), "p.json")
    with caplog.at_level(logging.WARNING):
        table = read_prediction_table(path, ANNOTATIONS, read_study(ANNOTATIONS))
    assert "2 of the 3 images have no prediction" in caplog.text
    assert table.image_index.tolist() == [0] and table.boxes.tolist() == [[1, 2, 4, 6]]
    assert table.slices is None
    empty = read_prediction_table(write(tmp_path, "[]", "e.json"), ONE_CLASS, read_study(ONE_CLASS))
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)
    with pytest.raises(UserError, match="record 0: image 7 is not among the 1 images"):
        read_prediction_table(path, ANNOTATIONS, read_study(ANNOTATIONS, [9]))


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {
                "image_id": st.sampled_from([7, 9, 12]),
                "category_id": st.sampled_from([3, 5]),
                "bbox": st.lists(st.floats(0, 1e6), min_size=4, max_size=4),
                "score": st.floats(-1e3, 1e3),
                "note": st.text('"},{[]\\ \n', max_size=9),
            }
        ),
        max_size=12,
    ),
    chunk=st.integers(1000, 2000),  # twice the longest record, at least
    indent=st.sampled_from([None, 0, 3]),
)
def test_json_in_pieces_is_the_whole(tmp_path_factory, records, chunk, indent):
    """Read in pieces that cut records anywhere, it is what the json module reads."""
    path = tmp_path_factory.mktemp("json") / "p.json"
    path.write_text(json.dumps(records, indent=indent))
    whole = prediction_files._CHUNK
    try:
        prediction_files._CHUNK = chunk
        found = read_predictions(path)
        table = read_prediction_table(path, ANNOTATIONS, read_study(ANNOTATIONS))
    finally:
        prediction_files._CHUNK = whole
    assert found == records
    again = predictions_from_records(records, [7, 9, 12])
    by_image = np.argsort(table.image_index, kind="stable")
    other = np.argsort(again.image_index, kind="stable")
    for name in ("image_index", "boxes", "scores", "categories"):
        np.testing.assert_array_equal(getattr(table, name)[by_image], getattr(again, name)[other])


MEMORY = """
import resource, sys
from detrex_mammo.evaluation.prediction_files import read_prediction_table
from detrex_mammo.evaluation.study import read_study
truth = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 3, "name": "mass"}]}
study = read_study(truth)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(read_prediction_table(sys.argv[1], truth, study)) == 200_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 200_000)
"""


def test_memory_of_a_table(tmp_path):
    """Far below the 800 bytes that a record takes as a dict; in a process of its own."""
    path = tmp_path / "p.json"
    path.write_text(json.dumps([RECORD] * 200_000))
    bytes_a_record = float(
        subprocess.run(
            [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
        ).stdout
    )
    assert bytes_a_record < 350
