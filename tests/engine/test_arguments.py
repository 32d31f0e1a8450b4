# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The command line."""

import pytest

from detrex_mammo.engine.arguments import parse_arguments
from detrex_mammo.errors import UserError


def test_flags_after_the_first_override_are_flags() -> None:
    args = parse_arguments(
        ["--config-file", "c.py", "train.max_iter=1", "--num-gpus", "2", "a=b", "--eval-only"]
    )
    assert (args.num_gpus, args.eval_only) == (2, True)
    assert args.overrides == ["train.max_iter=1", "a=b"]


def test_detectron2_flags_exist() -> None:
    flags = "--num-machines 2 --machine-rank 1 --dist-url tcp://host:1 --resume".split()
    args = parse_arguments(["--config-file", "c.py", *flags])
    assert (args.num_machines, args.machine_rank, args.dist_url, args.resume) == (
        2,
        1,
        "tcp://host:1",
        True,
    )


@pytest.mark.parametrize("extra", [["train.max_iter"], ["--resume", "--eval-only"]])
def test_wrong_line_is_one_sentence(extra: list[str]) -> None:
    with pytest.raises(UserError):
        parse_arguments(["--config-file", "c.py", *extra])


def test_unknown_flag_exits_2() -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--config-file", "c.py", "--num-gpu-s", "2"])
    assert caught.value.code == 2
