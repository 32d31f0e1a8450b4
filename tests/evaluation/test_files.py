# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A result file is the old one or the new one, never half of it."""

from pathlib import Path

import pytest

from detrex_mammo.evaluation.files import whole_file
from detrex_mammo.evaluation.predictions import write_predictions


def test_a_writer_that_is_ended_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_predictions([{"image_id": 1}], path)
    with pytest.raises(SystemExit), whole_file(path) as partial:
        partial.write_text("[{")
        assert partial.suffix == ".json" and path.read_text() == '[{"image_id": 1}]'
        raise SystemExit(143)
    assert path.read_text() == '[{"image_id": 1}]' and list(tmp_path.iterdir()) == [path]


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        with whole_file(str(path)) as partial:
            partial.write_text(text)
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]
