# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detrex_mammo.inference.gallery import draw_gallery


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Eight images of 80x60; 1 to 4 have one lesion, 5 to 8 none."""
    images = []
    for number in range(1, 9):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((80, 60), 20_000, np.uint16))
        image = {"id": number, "file_name": f"{number}.png", "height": 80, "width": 60}
        images.append({**image, "breast_box": [10, 20, 60, 80], "patient_id": "p"})
    annotations = [
        {"id": n, "image_id": n, "category_id": 5, "bbox": [20, 30, 12, 14]} for n in range(1, 5)
    ]
    categories = [{"id": 5, "name": "mass"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = [{"image_id": 1, "category_id": 5, "bbox": [20, 30, 12, 14], "score": 0.9}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def draw(folder: Path, count: int) -> list[Path]:
    return draw_gallery(
        folder / "truth.json", folder / "results.json", folder, folder / "out", count
    )


def test_a_quarter_of_the_pictures_has_no_lesion(dataset: Path) -> None:
    assert [path.stem for path in draw(dataset, 4)] == ["1", "2", "3", "5"]
    assert [path.stem for path in draw(dataset, 99)] == [str(number) for number in range(1, 9)]
    assert draw(dataset, 0) == []


def test_boxes_are_drawn_where_they_lie_in_the_crop(dataset: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "detrex_mammo.inference.gallery.draw_predictions",
        lambda pixels, predictions, truth, **more: (
            seen.append((pixels.shape, predictions, truth, more)) or np.zeros((4, 4, 3), np.uint8)
        ),
    )
    draw(dataset, 1)
    shape, predictions, truth, more = seen[0]
    assert shape == (60, 50)
    # (20, 30) in the image is (10, 10) in the crop from (10, 20)
    np.testing.assert_array_equal(truth["boxes"], [[10, 10, 22, 24]])
    np.testing.assert_array_equal(predictions["boxes"], [[10, 10, 22, 24]])
    assert more["class_names"] == ["mass"] and truth["classes"].tolist() == [0]


def test_pictures_are_colour_png(dataset: Path) -> None:
    picture = cv2.imread(str(draw(dataset, 1)[0]))
    assert picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0
