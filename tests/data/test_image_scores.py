# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Best scores from a predictions file."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from detrex_mammo.data.image_scores import best_scores
from detrex_mammo.errors import UserError

RECORD = {"image_id": "x", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


def sentence(text: str, tmp_path: Path) -> str:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        best_scores(str(path), ["x", "y"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_best_score_of_each_image_and_unknown_ones_counted(tmp_path: Path, caplog) -> None:
    path = tmp_path / "p.json"
    more = [{"score": 0.75}, {"score": 0.25}, {"image_id": 7}, {"image_id": "gone"}]
    path.write_text(json.dumps([RECORD, *({**RECORD, **change} for change in more)]))
    logger = logging.getLogger("detrex_mammo")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        scores = best_scores(str(path), [7, "y", "x"])
    np.testing.assert_array_equal(scores, [0.5, -np.inf, 0.75])
    assert "1 of its 3 images are not in the training data" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[", "not whole JSON"),
        ("[]", "at least one"),
        ("{}", "record 0, lacks"),
        ("3", "a list of records"),
        (json.dumps(RECORD), "a list of records"),
        (json.dumps([RECORD, {"image_id": 1}]), "record 1, lacks an image_id or a finite score"),
        (json.dumps([{**RECORD, "score": float("nan")}]), "record 0, lacks"),
        (json.dumps([{**RECORD, "score": "high"}]), "record 0, lacks"),
        (json.dumps([{**RECORD, "image_id": [1]}]), "record 0, lacks"),
        (
            json.dumps([{**RECORD, "image_id": "z"}]),
            "such as 'z', but none of the dataset's 2, such as 'x'",
        ),
    ],
)
def test_wrong_file_is_one_sentence(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in sentence(text, tmp_path)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        best_scores(str(tmp_path / "none.json"), ["x"])


def test_parts_of_a_mixture_have_a_file_each(tmp_path: Path) -> None:
    """Both files know an image 1; ids of a mixture are "part/id"."""
    files = {}
    for part, score in (("a", 0.25), ("b", 0.75)):
        files[part] = str(tmp_path / f"{part}.json")
        Path(files[part]).write_text(json.dumps([{**RECORD, "image_id": 1, "score": score}]))
    np.testing.assert_array_equal(best_scores(files, ["b/1", "a/1", "c/1"]), [0.75, 0.25, -np.inf])
    with pytest.raises(UserError, match="has 2 images, such as 'a/1', but none"):
        best_scores(files, [1])
    with pytest.raises(UserError, match="predictions file 3 is no path"):
        best_scores({"a": 3}, [1])
