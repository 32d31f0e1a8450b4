# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The loss curve: what is read from a run's metrics file, and that it can be drawn."""

import json

import cv2
import numpy as np
import pytest

from detrex_mammo.engine.loss_plot import plot_losses, read_losses, smooth
from detrex_mammo.errors import UserError


def write(path, lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_resumed_run_keeps_the_last_written(tmp_path):
    """Iterations 0, 20, 40, killed, resumed from 20: 20 and 40 are written twice."""
    rows = [(0, 5.0), (20, 4.0), (40, 3.0), (20, 4.5), (40, 3.5), (60, 2.0)]
    lines = [{"iteration": i, "total_loss": v, "lr": 1e-4} for i, v in rows]
    losses = read_losses(write(tmp_path / "m.json", lines))
    assert list(losses) == ["total_loss"]
    iterations, values = losses["total_loss"]
    assert iterations.tolist() == [0, 20, 40, 60]
    assert values.tolist() == [5.0, 4.5, 3.5, 2.0]


def test_other_lines_are_passed_over(tmp_path):
    """An evaluation, a NaN, a broken line in the middle and one cut short at the end."""
    lines = [
        {"iteration": 0, "loss_class": 1.0, "data_time": 0.1},
        {"bbox/AP": 3.0, "iteration": 1},
        '{"iteration": 2, "loss_class": NaN}',
        "[1]",
        "",
        {"iteration": 3, "loss_class": 2.0},
        '{"iteration": 4, "loss_cl',
    ]
    (iterations, values) = read_losses(write(tmp_path / "m.json", lines))["loss_class"]
    assert iterations.tolist() == [0, 3] and values.tolist() == [1.0, 2.0]


def test_smooth_by_hand():
    """Values 0 and 1 one span apart: weights 1/e and 1, so the mean is 1 / (1 + 1/e)."""
    got = smooth(np.array([0, 10]), np.array([0.0, 1.0]), span=10)
    np.testing.assert_allclose(got, [0, 1 / (1 + np.exp(-1))], rtol=1e-12)
    constant = np.full(9, 3.25)
    np.testing.assert_allclose(smooth(np.arange(9) ** 2, constant, 5), constant, rtol=1e-12)
    assert smooth(np.arange(3), np.arange(3.0), 0).tolist() == [0, 1, 2]
    assert smooth(np.zeros(0, int), np.zeros(0), 5).size == 0


@pytest.mark.parametrize("number", [1, 2, 50])
def test_drawn(tmp_path, number):
    terms = ("total_loss", "loss_class", "loss_bbox", "loss_giou", "loss_class_0")
    lines = [{"iteration": 20 * i, **{t: 1 / (i + 1) for t in terms}} for i in range(number)]
    plot_losses(write(tmp_path / "m.json", lines), tmp_path / "loss.png", title="demo")
    assert cv2.imread(str(tmp_path / "loss.png")).std() > 5


def test_drawn_without_total_or_known_terms(tmp_path):
    write(tmp_path / "m.json", [{"iteration": 0, "loss_other": 2.0}])
    plot_losses(tmp_path / "m.json", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_losses(tmp_path / "none.json")
    write(tmp_path / "m.json", [{"iteration": 0, "lr": 1.0}])
    with pytest.raises(UserError, match="no losses"):
        plot_losses(tmp_path / "m.json", tmp_path / "loss.png")
