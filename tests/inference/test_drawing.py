# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The picture of predictions beside the truth: right places, right colours, nothing covered."""

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.inference import drawing
from detrex_mammo.inference.canvas import KINDS, Canvas, stretch
from detrex_mammo.inference.drawing import draw_predictions

TRUTH = {"boxes": [[100, 100, 200, 180], [300, 400, 340, 450]], "classes": [0, 1]}
FOUND = {
    "boxes": [[105, 95, 205, 190], [20, 500, 90, 560], [110, 100, 190, 170], [5, 5, 9, 9]],
    "scores": [0.9, 0.6, 0.5, 0.1],
    "classes": [0, 1, 0, 0],
}
NAMES = ["mass", "calcification"]


@pytest.fixture
def canvases(monkeypatch):
    """Every Canvas that was drawn on, with what was asked of it."""
    made = []

    class Kept(Canvas):
        def __init__(self, *args):
            super().__init__(*args)
            self.asked, self.labels, self.note = [], [], None
            made.append(self)

        def boxes(self, column, boxes, kinds, labels):
            self.asked.append((column, list(kinds), list(labels)))
            super().boxes(column, boxes, kinds, labels)

        def _label(self, column, box, colour, text, taken):
            place = super()._label(column, box, colour, text, taken)
            self.labels.append((place, [t for t in taken if t is not place]))
            return place

        def legend(self, kinds, note):
            self.note = note
            super().legend(kinds, note)

    monkeypatch.setattr(drawing, "Canvas", Kept)
    return made


def grey(height=600, width=400, value=60.0):
    """A flat image with one bright pixel, so that it is not stretched to white."""
    image = np.full((height, width), value, dtype=np.float32)
    image[: height // 20] = 255.0
    return image


def test_kinds_and_labels(canvases):
    """One lesion found, one missed; one prediction right, one elsewhere, one on the same lesion.

    The prediction of score 0.1 is below the threshold.
    """
    picture = draw_predictions(grey(), FOUND, TRUTH, NAMES, simulated=True)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    (canvas,) = canvases
    assert canvas.asked == [
        (0, ["found", "missed"], ["mass", "calcification"]),
        (1, ["hit", "false", "again"], ["mass 0.90", "calcification 0.60", "mass 0.50"]),
    ]
    assert canvas.note == "simulated lesions"


def test_not_said_to_be_simulated(canvases):
    draw_predictions(grey(), FOUND, TRUTH, NAMES)
    assert canvases[0].note == ""


def test_boxes_stand_where_they_belong():
    """Every side of a box, and nothing of it elsewhere, at 1.5 picture pixels an image pixel."""
    truth = {"boxes": [[100, 200, 300, 400]]}
    size = (900, 800)
    empty = {"boxes": np.zeros((0, 4)), "scores": []}
    blank = Canvas(grey(), 2, size)
    colour = np.array([int(KINDS["missed"][0][i : i + 2], 16) for i in (1, 3, 5)])
    picture = draw_predictions(grey(), empty, truth, panel_size=size).astype(int)
    left, top = blank._corner(0)
    yellow = (np.abs(picture - colour).sum(axis=2) < 90)[top : top + 900, left : left + 600]
    rows, columns = np.nonzero(yellow[280:])  # below the label
    assert abs(columns.min() - (150 - 2.5)) <= 2 and abs(columns.max() - (450 + 2.5)) <= 2
    assert abs(rows.max() + 280 - (600 + 2.5)) <= 2
    inside = yellow[310:590, 160:440]
    assert not inside.any()


def test_labels_leave_boxes_and_each_other_free(canvases):
    rng = np.random.default_rng(0)
    corners = rng.uniform([0, 0], [330, 530], (12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (12, 2))], axis=1)
    found = {"boxes": boxes, "scores": np.linspace(0.9, 0.4, 12)}
    draw_predictions(grey(), found, {"boxes": boxes[:3]}, NAMES, title="twelve")
    covered = [
        sum(_overlap(place, other) for other in taken) for place, taken in canvases[0].labels
    ]
    assert len(covered) == 15
    assert np.median(covered) == 0 and max(covered) < 400  # crowded: a corner at most


def _overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_labels_of_boxes_at_the_edges_stay_inside(canvases):
    """Boxes in the four corners: each label has a place inside the image."""
    corners = [[0, 0, 40, 40], [360, 0, 400, 40], [0, 560, 40, 600], [360, 560, 400, 600]]
    draw_predictions(grey(), {"boxes": corners, "scores": [0.9] * 4}, None, NAMES)
    (canvas,) = canvases
    left, top = canvas._corner(0)
    for (x1, y1, x2, y2), taken in canvas.labels:
        assert left <= x1 and top <= y1
        assert x2 <= left + canvas.shape[1] and y2 <= top + canvas.shape[0]
        assert sum(_overlap((x1, y1, x2, y2), other) for other in taken) == 0


@pytest.mark.parametrize("shape", [(48, 32), (4000, 3000), (100, 2000), (2000, 100), (600, 400, 3)])
def test_any_size(shape):
    image = np.random.default_rng(1).uniform(0, 255, shape)
    height, width = shape[:2]
    box = [[0.2 * width, 0.2 * height, 0.6 * width, 0.5 * height]]
    picture = draw_predictions(
        image, {"boxes": box, "scores": [0.7]}, {"boxes": box}, title="any size", simulated=True
    )
    assert 150 <= picture.shape[0] <= 1100 and 800 <= picture.shape[1] <= 1700


def test_without_truth_and_without_predictions(canvases):
    empty = {"boxes": [], "scores": []}
    assert (
        draw_predictions(grey(), empty).shape[1] < draw_predictions(grey(), empty, TRUTH).shape[1]
    )
    assert [len(canvas.asked) for canvas in canvases] == [1, 2]
    draw_predictions(np.zeros((60, 40)), empty, {"boxes": []})
    draw_predictions(grey(), FOUND, None, NAMES)
    assert canvases[-1].asked == [
        (0, ["plain"] * 3, ["mass 0.90", "calcification 0.60", "mass 0.50"])
    ]


def test_tensors_are_taken():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.as_tensor(values) for name, values in FOUND.items()}
    same = draw_predictions(grey(), FOUND, TRUTH, NAMES)
    np.testing.assert_array_equal(draw_predictions(grey(), tensors, TRUTH, NAMES), same)


def test_input_is_not_changed_and_picture_is_repeatable():
    image = grey()
    before = image.copy()
    first = draw_predictions(image, FOUND, TRUTH, NAMES)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(draw_predictions(image, FOUND, TRUTH, NAMES), first)


def test_dollar_signs_and_unknown_classes_are_plain_text(canvases):
    found = {"boxes": [[1, 1, 50, 50]], "scores": [0.9], "classes": [7]}
    draw_predictions(grey(), found, None, NAMES, title="cost $5 and $6_x")
    assert canvases[0].asked[0][2] == ["class 7 0.90"]


def test_broken_predictions():
    with pytest.raises(UserError, match="score nan"):
        draw_predictions(grey(), {"boxes": [[1, 1, 5, 5]], "scores": [np.nan]}, TRUTH)
    with pytest.raises(UserError, match="rule"):
        draw_predictions(grey(), FOUND, TRUTH, rule="touching")


def test_stretch():
    """Rising grey stays rising; dark pictures become brighter, bright ones keep their structure."""
    ramp = np.linspace(0, 100, 1000, dtype=np.float32).reshape(20, 50)
    stretched = stretch(ramp).astype(int).ravel()
    assert (np.diff(stretched) >= 0).all() and stretched[0] == 0 and stretched[-1] == 255
    bright = np.full((50, 50), 230.0)
    bright[:5] = 255.0
    assert 60 < stretch(bright)[25, 25] < 200
    assert stretch(np.zeros((4, 4))).max() == 0
