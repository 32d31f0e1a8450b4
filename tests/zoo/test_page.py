# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""model_zoo.md is what zoo/*.json gives, and a wrong link or hash stops it."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.checks import problem_of_link
from detrex_mammo.zoo.page import PAGE, build, check

ROOT = Path(__file__).resolve().parents[2]
NAME = "demo_small"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the zoo, the configs and the checkpoint of this one."""
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo")
    shutil.copytree(ROOT / "projects", tmp_path / "projects")
    shutil.copy(ROOT / PAGE, tmp_path)
    return tmp_path


def row(root: Path, name: str = NAME) -> dict:
    return json.loads((root / "zoo" / f"{name}.json").read_text())


def put(root: Path, content: dict, name: str = NAME) -> None:
    (root / "zoo" / f"{name}.json").write_text(json.dumps(content))


def lines_with(page: str, text: str) -> list[str]:
    return [line for line in page.splitlines() if text in line]


def test_the_page_of_this_repository_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == build(ROOT)


def test_a_changed_number_is_noticed(root: Path) -> None:
    check(root)
    content = row(root)
    content["froc"]["sensitivity"]["1"] += 0.1
    put(root, content)
    with pytest.raises(UserError, match=r"run tools/model_zoo.py build"):
        check(root)
    (root / PAGE).unlink()
    with pytest.raises(UserError, match=r"run tools/model_zoo.py build"):
        check(root)


def test_the_shipped_row_says_that_its_lesions_are_simulated(root: Path) -> None:
    page = build(root)
    line = lines_with(page.split("## Converted weights")[0], f"[{NAME}]")[0]
    assert "**all simulated**" in line and row(root)["checkpoint"]["sha256"][:8] in line


def test_what_was_not_measured_says_so(root: Path) -> None:
    content = row(root)
    content["coco"].update(top_300=None)
    content["speed"] = dict.fromkeys(content["speed"])
    content["training"] = dict.fromkeys(content["training"])
    content.update(froc=None, command=None, commit=None, classes=None, date=None)
    put(root, content)
    page = build(root)
    cells = lines_with(page, f"[{NAME}](#{NAME})")[0].split(" | ")
    assert cells[2] == f"{content['coco']['top_100']['AP']:.1f} / not measured"
    assert cells[4] == cells[7] == "not measured"
    for name in ("command", "commit", "classes", "hardware", "speed", "peak memory", "date"):
        assert lines_with(page, f"| {name} |")[0].endswith("| not measured |")
    assert lines_with(page, "| top 300 |")[0].count("not measured") == 12
    assert "None" not in page.replace("None yet.", "") and "nan" not in page


def test_converted_weights_have_their_table(root: Path) -> None:
    content = {**copy.deepcopy(row(root)), "name": "theirs", "kind": "converted"}
    content["source"] = {"format": "official", "file": "r50.pth", "sha256": "a" * 64}
    largest = {"logits": 4.29e-6, "boxes": 1e-7}
    content["verification"] = {"passed": True, "against": "transformers 5", "largest": largest}
    content["checkpoint"].update(file=None, url="https://example.org/a/theirs.pth")
    put(root, content, "theirs")
    trained, converted = build(root).split("## Converted weights")
    converted = converted.split("## Published")[0]
    assert "[theirs](#theirs)" not in trained and "[theirs](#theirs)" in converted
    line = lines_with(converted, "| converted from |")[0]
    assert "official, r50.pth" in line
    assert "names by their table alone, against transformers 5, largest differences: logits" in line
    assert "(https://example.org/a/theirs.pth)" in converted
    put(root, {**content, "verification": {"passed": None, "reason": "no transformers"}}, "theirs")
    assert "; not verified |" in build(root)


def test_published_figures_are_apart_and_have_their_source(root: Path) -> None:
    published = row(root, "published")
    page = build(root).split("## Published, not measured here")[1]
    for entry in published["rows"]:
        told = lines_with(page, f"| {entry['model']} | {entry['epochs']} | ")
        url = published["sources"][entry["source"]]["url"]
        assert any(f"| {entry['ap']} |" in line and url in line for line in told)
    assert not lines_with(page, NAME)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["checkpoint"].update(sha256="0" * 64), "is not the checkpoint"),
        (lambda c: c["checkpoint"].update(file="projects/none.pth"), "does not exist"),
        (lambda c: c["checkpoint"].update(file="../../etc/hostname"), "leads out of"),
        (lambda c: c["checkpoint"].update(url="http://example.org/x"), "is no https URL"),
        (lambda c: c["config"].update(file="projects/none.py"), "does not exist"),
        (lambda c: c["config"].update(sha256="0123"), "'0123' is no sha256"),
        (lambda c: c["data"].update(sha256="xyz"), "'xyz' is no sha256"),
        (lambda c: c.update(name="other"), "its name is 'other'"),
        (lambda c: c.update(kind="stolen"), "its kind is 'stolen'"),
        (lambda c: c.pop("speed"), "is not as this tool writes it"),
    ],
)
def test_wrong_links_and_hashes_stop_the_page(root: Path, change, told: str) -> None:
    content = row(root)
    change(content)
    put(root, content)
    with pytest.raises(UserError) as caught:
        build(root)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_file_stops_the_page(root: Path, text: str) -> None:
    (root / "zoo" / "broken.json").write_text(text)
    with pytest.raises(UserError, match="broken.json is damaged"):
        build(root)


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("https://github.com/a/b", ""),
        ("README.md", ""),
        ("zoo", ""),
        ("#model-zoo", ""),
        ("#none", "is no heading of the page"),
        ("https://github", "is no https URL"),
        ("https://exa mple.org/a", "is no https URL"),
        ("https:///a", "is no https URL"),
        ("ftp://example.org/a", "is no https URL"),
        ("javascript:alert(1)", "is no https URL"),
        ("none.md", "does not exist"),
        ("", "leads out of the repository"),
        ("/etc/hostname", "leads out of the repository"),
    ],
)
def test_links(link: str, problem: str) -> None:
    assert problem_of_link(link, ROOT, "# Model zoo\n") == problem
