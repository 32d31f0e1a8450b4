# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""For every test: one thread, no GPU of the machine's needed, no screen, the same seed."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers and child processes share the cores
os.environ.setdefault("MPLBACKEND", "Agg")

import logging  # noqa: E402
import random  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# The same examples in every run, on a busy machine too; --hypothesis-profile=default draws others.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def open_handlers() -> None:
    """A tool that ran in an earlier test's process leaves handlers with that test's output."""
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in known:
        for handler in list(getattr(logger, "handlers", ())):
            if type(handler) is logging.StreamHandler and getattr(handler.stream, "closed", False):
                logger.removeHandler(handler)
