# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/train_net.py as a Slurm job, through submitit; a preempted job goes on where it was.

Slurm sends SIGUSR1 some time before it takes the machines away; the run then saves after its step
and leaves with exit code 138 (:mod:`detrex_mammo.engine.interruption`). When it has, the job is put
back into the queue, and its next start resumes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from detrex_mammo.config import load_config
from detrex_mammo.engine.arguments import parse_arguments
from detrex_mammo.errors import UserError

ASKED_TO_LEAVE = (138, 143)  # and has saved
WAIT_SECONDS = 0.2
# When a start's time is up, the job is queued again, so often; submitit's own 3 end a long run.
MOST_STARTS = 1000
PORT = 29500  # the first one; each job takes one of its own


def load_submitit() -> Any:
    """The package submitit.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # what a run listens to
    try:
        return import_module("submitit")
    except ImportError as error:
        raise UserError(
            "tools/slurm.py needs the package submitit, which is not installed: "
            "pip install 'detrex_mammo[tune]'"
        ) from error


@dataclass
class TrainingJob:
    """One task of the job: it runs tools/train_net.py on its machine, with torchrun's variables.

    submitit calls :meth:`checkpoint` when the job is preempted or its time is up.

    Attributes:
        tool: path of train_net.py.
        arguments: for it.
        processes: on each machine.
        resumes: whether the run may have been started before.
        process: of the tool, while it runs.
    """

    tool: str
    arguments: tuple[str, ...]
    processes: int = 1
    resumes: bool = False
    process: subprocess.Popen | None = None

    def command(self, machines: int, rank: int, address: str, port: int) -> list[str]:
        """The command line of one machine.

        Args:
            machines: of the job.
            rank: of this machine.
            address: host name of the first machine.
            port: free on it.
        """
        command = [sys.executable, self.tool, *self.arguments]
        is_again = self.resumes or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if is_again and not {"--resume", "--eval-only"} & set(self.arguments):
            command.append("--resume")
        command += ["--num-gpus", str(self.processes)]
        if machines > 1:
            command += ["--num-machines", str(machines), "--machine-rank", str(rank)]
            command += ["--dist-url", f"tcp://{address}:{port}"]
        return command

    def __call__(self) -> int:
        """Run the tool; the job fails if it does.

        Raises:
            RuntimeError: the tool's exit code, unless it was asked to leave and has saved.
        """
        environment = load_submitit().JobEnvironment()
        machines, rank = environment.num_nodes, environment.node
        address = environment.hostnames[0] if machines > 1 else "127.0.0.1"
        number = "".join(filter(str.isdigit, environment.job_id)) or "0"
        command = self.command(machines, rank, address, PORT + int(number) % 10000)
        print(*command, flush=True)
        self.process = subprocess.Popen(command, env=_without_ranks(os.environ))
        try:
            code = self._wait()
        finally:
            if self.process.poll() is None:  # the job is cancelled
                self.process.terminate()
        if code not in (0, *ASKED_TO_LEAVE):
            raise RuntimeError(f"train_net.py ended with exit code {code}: see its output above")
        return code

    def _wait(self) -> int:
        """The tool's exit code; a signal's handler may wait for it too, so no lock is held."""
        assert self.process is not None
        while self.process.poll() is None:
            time.sleep(WAIT_SECONDS)
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def checkpoint(self, *args: Any) -> Any:
        """Let the run save; what submitit queues instead of this job is the same, resumed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            self._wait()
        again = TrainingJob(self.tool, self.arguments, self.processes, resumes=True)
        return load_submitit().helpers.DelayedSubmission(again)


def _without_ranks(variables: Mapping[str, str]) -> dict[str, str]:
    """Our own launcher starts the processes; what torchrun or Slurm say about ranks is dropped."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {name: value for name, value in variables.items() if name not in dropped}


def submit(
    tool: str,
    arguments: Sequence[str],
    folder: Path,
    machines: int = 1,
    processes: int = 1,
    cluster: str = "slurm",
    **slurm: Any,
) -> Any:
    """Put a training into the queue.

    Args:
        tool: path of train_net.py.
        arguments: for it, checked here: a job that cannot start should not wait for a machine.
        folder: for submitit's files and the output of the job.
        machines: of the job.
        processes: GPUs of each machine.
        cluster: "slurm", or submitit's "local" or "debug".
        slurm: submitit's parameters, such as ``timeout_min`` and ``slurm_partition``.

    Returns:
        submitit.Job: with ``job_id`` and ``result()``.

    Raises:
        UserError: submitit is not installed, there is no Slurm, or the arguments or the config
            are wrong.
    """
    args = parse_arguments(arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    flags = {"--num-gpus", "--num-machines", "--machine-rank", "--dist-url"} & given
    if flags or args.dry_run or args.print_config:
        wrong = ", ".join(sorted(flags)) or "--dry-run and --print-config"
        raise UserError(f"{wrong}: give --machines and --gpus of tools/slurm.py instead")
    if machines < 1 or processes < 1:
        raise UserError(
            f"--machines is {machines} and the processes of each {processes}: both are at least 1"
        )
    submitit = load_submitit()
    load_config(args.config_file, args.overrides)  # a wrong path or key is told here
    try:
        executor = submitit.AutoExecutor(
            folder=str(folder), cluster=cluster, slurm_max_num_timeout=MOST_STARTS
        )
    except RuntimeError as error:
        raise UserError(f"no job can be submitted from this machine: {error}") from error
    executor.update_parameters(name=Path(tool).stem, nodes=machines, tasks_per_node=1, **slurm)
    return executor.submit(TrainingJob(tool, tuple(arguments), processes))
