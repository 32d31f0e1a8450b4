# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``make demo``: from eight real mammograms to a trained, evaluated detector and its pictures."""

import json
import math
import time
from pathlib import Path
from typing import Any

from detrex_mammo.data.demo import build_demo_dataset
from detrex_mammo.engine.evaluation import flatten
from detrex_mammo.engine.folder import holds_a_run, numbered
from detrex_mammo.engine.loss_plot import plot_losses
from detrex_mammo.engine.main import main as train_net
from detrex_mammo.engine.report import FOLDER
from detrex_mammo.evaluation.froc import FrocCurve
from detrex_mammo.evaluation.froc_plot import plot_froc
from detrex_mammo.evaluation.summary import headline_table
from detrex_mammo.inference.gallery import draw_gallery

CONFIG = "projects/mammography/configs/demo.py"
# Predictions are drawn down to the score that has so many false positives per image.
DRAWN_FPPI = 0.5
NOTE = "simulated lesions in real mammograms of a patient that was not trained on"


def run_demo(out: Path, data: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Make the dataset, train, evaluate before and after, and draw.

    Args:
        out: results; an earlier demo there is moved aside, not overwritten.
        data: the demo dataset; made if it is not there.
        overrides: further ``key=value`` settings of the config.

    Returns:
        dict: ``trained`` and ``untrained`` results, flat.
    """
    start = time.perf_counter()
    _step(1, "the dataset: simulated lesions in 8 real mammograms")
    build_demo_dataset(data)
    if holds_a_run(out):
        aside = numbered(out.parent, f"{out.name}_before")
        out.rename(aside)
        print(f"the earlier demo is now {aside}")
    settings = [*_dataset_settings(data), *overrides]
    _step(2, "the same network without training, to compare with")
    _train_net(
        "--eval-only",
        f"train.output_dir={out / 'untrained'}",
        "train.init_checkpoint=''",
        "train.report=False",
        *settings,
    )
    _step(3, "training, starting from the small checkpoint that the repository ships")
    _train_net(f"train.output_dir={out}", *settings)
    _step(4, "pictures")
    trained = _last_results(out / "metrics.json")
    untrained = _last_results(out / "untrained" / "eval" / "metrics.json")
    _draw(out, data)
    table = headline_table(trained, untrained)
    (out / "results.txt").write_text(f"{NOTE}\n{table}\n", encoding="utf-8")
    print(f"\n{NOTE}:\n\n{table}\n")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; everything is in {out.resolve()}")
    print(f"look at {(out / FOLDER / 'index.html').resolve()}")
    return {"trained": trained, "untrained": untrained}


def _step(number: int, text: str) -> None:
    print(f"\n=== {number}/4  {text}", flush=True)


def _train_net(*arguments: str) -> None:
    train_net(["--config-file", CONFIG, *arguments])


def _dataset_settings(data: Path) -> list[str]:
    settings = []
    for loader, split in (("train", "train"), ("test", "val")):
        key = f"dataloader.{loader}.dataset"
        settings += [f"{key}.json_file={data / f'{split}.json'}", f"{key}.image_root={data}"]
    return settings


def _last_results(path: Path) -> dict[str, float]:
    """The numbers of the last evaluation in a metrics file."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        numbers = flatten({k: v for k, v in json.loads(line).items() if v is not None})
        if any(name.startswith("froc/") for name in numbers):
            return numbers
    raise AssertionError(f"{path} holds no evaluation")


def _draw(out: Path, data: Path) -> None:
    curves = {
        "after training": _read_curve(out / "froc.json"),
        "without training": _read_curve(out / "untrained" / "eval" / "froc.json"),
    }
    plot_losses(out / "metrics.json", out / "loss_curve.png", title="demo")
    plot_froc(curves, out / "froc_curve.png", title="demo", note=NOTE)
    threshold = min(curves["after training"].threshold_at(DRAWN_FPPI), 1.0)  # inf: draw nothing
    draw_gallery(
        data / "val.json",
        out / "coco_instances_results.json",
        data,
        out / "predictions",
        score_threshold=math.floor(threshold * 1000) / 1000,
    )


def _read_curve(path: Path) -> FrocCurve:
    return FrocCurve.from_dict(json.loads(path.read_text(encoding="utf-8"))["overall"])
