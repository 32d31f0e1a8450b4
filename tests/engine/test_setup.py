# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The log of a run on a disk that does not take it."""

from pathlib import Path

import pytest

from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config


def test_log_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run/log.txt").mkdir(parents=True)
    with pytest.raises(UserError, match="train.output_dir .*run' cannot be written to"):
        main(["--config-file", write_config(tmp_path)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_log_on_a_full_disk_ends_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").symlink_to("/dev/full")
    main(["--config-file", write_config(tmp_path), "train.max_iter=2"])
    assert (tmp_path / "run/model_final.pth").is_file()
    shown = capsys.readouterr()
    main(["--config-file", write_config(tmp_path, "next"), "train.max_iter=2"])  # has its own log
    assert "step 2/2" in shown.out and "Logging error" not in shown.err
