# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The environment of a process that torchrun has started, or has not."""

import socket

import pytest

from detrex_mammo.engine import launch as launching
from detrex_mammo.engine import rendezvous
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.errors import UserError
from tests.engine.test_machines import Clock


def put_torchruns(monkeypatch, **variables: str) -> None:
    """The variables of one process of torchrun, with others in their place."""
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", **variables}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "name, value",
    [("RANK", "one"), ("RANK", "2"), ("WORLD_SIZE", ""), ("LOCAL_RANK", "-1"),
     ("LOCAL_WORLD_SIZE", "0")],
)  # fmt: skip
def test_wrong_variables_of_torchrun_are_one_sentence(name: str, value: str, monkeypatch) -> None:
    put_torchruns(monkeypatch, **{name: value})
    with pytest.raises(UserError, match=f"can have .*{name}={value}.* unset RANK, WORLD_SIZE"):
        launch(int, World())


@pytest.mark.parametrize("port", ["", "0", "port"])
def test_torchrun_without_a_port_is_one_sentence(port: str, monkeypatch) -> None:
    put_torchruns(monkeypatch, RANK="0", MASTER_PORT=port)
    with pytest.raises(UserError, match="MASTER_ADDR:MASTER_PORT is 'tcp://127.0.0.1:.*must be"):
        launch(int, World())


def test_variables_left_of_another_torchrun_are_not_waited_for_in_silence(
    monkeypatch,
) -> None:
    """As in a shell that a job of torchrun has opened: nobody listens at the address any more."""
    monkeypatch.setenv(rendezvous.VARIABLE, "0.5")
    monkeypatch.setattr(rendezvous, "time", Clock())
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        put_torchruns(monkeypatch, MASTER_PORT=str(held.getsockname()[1]))
        with pytest.raises(UserError, match="waited 0.5 seconds .* has not started this process"):
            launch(int, World())


def test_process_of_torchrun_that_loses_another_at_its_very_end_tells_it(monkeypatch) -> None:
    """Its own work is done, and it waits for the other."""

    def lose() -> None:
        raise RuntimeError("Connection closed by peer")

    put_torchruns(monkeypatch)
    monkeypatch.setattr(launching, "torchruns_store", lambda rank: None)
    monkeypatch.setattr(launching, "join", lambda *arguments: None)
    monkeypatch.setattr(launching.comm, "synchronize", lose)
    with pytest.raises(UserError, match="process 1 of 2 has lost the connection to another one"):
        launch(int, World())
