# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""docs/data_schema.md: its example is what it says, and it names every key."""

import json
import re
from pathlib import Path

import pytest

from detrex_mammo.data.check import check_datasets
from detrex_mammo.data.convert.dataset import IMAGE_KEYS, SOURCES
from detrex_mammo.data.datasets import EXTRA_KEYS, load_coco_json

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data_schema.md"


@pytest.fixture
def text():
    return PAGE.read_text(encoding="utf-8")


def test_the_example_is_sound_and_its_keys_survive_registration(text, tmp_path):
    path = tmp_path / "train.json"
    path.write_text(re.search(r"```json\n(.*?)```", text, re.S).group(1))
    findings = check_datasets([path], pixels=False).findings
    assert [row["what"] for row in findings.to_list()] == ["categories without any box"]
    (record,) = load_coco_json("schema_page", str(path), str(tmp_path))
    image = json.loads(path.read_text())["images"][0]
    kept = {key: record[key] for key in IMAGE_KEYS}
    assert kept == {key: image[key] for key in IMAGE_KEYS}


def test_every_key_is_named(text):
    for key in {*IMAGE_KEYS, *EXTRA_KEYS, *SOURCES}:
        assert f"`{key}`" in text, key


def test_the_tools_of_its_commands_exist(text):
    tools = set(re.findall(r"python (tools/\w+\.py)", text))
    assert tools and all((PAGE.parents[1] / tool).is_file() for tool in tools)
