#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/train_net.py as a Slurm job: ``slurm.py [job flags] --config-file F [its arguments]``.

A preempted job saves, goes back into the queue and resumes.
"""

import argparse
from pathlib import Path

from detrex_mammo.engine.slurm import submit
from detrex_mammo.errors import UserError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--partition", help="of the cluster (default: its own)")
    parser.add_argument("--hours", type=float, default=24.0, help="of one start (%(default)s)")
    parser.add_argument("--machines", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1, help="of each machine; 0: CPU, one process")
    parser.add_argument("--cpus", type=int, default=8, help="of each machine (%(default)s)")
    parser.add_argument(
        "--save-seconds", type=int, default=120, help="to save before the end (%(default)s)"
    )
    parser.add_argument("--logs", type=Path, default=Path("output/slurm"), help="of the jobs")
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm")
    args, arguments = parser.parse_known_args()
    for name in ("hours", "cpus", "save_seconds"):
        if not 0 < (value := getattr(args, name)) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} is {value}, but must be above 0")
    more = {"timeout_min": max(1, round(args.hours * 60)), "cpus_per_task": args.cpus}
    if args.gpus:
        more["gpus_per_node"] = args.gpus
    if args.cluster == "slurm":
        more["slurm_signal_delay_s"] = args.save_seconds
        if args.partition:
            more["slurm_partition"] = args.partition
    tool = str(Path(__file__).resolve().with_name("train_net.py"))
    job = submit(tool, arguments, args.logs, args.machines, args.gpus or 1, args.cluster, **more)
    print(f"job {job.job_id}: output in {args.logs}", flush=True)
    if args.cluster != "slurm":
        job.result()


if __name__ == "__main__":
    run_tool(main)
