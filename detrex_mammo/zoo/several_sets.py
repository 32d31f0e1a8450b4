# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A run that was evaluated on several data sets, seen as a run on one of them.

Each of them has a name in ``dataloader.test`` and a folder of its own, its evaluator's, inside that
of the run: ``run/inbreast`` stands for this run on this set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.run_folder import RunFolder, dataset_names, read_json, read_run_folder


def read_run(path: str | Path) -> RunFolder:
    """Read the folder of a run on one data set, or of one of several.

    Raises:
        UserError: as :func:`read_run_folder`, or the run has several sets and none is chosen.
    """
    path = Path(path)
    if (path / "config.yaml").is_file():
        run = read_run_folder(path)
        folders = _folders(run.config)
        if folders:
            shown = ", ".join(str(path / folder) for folder in folders.values())
            raise UserError(
                f"{str(path)!r} was evaluated on several data sets, which have a row each: give "
                f"the folder of one of them ({shown})"
            )
        return run
    for parent in path.absolute().parents[:2]:
        if (parent / "config.yaml").is_file() and (parent / "metrics.json").is_file():
            run = read_run_folder(parent)
            for name, folder in _folders(run.config).items():
                if parent / folder == path.absolute():
                    return _only(run, name, parent / folder)
    return read_run_folder(path)


def _folders(config: Mapping[str, Any]) -> dict[str, Path]:
    """Name of each of several test sets, and its evaluator's folder inside the run's."""
    loaders = config.get("dataloader") or {}
    evaluators, tests = loaders.get("evaluator") or {}, loaders.get("test") or {}
    if "_target_" in tests or not isinstance(evaluators, Mapping):
        return {}
    output = Path((config.get("train") or {}).get("output_dir") or "")
    found = {}
    for name, node in evaluators.items():
        nodes = node if isinstance(node, Sequence) else [node or {}]
        folder = Path(next((n["output_dir"] for n in nodes if n.get("output_dir")), ""))
        if tests.get(name) and folder != output and folder.is_relative_to(output):
            found[name] = folder.relative_to(output)
    return found


def _only(run: RunFolder, name: str, folder: Path) -> RunFolder:
    """The run as if this set were its only one."""
    start = f"{name}/"
    loaders = dict(run.config["dataloader"])
    loaders.update(test=loaders["test"][name], evaluator=loaders["evaluator"][name])
    config = {**run.config, "dataloader": loaders}
    names = dataset_names(config, "test")
    measured = run.record.get("evaluation") or {}
    data = run.record.get("data") or {}
    tested = {k: facts for k, facts in (data.get("test") or {}).items() if k in names}
    one = replace(
        run,
        metrics={k.removeprefix(start): v for k, v in run.metrics.items() if k.startswith(start)},
        record={
            **run.record,
            "evaluation": {"finished": measured.get("finished"), **(measured.get(name) or {})},
            "data": {**data, "test": tested},
        },
        froc=read_json(folder / "froc.json"),
        results=folder,
        test_set=name,
    )
    one.__dict__["config"] = config  # in the place of the cached property
    return one
