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
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_UNSET = f"if torchrun has not started this process, unset {', '.join(_RANKS)}"


def started_by_torchrun() -> bool:
    """Whether torchrun, or anything that sets its variables, started this process."""
    return all(name in os.environ for name in _RANKS)


def torchruns_ranks() -> tuple[int, int, int, int]:
    """Rank, number of processes, rank on this machine, and processes on this machine.

    Raises:
        UserError: torchrun's variables are no such numbers.
    """
    names = (*_RANKS, "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name, os.environ["WORLD_SIZE"]) for name in names]
    if all(text.isdecimal() for text in texts):
        rank, size, local_rank, local_size = map(int, texts)
        if rank < size and local_rank < local_size <= size:
            return rank, size, local_rank, local_size
    given = ", ".join(f"{name}={text}" for name, text in zip(names, texts))
    raise UserError(f"no process can have {given} in its environment: {_UNSET}")


def torchruns_store(rank: int) -> dist.TCPStore:
    """The store that torchrun keeps, or that the process with rank 0 keeps without it.

    Raises:
        UserError: it is not there.
    """
    place = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")]
    host, port = parse_address(f"tcp://{':'.join(place)}")
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return open_store(host, port)
    wait_for_store(host, port)
    return enter(host, port)


def _setting() -> str:
    """What says where the store is."""
    return "MASTER_ADDR:MASTER_PORT" if started_by_torchrun() else "--dist-url"


def _advice() -> str:
    """How a process comes that is waited for."""
    if started_by_torchrun():
        return f"start torchrun on all machines; {_UNSET}"
    return "start the same command there, with its own --machine-rank"


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
    is_port = port.isdecimal() and 0 < int(port) < 65536
    if not url.startswith("tcp://") or not host or not is_port:
        raise UserError(
            f"{_setting()} is {url!r}, but must be tcp://HOST:PORT of the machine with rank 0"
            + (f"; {_UNSET}" if started_by_torchrun() else "")
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
            f"port {port} of this machine cannot be used by {_setting()} ({_first_line(error)}): "
            "another run may have it, so take another port"
        ) from error
    try:
        _reach(host, store.port)
    except OSError as error:
        raise UserError(
            f"{_setting()} names {host!r}, which this machine cannot reach ({error}), although it "
            "is the one with rank 0: give this machine's own name or address"
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
                f"{_setting()} names {host!r}, which is not known here ({error.strerror}): give "
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
            f"{host}:{port} of {_setting()} cannot be used ({_first_line(error)}): see what the "
            "machine with rank 0 says"
        ) from error


def claim(store: dist.Store, rank: int, machines: int = 1, local_size: int = 1) -> None:
    """Raise UserError if another process has the same rank, or was told of another world."""
    own = f"--num-machines {machines} --num-gpus {local_size}"
    first = store.compare_set("detrex_mammo/world", "", own).decode()
    if first != own:
        raise UserError(f"this machine has {own}, but another one {first}: give all the same")
    if store.add(f"detrex_mammo/claimed/{rank}", 1) > 1:
        raise UserError(f"two processes have rank {rank}: give each machine its own --machine-rank")


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
        UserError: some have not come in time, or machines have different numbers of them.
    """
    own = f"{uuid.uuid4().hex} {local_size}"
    here = [f"{_HERE}/{other}" for other in range(world_size)]
    store.set(here[rank], own)
    seen, words = here, [own]

    def is_over() -> bool:
        nonlocal seen, words
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
    sizes = sorted({int(word.split()[1]) for word in words})
    if len(sizes) > 1:
        raise UserError(
            f"machines have {' and '.join(map(str, sizes))} processes: start as many on each"
        )
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
                f"waited {limit:g} seconds for {describe()}: {_advice()}, or set {VARIABLE} to "
                "wait longer"
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
