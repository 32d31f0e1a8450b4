# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One process or many: GPUs with NCCL, no GPU with gloo, or processes that torchrun started.

detectron2 0.6 starts several processes on GPUs only; this works with 0.6 and main alike.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import parent_process, util
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed as dist
from torch import multiprocessing as mp

from detrex_mammo.engine.rendezvous import (
    claim,
    enter,
    meet,
    open_store,
    parse_address,
    started_by_torchrun,
    torchruns_ranks,
    torchruns_store,
    wait_for_store,
)
from detrex_mammo.engine.supervision import (
    LOST,
    LOST_SENTENCE,
    forwarded_signals,
    is_lost_connection,
    raise_end,
    wait_for,
)
from detrex_mammo.errors import UserError

# How long a process waits for another that says nothing, on a machine that was lost, say. The
# evaluation of a large data set in the main process must fit in.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """How many processes there are and how they meet.

    Attributes:
        num_processes: per machine; one per GPU, or that many CPU processes.
        num_machines: machines.
        machine_rank: 0 to ``num_machines - 1``.
        dist_url: "auto" finds a free port, for one machine.
        device: "cuda" or "cpu".
    """

    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Processes over all machines."""
        return self.num_processes * self.num_machines

    def check(self) -> None:
        """Raise UserError for a world that cannot be."""
        if self.num_processes < 1 or self.num_machines < 1:
            raise UserError(
                f"--num-gpus is {self.num_processes} and --num-machines {self.num_machines}: "
                "both must be at least 1"
            )
        if not 0 <= self.machine_rank < self.num_machines:
            raise UserError(
                f"--machine-rank is {self.machine_rank}, but with --num-machines "
                f"{self.num_machines} it must be 0 to {self.num_machines - 1}"
            )
        if self.dist_url != "auto":
            parse_address(self.dist_url)
        elif self.num_machines > 1:
            raise UserError(
                "--dist-url auto works on one machine only: "
                "give tcp://HOST:PORT of the machine with rank 0"
            )
        if self.device == "cuda" and self.num_processes > torch.cuda.device_count():
            raise UserError(
                f"--num-gpus is {self.num_processes}, but this machine has "
                f"{torch.cuda.device_count()}; train.device=cpu runs CPU processes instead"
            )


def launch(job: Callable[[], Any], world: World) -> None:
    """Call ``job`` in every process of the world.

    Args:
        job: can be pickled.
        world: ignored under torchrun, except for the device.

    Raises:
        UserError: one that a process raised, one that was killed, or a world that cannot be.
        SystemExit: the processes were asked to leave by a signal, see
            :mod:`detrex_mammo.engine.interruption`.
        RuntimeError: another error of a process, with its traceback.
    """
    if started_by_torchrun():
        _run_under_torchrun(job, world)
        return
    world.check()
    if world.size == 1:
        if world.device == "cuda":
            torch.cuda.set_device(0)
        job()
        return
    is_auto = world.dist_url == "auto"
    host, port = ("127.0.0.1", 0) if is_auto else parse_address(world.dist_url)
    store = None  # it lives as long as this process
    if world.machine_rank == 0:
        store = open_store(host, port)
        port = store.port
    else:
        wait_for_store(host, port)
    errors = mp.get_context("spawn").SimpleQueue()
    with forwarded_signals() as processes:
        context = mp.start_processes(
            _worker,
            args=(job, world, (host, port), errors),
            nprocs=world.num_processes,
            join=False,
            start_method="spawn",
        )
        processes += context.processes
        end = wait_for(context.processes)
    if end.exit_code == 0:
        return
    if end.exit_code == 2 and not errors.empty():
        raise UserError(errors.get())
    raise_end(end, context.error_files)


def _worker(
    local_rank: int,
    job: Callable[[], Any],
    world: World,
    address: tuple[str, int],
    errors: Any,
) -> None:
    if world.device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.num_processes))
    rank = world.machine_rank * world.num_processes + local_rank
    # From here on torch ends this process with its parent; one that has gone keeps no store.
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        _leave(LOST)
    try:
        store = enter(*address)
        claim(store, rank, world.num_machines, world.num_processes)
        join(rank, local_rank, world.size, world.num_processes, world.device, store)
        job()
        comm.synchronize()
    except UserError as error:
        errors.put(str(error))
        _leave(2)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        _leave(LOST)
    except KeyboardInterrupt:
        _leave(130)  # the parent has seen it too, and says so
    dist.destroy_process_group()


def _leave(code: int) -> None:
    """End this process at once: others may never reach the barrier that a clean exit waits for.

    What it has made for its loaders must go, or Python tells of leaked semaphores.
    """
    util._run_finalizers(0)
    os._exit(code)


def _run_under_torchrun(job: Callable[[], Any], world: World) -> None:
    if world.num_processes > 1 or world.num_machines > 1:
        raise UserError(
            "torchrun already says how many processes there are: "
            "leave out --num-gpus and --num-machines"
        )
    rank, size, local_rank, local_size = torchruns_ranks()
    join(rank, local_rank, size, local_size, world.device, torchruns_store(rank))
    try:
        job()
        comm.synchronize()
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(f"process {rank} of {size} {LOST_SENTENCE}") from error
    dist.destroy_process_group()


def join(
    rank: int,
    local_rank: int,
    world_size: int,
    local_size: int,
    device: str,
    place: dist.Store,
) -> None:
    """Enter the process group, and tell detectron2 which processes share this machine.

    Args:
        rank: of this process.
        local_rank: on this machine.
        world_size: processes over all machines.
        local_size: processes on each machine.
        device: "cuda" or "cpu".
        place: where all meet.

    Raises:
        UserError: they do not come together.
    """
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    try:
        place = meet(place, rank, world_size, local_size)
        place.set_timeout(TIMEOUT)
        dist.init_process_group(
            backend="nccl" if device == "cuda" else "gloo",
            store=place,
            world_size=world_size,
            rank=rank,
            timeout=TIMEOUT,
        )
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        raise UserError(f"process {rank} cannot join the others: {error}") from error
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_size)
        return
    for machine in range(world_size // local_size):  # detectron2 0.6
        group = dist.new_group(list(range(machine * local_size, (machine + 1) * local_size)))
        if machine == rank // local_size:
            comm._LOCAL_PROCESS_GROUP = group
