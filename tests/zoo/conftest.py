# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Runs that several tests read; made once."""

from pathlib import Path

import pytest

from tests.zoo.run_folders import evaluate_tiny, train_tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training run with its last evaluation."""
    return train_tiny(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def evaluated(trained: Path) -> Path:
    """Folder of an ``--eval-only`` run."""
    return evaluate_tiny(trained)
