# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``make demo`` with few images and two steps: every file promised, and nothing overwritten."""

from functools import partial
from pathlib import Path

import cv2

from detrex_mammo.data.demo import DemoOptions, build_demo_dataset
from detrex_mammo.engine import demo

PROMISED = (
    "loss_curve.png",
    "froc_curve.png",
    "metrics.json",
    "model_final.pth",
    "config.yaml",
    "results.txt",
)
TINY = (
    "train.max_iter=2",
    "train.log_period=1",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.mapper.augmentations.1.height=96",
    "dataloader.test.mapper.augmentations.0.height=96",
)


def test_demo_leaves_what_it_promises(tmp_path: Path, monkeypatch, capsys) -> None:
    options = DemoOptions(train_images=4, val_images=8)
    build = partial(build_demo_dataset, options=options, workers=1, progress=False)
    monkeypatch.setattr(demo, "build_demo_dataset", build)
    out, data = tmp_path / "demo", tmp_path / "data"
    results = demo.run_demo(out, data, TINY)
    for name in PROMISED:
        assert (out / name).stat().st_size > 0, name
    pictures = sorted((out / "predictions").glob("*.png"))
    assert len(pictures) == 8 and cv2.imread(str(pictures[0])).ndim == 3
    printed = capsys.readouterr().out
    assert "without training" in printed and str(out.resolve()) in printed
    # the shipped checkpoint was loaded: two steps from random weights find nothing
    assert results["trained"]["bbox/AR100"] > results["untrained"]["bbox/AR100"]

    before = {name: (out / name).read_bytes() for name in PROMISED}
    demo.run_demo(out, data, TINY)
    aside = tmp_path / "demo_before"
    assert {name: (aside / name).read_bytes() for name in PROMISED} == before
    assert (out / "results.txt").exists()
