# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The page in a real browser: numbers, clicks, the slider, and strangers' names."""

import csv
import re

import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.report.content import Table
from detrex_mammo.evaluation.report.page import write_report
from tests.evaluation.report.browser import browser
from tests.evaluation.report.examples import EVIL, picture, report


def rows_of(folder, key):
    with open(folder / "tables" / f"{key}.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_tables_are_written_as_csv_with_their_rule(tmp_path):
    write_report(tmp_path, report())
    assert rows_of(tmp_path, "by_class") == [
        ["class", "lesions", "sens"],
        ["mass", "2", "0.5"],
        ["calcification", "10", ""],
        ["asymmetry", "1", "0.75"],
    ]
    assert rows_of(tmp_path, "headline")[1:] == [
        ["Sensitivity at 1", "0.667", "0.250 to 1.000", "centre in box", "3 lesions in 4 images"],
        ["AP50", "50.0 %", "", "IoU 0.5", "3 lesions"],
        ["AUC", "not defined", "", "image", "no negative image"],
    ]


def test_a_cell_that_a_spreadsheet_would_run_becomes_text(tmp_path):
    content = report()
    table = Table("names", "Names", "", ["name"], [["=1+1"], ["@x"], ["-"], ["P=1"]])
    write_report(tmp_path, type(content)(**{**vars(content), "tables": [table]}))
    assert rows_of(tmp_path, "names")[1:] == [["'=1+1"], ["'@x"], ["-"], ["P=1"]]


def test_a_column_that_a_spreadsheet_would_run_becomes_text(tmp_path):
    content = report()
    table = Table("names", "Names", "", ["=1+1"], [["\ud800"]])
    write_report(tmp_path, type(content)(**{**vars(content), "tables": [table]}))
    assert rows_of(tmp_path, "names") == [["'=1+1"], ["?"]]


def test_page_asks_for_nothing_from_the_network(tmp_path):
    text = write_report(tmp_path, report(), picture).read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    assert "default-src 'none'" in text


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to .*file.*give another folder"):
        write_report(tmp_path / "file" / "deeper", report())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    page = write_report(tmp_path_factory.mktemp("report"), report(patient=EVIL), picture)
    with browser() as driver:
        driver.get(page.as_uri())
        yield driver


@pytest.fixture
def page(opened):
    opened.refresh()
    return opened


def texts(page, selector):
    return [element.text for element in page.find_elements("css selector", selector)]


def counts(page):
    boxes = page.find_elements("css selector", "#counts > div")
    return {b.get_attribute("data-count"): b.find_element("tag name", "strong").text for b in boxes}


def choose(page, selector, value):
    page.find_element("css selector", f"{selector} option[value='{value}']").click()


def move_slider(page, score):
    box = page.find_element("id", "score")
    box.clear()
    box.send_keys(str(score), "\t")


def test_nothing_is_complained_about_and_no_name_is_run(page):
    assert page.find_element("tag name", "body").get_attribute("data-ready") == "yes"
    assert page.get_log("browser") == []
    assert page.title == "A report"
    assert page.find_elements("css selector", "img") == []
    choose(page, "#kind", "all")
    assert f"patient {EVIL}" in texts(page, ".card h3")


def test_headline_stands_in_the_page(page):
    assert texts(page, "#table-headline tbody tr:nth-child(1) td") == [
        "Sensitivity at 1", "0.667", "0.250 to 1.000", "centre in box", "3 lesions in 4 images",
    ]  # fmt: skip
    assert page.find_element("id", "note").text == "simulated lesions"


def test_a_click_on_a_column_sorts_and_another_turns_round(page):
    """Missing values stay last in both orders."""
    by = {b.text: b for b in page.find_elements("css selector", "#table-by_class th button")}
    names = "#table-by_class tbody td:first-child"
    by["sens"].click()
    assert texts(page, names) == ["mass", "asymmetry", "calcification"]
    by["sens"].click()
    assert texts(page, names) == ["asymmetry", "mass", "calcification"]
    by["lesions"].click()
    assert texts(page, names) == ["asymmetry", "mass", "calcification"]
    by["class"].click()
    assert texts(page, names) == ["asymmetry", "calcification", "mass"]


def test_threshold_counts_as_by_hand(page):
    """At 0.5: hit 0.9 of 3 lesions, false 0.8 in 4 images. At 0.3: 0.9, 0.4 and 0.8, 0.3."""
    assert counts(page) == {
        "found": "1 of 3", "sensitivity": "0.333", "missed": "2", "false": "1", "fppi": "0.250",
    }  # fmt: skip
    move_slider(page, 0.3)
    assert counts(page) == {
        "found": "2 of 3", "sensitivity": "0.667", "missed": "1", "false": "2", "fppi": "0.500",
    }  # fmt: skip
    page.find_element("id", "reset").click()
    assert counts(page)["found"] == "1 of 3"


def test_slider_moves_the_threshold_by_keys(page):
    page.find_element("id", "slider").send_keys("\ue011")  # Home: the lowest threshold, 0.1
    assert counts(page)["false"] == "3"
    assert float(page.find_element("id", "score").get_attribute("value")) == pytest.approx(0.1)


def test_boxes_follow_the_threshold(page):
    choose(page, "#kind", "all")
    drawn = lambda kind: len(page.find_elements("css selector", f".frame rect.{kind}"))  # noqa: E731
    assert [drawn(k) for k in ("found", "missed", "hit", "false")] == [1, 2, 1, 1]
    move_slider(page, 0.15)
    assert [drawn(k) for k in ("found", "missed", "hit", "false")] == [2, 1, 2, 3]


def test_gallery_shows_what_it_says(page):
    """At 0.5 one breast has a false positive, two have a missed lesion, one has a hit."""
    shown = {}
    for value in ("false", "missed", "hit", "all"):
        choose(page, "#kind", value)
        shown[value] = [text.split(" ")[1][:2] for text in texts(page, ".card h3")]
    assert shown == {
        "false": [EVIL[:2]],
        "missed": [EVIL[:2], "P2"],
        "hit": [EVIL[:2]],
        "all": [EVIL[:2], "P2", "P3"],
    }


def test_views_stand_side_by_side(page):
    first, second = page.find_elements("css selector", ".card:first-child .view")[:2]
    assert [first.text.split("\n")[0], second.text.split("\n")[0]] == ["L CC", "L MLO"]
    assert first.location["y"] == second.location["y"]
    assert first.location["x"] + first.size["width"] <= second.location["x"]


def test_filters_and_search(page):
    choose(page, "#kind", "all")
    choose(page, "select[data-filter=density]", "C")
    assert texts(page, ".card h3") == ["patient P2", "patient P3"]
    page.find_element("id", "search").send_keys("p3")
    assert texts(page, ".card h3") == ["patient P3"]
    assert page.find_element("id", "shown").text == "1 of 1 shown"


def test_pictures_are_put_in_when_seen(page):
    image = page.find_element("css selector", ".frame image")
    page.execute_script("arguments[0].scrollIntoView()", image)
    page.execute_async_script("setTimeout(arguments[0], 300)")
    assert image.get_attribute("href").startswith("data:image/jpeg;base64,/9j/")


def test_a_printed_page_has_all_its_pictures(page):
    choose(page, "#kind", "all")
    page.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    images = page.find_elements("css selector", ".frame image")
    assert len(images) == 4
    assert all(image.get_attribute("href").startswith("data:image/jpeg") for image in images)


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_boxes_can_be_read_and_stay_inside(page, width):
    """At least ten pixels high on every screen, in both views of a card."""
    page.set_window_size(width, 900)
    page.refresh()
    choose(page, "#kind", "all")
    heights, outside = page.execute_script("""
        const texts = [...document.querySelectorAll(".frame text")];
        const box = (e) => e.getBoundingClientRect();
        const isOut = (e) => box(e).left < box(e.closest("svg")).left - 1
            || box(e).right > box(e.closest("svg")).right + 1;
        return [texts.map((e) => box(e).height), texts.filter(isOut).length];
    """)
    page.set_window_size(1280, 900)
    assert len(heights) == 3 and min(heights) >= 10 and outside == 0


def test_a_column_has_as_many_decimals_as_it_needs(page):
    """Of 0.5, none and 0.75: two; what does not exist stands under the numbers."""
    cells = page.find_elements("css selector", "#table-by_class tbody td:last-child")
    assert [cell.text for cell in cells] == ["0.50", "-", "0.75"]
    assert {cell.get_attribute("class") for cell in cells} == {"number"}
    assert texts(page, "#table-by_class tbody td:nth-child(2)") == ["2", "10", "1"]


@pytest.mark.parametrize("width", [390, 1600])
def test_page_is_not_wider_than_the_screen(page, width):
    page.set_window_size(width, 900)
    inner, outer = page.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    page.set_window_size(1280, 900)
    assert inner <= outer
