# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/diff_config.py: what is told, what is not, and the exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from detrex_mammo.config import find_shipped
from detrex_mammo.engine.config_diff import differences, format_differences, read_text
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]


def test_by_hand() -> None:
    """``b`` follows ``a`` in both, so ``a`` alone is told; ``e`` is 1 in both, however written."""
    one = "a: 1\nb: ${a}\nc: {d: [1, 2]}\ne: 1\ng: true\nh: x\n"
    other = "a: 2\nb: ${a}\nc: {d: [1, 3, 4]}\ne: ${i}\ng: 1\ni: 1\n"
    assert differences(one, other) == [
        ("a", 1, 2),
        ("c.d.1", 2, 3),
        ("g", True, 1),
        ("h", "x", "(not set)"),
        ("c.d.2", "(not set)", 4),
        ("i", "(not set)", 1),
    ]
    assert differences(one, one) == []


def test_empty_groups_are_values() -> None:
    assert differences("a: []\nb: {}\n", "a: [1]\nb: {}\n") == [
        ("a", [], "(not set)"),
        ("a.0", "(not set)", 1),
    ]


def test_the_table() -> None:
    rows = [("a.b", None, "x" * 70), ("c", 1e-5, [1, "two"])]
    assert format_differences(rows, ("A", "B")).splitlines() == [
        "key  A        B",
        "a.b  null     " + "x" * 57 + "...",
        "c    1.0e-05  [1, two]",
    ]


def test_a_config_its_run_and_its_checkpoint_are_the_same(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    main(["--config-file", config])
    texts = [read_text(s) for s in (config, f"{tmp_path}/run", f"{tmp_path}/run/model_final.pth")]
    assert differences(texts[0], texts[1]) == differences(texts[1], texts[2]) == []


@pytest.mark.parametrize("source", ["no/such.yaml", "."])
def test_what_is_no_run_is_one_sentence(source: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist|holds no config.yaml"):
        read_text(source)


def test_a_cut_config_is_one_sentence(tmp_path: Path) -> None:
    """Cut where ``train`` would begin, to which the evaluator's folder refers."""
    text = read_text(write_config(tmp_path))
    (tmp_path / "cut.yaml").write_text(text[text.index("model:") :].replace("train:", "rest:"))
    path = tmp_path / "cut.yaml"
    with pytest.raises(UserError, match="cut.yaml' is not whole: dataloader.evaluator.output_dir"):
        read_text(str(path))


def test_exit_codes(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("train: {seed: 1, max_iter: 2}\n")
    other.write_text("train: {seed: 3, max_iter: 2}\n")

    def call(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, str(ROOT / "tools/diff_config.py"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert "Traceback" not in result.stderr
        return result.returncode, result.stdout

    code, text = call(str(one), str(other))
    assert code == 1 and text.splitlines()[1].split() == ["train.seed", "1", "3"]
    assert call(str(one), str(other), "--ignore", "train.seed")[0] == 0
    assert call(str(one), str(one)) == (0, "no setting differs\n")
    assert call(str(one), str(tmp_path))[0] == 2
