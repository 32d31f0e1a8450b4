# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A small report whose numbers can be counted by hand."""

import cv2
import numpy as np

from detrex_mammo.evaluation.report.content import (
    Card,
    Counter,
    Lesion,
    Mark,
    Number,
    Plot,
    Report,
    Table,
    View,
)

EVIL = "</script><img src=x onerror=\"document.title='owned'\">&amp;"


def picture(view):
    """A grey JPEG of the frame's shape, a tenth of its size."""
    x0, y0, x1, y1 = view.frame
    pixels = np.full(((y1 - y0) // 10, (x1 - x0) // 10), 90, np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def view(title, lesions=(), marks=(), frame=(0, 0, 300, 400)):
    """A view with boxes of 30 x 40 pixels; a lesion is its score, a mark (score, outcome)."""
    return View(
        title,
        title,
        frame,
        [Lesion((10 + 50 * i, 20, 30, 40), "mass", score) for i, score in enumerate(lesions)],
        [
            Mark((12 + 50 * i, 24, 30, 40), "mass", s, outcome)
            for i, (s, outcome) in enumerate(marks)
        ],
    )


def report(title="A report", patient="P1"):
    """Four images, three lesions: two hit (0.9, 0.4), one missed; false positives 0.8, 0.3, 0.2."""
    cards = [
        Card(
            f"patient {patient}",
            {"density": "B"},
            [
                view("L CC", [0.9], [(0.9, "hit"), (0.3, "false")]),
                view("L MLO", [None], [(0.8, "false")]),
            ],
        ),
        Card("patient P2", {"density": "C"}, [view("R CC", [0.4], [(0.4, "hit"), (0.2, "false")])]),
        Card("patient P3", {"density": "C"}, [view("R MLO")]),
    ]
    counter = Counter(
        "lesions", 3, "images", 4, [0.9, 0.4], [0.8, 0.3, 0.2], 0.1, 0.5, "where 0.25 are false"
    )
    rows = [["mass", 2, 0.5], ["calcification", 10, None], ["asymmetry", 1, 0.75]]
    return Report(
        title=title,
        facts=[("data", "four images")],
        numbers=[
            Number("Sensitivity at 1", 2 / 3, 0.25, 1.0, "centre in box", "3 lesions in 4 images"),
            Number("AP50", 0.5, None, None, "IoU 0.5", "3 lesions", percent=True),
            Number("AUC", float("nan"), float("nan"), float("nan"), "image", "no negative image"),
        ],
        plots=[Plot("froc", "FROC", lambda: "<svg viewBox='0 0 1 1'></svg>", "steps")],
        counter=counter,
        tables=[Table("by_class", "By class", "of all", ["class", "lesions", "sens"], rows)],
        cards=cards,
        note="simulated lesions",
        gallery_note="All 4 images.",
    )
