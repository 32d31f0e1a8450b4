# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One test set or several by name: numbers, files and records."""

import json
from pathlib import Path

import pytest

from detrex_mammo.config import load_config
from detrex_mammo.engine.evaluation import evaluated_datasets, format_results
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from detrex_mammo.zoo.run_folder import read_run_folder
from tests.engine.tiny import read_lines, write_config

TWO = """
def _test(count):
    return L(build_detection_test_loader)(
        dataset=L(tiny_dataset)(num_images=count), mapper=L(TinyMapper)(), num_workers=0,
    )
dataloader["test"] = dict(near=_test(5), far=_test(3))
dataloader["evaluator"] = dict(
    near=L(TinyEvaluator)(output_dir="${train.output_dir}/near"),
    far=L(TinyEvaluator)(output_dir="${train.output_dir}/far"),
)
"""


def write_two(folder: Path) -> str:
    config = Path(write_config(folder))
    config.write_text(config.read_text() + TWO)
    return str(config)


def test_numbers_of_several_sets_have_their_names(tmp_path: Path, capsys) -> None:
    """The near set of 5 images is that of the plain config: its numbers are the same."""
    (tmp_path / "one").mkdir()
    main(["--config-file", write_config(tmp_path / "one"), "train.eval_loss=True"])
    config = write_two(tmp_path)
    main(["--config-file", config, "train.eval_loss=True", "train.best.metric=far/val/loss"])
    run = tmp_path / "run"
    plain = tmp_path / "one/run/metrics.json"
    for key in ("tiny/error", "val/loss", "total_loss"):
        name = key if key == "total_loss" else f"near/{key}"
        assert read_lines(run / "metrics.json", name) == read_lines(plain, key)
    assert read_lines(run / "metrics.json", "far/tiny/count") == [3.0] * 3
    assert "near/tiny/error" in (run / "log.txt").read_text()
    for name, count in (("near", 5), ("far", 3)):
        assert len(json.loads((run / name / "predictions.json").read_text())) == count
    assert (run / "model_best.pth").exists()
    recorded = json.loads((run / "run.json").read_text())["evaluation"]
    assert set(recorded) == {"finished", "near", "far"}
    assert recorded["far"]["counted_images"] == 1  # of two; the first warms up

    weights = f"train.init_checkpoint={run / 'model_final.pth'}"
    main(["--config-file", config, "--eval-only", weights])
    found = json.loads((run / "eval/metrics.json").read_text())
    assert found["near/tiny/error"] == read_lines(plain, "tiny/error")[-1]
    for folder in (run, run / "eval"):
        assert read_run_folder(folder).metrics["far/tiny/count"] == 3


def test_names_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    config = write_two(tmp_path)
    for arguments, expected in (
        (["dataloader.evaluator.far=null"], "test has near, far and .*evaluator has near: name"),
        (["dataloader.test=null"], "dataloader.test is not set"),
        (["dataloader.test.far=null", "dataloader.test.near=null"], "dataloader.test is not set"),
        (
            [
                "dataloader.evaluator.far.output_dir=same",
                "dataloader.evaluator.near.output_dir=same",
            ],
            "share output_dir 'same'",
        ),
    ):
        with pytest.raises(UserError, match=expected):
            main(["--config-file", config, "--eval-only", *arguments])
    text = Path(config).read_text()
    Path(config).write_text(text.replace("    far=L(TinyEvaluator)", "    away=L(TinyEvaluator)"))
    with pytest.raises(UserError, match="test has near, far and .*evaluator has near, away"):
        main(["--config-file", config, "--eval-only"])
    single = text.replace('dataloader["evaluator"] = dict', "_unused = dict")
    Path(config).write_text(single)
    with pytest.raises(UserError, match="test has near, far and .*evaluator has a single one"):
        main(["--config-file", config, "--eval-only"])


def test_one_of_several_sets_is_left_out_by_null(tmp_path: Path) -> None:
    config = write_two(tmp_path)
    main(["--config-file", config, "--eval-only", "dataloader.test.near=null",
          "dataloader.evaluator.near=null"])  # fmt: skip
    found = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    assert set(found) == {"checkpoint", "far/tiny/error", "far/tiny/count"}


def test_data_sets_are_named_once() -> None:
    cfg = load_config("projects/mammography/configs/demo.py")
    assert evaluated_datasets(cfg.dataloader) == ["demo_val"]
    cfg.dataloader.test = {"a": cfg.dataloader.test.copy(), "b": cfg.dataloader.test.copy()}
    cfg.dataloader.test.b.dataset.name = "b_val"
    cfg.dataloader.evaluator = None
    assert evaluated_datasets(cfg.dataloader) == ["demo_val", "b_val"]


def test_table_is_aligned() -> None:
    results = {"a": {"bbox": {"AP": 1.0, "AP50": 20.25}}, "val": {"loss": 0.5}}
    assert format_results(results).splitlines() == [
        "  a/bbox/AP    1.0000",
        "  a/bbox/AP50  20.2500",
        "  val/loss     0.5000",
    ]
