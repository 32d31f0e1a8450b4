# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pictures of the gallery: the right part, in order, and a broken file costs only itself."""

import cv2
import numpy as np
import pytest

from detrex_mammo.data.image_io import write_png16
from detrex_mammo.evaluation.report.content import View
from detrex_mammo.inference.report_pictures import LONGER_SIDE, ReportPictures


@pytest.fixture
def dataset(tmp_path):
    """Three images of 600 x 900 whose left half is dark and right half bright; one cut in half."""
    images = []
    for number in range(3):
        pixels = np.full((900, 600), 8000, np.uint16)
        pixels[:, 300:] = 40000 + 1000 * number
        write_png16(tmp_path / f"{number}.png", pixels)
        images.append({"id": number, "file_name": f"{number}.png", "width": 600, "height": 900})
    broken = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(broken[: len(broken) // 2])
    return tmp_path, images


@pytest.mark.parametrize("workers", [0, 2])
def test_each_view_gets_its_own_part_in_order(dataset, workers, caplog):
    root, images = dataset
    frames = [(0, 0, 600, 900), (0, 0, 600, 900), (0, 0, 300, 900)]
    views = [View(n, f"view {n}", frame, [], []) for n, frame in enumerate(frames)]
    with ReportPictures(images, root, views, workers=workers) as pictures:
        found = [pictures(view) for view in views]
    assert found[1] is None
    assert "1 images cannot be shown in the report" in caplog.text
    whole, part = (cv2.imdecode(np.frombuffer(f, np.uint8), 0) for f in (found[0], found[2]))
    assert whole.shape == (LONGER_SIDE, 480)
    assert part.shape == (LONGER_SIDE, 240)
    assert whole[:, 300:].mean() > whole[:, :180].mean() + 50
    assert np.ptp(part.astype(int)) < 10


def test_asking_out_of_order_is_our_own_fault(dataset):
    root, images = dataset
    views = [View(n, f"view {n}", (0, 0, 600, 900), [], []) for n in (0, 2)]
    with ReportPictures(images, root, views, workers=1) as pictures:
        with pytest.raises(AssertionError, match="view 2 was asked for, view 0 was next"):
            pictures(views[1])
