# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How processes find each other: through a store at one address, and nobody waits silently.

The process that starts the others on the machine with rank 0 keeps the store, on a port that it has
before anybody else hears of it; so two runs on one machine never meet.
"""

import hashlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

from torch import distributed as dist

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
VARIABLE = "DETREX_MAMMO_JOIN_SECONDS"
JOIN_SECONDS = 1800.0  # machines of a cluster do not start together
TELL_SECONDS = 30.0  # between two lines about what is waited for
LOOK_SECONDS = 0.2
REACH_SECONDS = 5.0  # for one attempt to reach the store
_HERE = "detrex_mammo/here"


def join_seconds() -> float:
    """How long processes wait for each other at the start, from the environment.

    Raises:
        UserError: it is no time.
    """
    text = os.environ.get(VARIABLE, str(JOIN_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{VARIABLE} is {text!r}, but must be a number of seconds above 0")
    return seconds


def parse_address(url: str) -> tuple[str, int]:
    """Host and port of ``--dist-url``.

    Raises:
        UserError: it is not of the form tcp://HOST:PORT.
    """
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    if not url.startswith("tcp://") or not host or not port.isdecimal() or int(port) > 65535:
        raise UserError(
            f"--dist-url is {url!r}, but must be tcp://HOST:PORT of the machine with rank 0"
        )
    return host, int(port)


def open_store(host: str, port: int) -> dist.TCPStore:
    """Keep the store, on the machine with rank 0.

    Args:
        host: a name of this machine.
        port: 0 for any that is free.

    Raises:
        UserError: the port is taken, or the host is another machine.
    """
    try:
        store = dist.TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"port {port} of this machine cannot be used by --dist-url ({_first_line(error)}): "
            "another run may have it, so take another port"
        ) from error
    try:
        _reach(host, store.port)
    except OSError as error:
        raise UserError(
            f"--dist-url names {host!r}, which this machine cannot reach ({error}), although it "
            "has --machine-rank 0: give this machine's own name or address"
        ) from error
    return store


def wait_for_store(host: str, port: int) -> None:
    """Wait until the machine with rank 0 has opened the store.

    Raises:
        UserError: it has not in time, or there is no such host.
    """
    problem = "nothing was tried"

    def is_there() -> bool:
        nonlocal problem
        try:
            _reach(host, port)
        except socket.gaierror as error:
            raise UserError(
                f"--dist-url names {host!r}, which is not known here ({error.strerror}): give "
                "the name or address of the machine with rank 0"
            ) from error
        except OSError as error:
            problem = error.strerror or str(error)
            return False
        return True

    _wait(is_there, lambda: f"the machine with rank 0 at {host}:{port} ({problem})")


def enter(host: str, port: int) -> dist.TCPStore:
    """The store, for one of the processes.

    Raises:
        UserError: it is not there.
    """
    try:
        return dist.TCPStore(host, port, timeout=timedelta(seconds=join_seconds()))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{host}:{port} of --dist-url cannot be used ({_first_line(error)}): see what the "
            "machine with rank 0 says"
        ) from error


def claim(store: dist.Store, rank: int) -> None:
    """Raise UserError if another process has the same rank."""
    if store.add(f"detrex_mammo/claimed/{rank}", 1) > 1:
        raise UserError(
            f"two processes have rank {rank}: give each machine its own --machine-rank, and all "
            "the same --num-machines and --num-gpus"
        )


def meet(store: dist.Store, rank: int, world_size: int, local_size: int) -> dist.Store:
    """Wait until all processes are here, and know of each other.

    torchrun keeps its store when it starts lost processes again, with all that earlier ones have
    put there. So each comes with a word of its own, and all must have seen the words of all.

    Args:
        store: common to all.
        rank: of this process.
        world_size: number of processes.
        local_size: of them on each machine.

    Returns:
        Store: common to these processes alone.

    Raises:
        UserError: some have not come in time.
    """
    own = uuid.uuid4().hex
    here = [f"{_HERE}/{other}" for other in range(world_size)]
    store.set(here[rank], own)
    seen = here

    def is_over() -> bool:
        nonlocal seen
        if not store.check(here):
            return False
        words = [word.decode() for word in store.multi_get(here)]
        seen = [f"{_HERE}/{_digest(words)}/{other}" for other in range(world_size)]
        if words[rank] == own:
            store.set(seen[rank], "1")
        return store.check(seen)

    def describe() -> str:
        missing = [other for other, name in enumerate(seen) if not store.check([name])]
        machines = sorted({other // local_size for other in missing})
        return (
            f"{len(missing)} of {world_size} processes, of the machine(s) with rank "
            f"{', '.join(map(str, machines))}"
        )

    _wait(is_over, describe, tell=rank % local_size == 0)
    return dist.PrefixStore(seen[0], store)


def _digest(words: list[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def _wait(is_over: Callable[[], bool], describe: Callable[[], str], tell: bool = True) -> None:
    """Look again and again; say now and then what is waited for."""
    limit, begin = join_seconds(), time.monotonic()
    told = begin
    while not is_over():
        now = time.monotonic()
        if now - begin > limit:
            raise UserError(
                f"waited {limit:g} seconds for {describe()}: start the same command there, with "
                f"its own --machine-rank, or set {VARIABLE} to wait longer"
            )
        if now - told > TELL_SECONDS:
            told = now
            if tell:
                logger.warning("waiting for %s, for %.0f seconds", describe(), limit + begin - now)
        time.sleep(LOOK_SECONDS)


def _reach(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=REACH_SECONDS).close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
