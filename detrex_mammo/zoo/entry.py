# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One evaluated run as one ``zoo/<name>.json``; what the run's files do not tell is null."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.coco import (
    coco_numbers,
    coco_of,
    score_boxes,
    top_of_each_image,
)
from detrex_mammo.evaluation.hardware import machine_text
from detrex_mammo.zoo.complexity import measure
from detrex_mammo.zoo.run_folder import RunFolder, dataset_names
from detrex_mammo.zoo.several_sets import read_run

TWELVE = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
TOPS = (100, 300)
PUBLISHED = "published.json"
_SAME = 0.01  # percent; what two scorings of the same predictions may differ by
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def add_entry(
    folder: str | Path, root: Path, name: str | None = None, url: str | None = None
) -> Path:
    """Write the zoo's file of an evaluated run.

    Args:
        folder: output folder of tools/train_net.py; with several test sets, that of one of them.
        root: of the repository.
        name: of the row; by default that of the checkpoint, or of the folder of a training run.
        url: where the checkpoint can be downloaded.

    Returns:
        Path: the new file.

    Raises:
        UserError: the folder holds no evaluated run, or the name is taken.
    """
    run = read_run(folder)
    name = name or run.default_name
    if not _NAME.fullmatch(name) or name == Path(PUBLISHED).stem:
        raise UserError(
            f"--name {name!r} is no name for a row: use letters, digits, '_', '-', '+' and '.', "
            f"and not {Path(PUBLISHED).stem!r}"
        )
    target = root / "zoo" / f"{name}.json"
    if target.exists():
        raise UserError(f"{target.name} is in the zoo already: remove it, or give another --name")
    entry = make_entry(run, name, root, url)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entry, indent=1, ensure_ascii=False, allow_nan=False)
    target.write_text(text + "\n", encoding="utf-8")
    return target


def make_entry(run: RunFolder, name: str, root: Path, url: str | None = None) -> dict[str, Any]:
    """Everything the run's files tell, in the order a reader wants it."""
    session, evaluation = run.session, run.record.get("evaluation") or {}
    size = measure(run.config)
    is_file = run.checkpoint is not None and run.checkpoint.is_file()
    provenance = run.checkpoint_content.get("provenance") or {}
    return {
        "name": name,
        "kind": kind_of(run),
        "date": (evaluation.get("finished") or "")[:10] or None,
        "config": {
            "file": shipped_config(session.get("command"), root),
            "sha256": run.config_sha256,
        },
        "command": session.get("command"),
        "commit": session.get("git_commit"),
        "versions": session.get("versions"),
        "seed": run.config.get("train", {}).get("seed"),
        "data": describe_data(run),
        "classes": class_names(run),
        "coco": coco_tops(run),
        "class_ap": class_ap(run.metrics),
        "froc": froc_numbers(run.froc),
        "model": {
            "parameters": size.parameters,
            "multiply_adds": size.multiply_adds,
            "input_size": list(size.input_size) if size.input_size else None,
        },
        "speed": describe_speed(run),
        "training": describe_training(run),
        "checkpoint": {
            "file": _inside(run.checkpoint, root),
            "url": url,
            "sha256": run.checkpoint_sha256,
            "bytes": run.checkpoint.stat().st_size if is_file else None,
        },
        "source": describe_source(run),
        "verification": provenance.get("verification"),
    }


def kind_of(run: RunFolder) -> str:
    """ "trained" by this package, or "converted" from another's file.

    Raises:
        UserError: nothing was loaded, or the file is not there to tell.
    """
    if run.is_training:
        return "trained"
    name = run.config.get("train", {}).get("init_checkpoint")
    if not name:
        raise UserError(
            f"{str(run.path)!r} evaluated random weights (train.init_checkpoint was not set): "
            "that is no row of a zoo"
        )
    if run.checkpoint is None:
        raise UserError(
            f"checkpoint {name!r} of {str(run.path)!r} is no file here, so nobody can tell whether "
            "it was trained or converted: put it there, from the folder this tool is started in"
        )
    provenance = run.checkpoint_content.get("provenance") or {}
    return "trained" if provenance and "source" not in provenance else "converted"


def describe_source(run: RunFolder) -> dict[str, Any] | None:
    """What converted weights were converted from; None for those trained here."""
    if kind_of(run) == "trained":
        return None
    told = (run.checkpoint_content.get("provenance") or {}).get("source")
    if told:
        return {**told, "file": Path(str(told.get("file"))).name}
    name = Path(run.config["train"]["init_checkpoint"]).name
    form = run.checkpoint_content.get("format")
    return {"file": name, "sha256": run.checkpoint_sha256, "format": form}


def shipped_config(command: str | None, root: Path) -> str | None:
    """The config file that a command names, if it is one of the repository's."""
    words = shlex.split(command or "")
    named = [w.partition("=")[2] for w in words if w.startswith("--config-file=")]
    named += [after for word, after in zip(words, words[1:]) if word == "--config-file"]
    for name in named:
        path = _inside(root / name if not Path(name).is_absolute() else Path(name), root)
        if path and (root / path).is_file():
            return path
    return None


def describe_data(run: RunFolder) -> dict[str, Any]:
    """What was evaluated on: name, fingerprint, counts."""
    data, annotations = run.data, run.annotations
    images = boxes = simulated = None
    if annotations is not None:
        images, boxes = len(annotations["images"]), len(annotations["annotations"])
        simulated = sum(bool(box.get("simulated")) for box in annotations["annotations"])
    return {
        "name": data["name"],
        "sha256": data["sha256"],
        "images": images,
        "boxes": boxes,
        "simulated_boxes": simulated,
        "note": (run.froc or {}).get("note") or None,
    }


def class_names(run: RunFolder) -> list[str] | None:
    """Names of the classes, from the checkpoint or else the annotation file."""
    names = (run.checkpoint_content.get("classes") or {}).get("names")
    if not names and run.annotations is not None:
        categories = sorted(run.annotations["categories"], key=lambda category: category["id"])
        names = [category["name"] for category in categories]
    return list(names) if names else None


def coco_tops(run: RunFolder) -> dict[str, Any]:
    """COCO's twelve over the best 100 and 300 predictions of each image, in percent.

    One implementation for both: the predictions file, cut and scored by pycocotools.

    Raises:
        UserError: the file does not give the numbers that the run reported.
    """
    model = run.config.get("model", {})
    kept, queries, classes = (model.get(k) for k in ("topk", "num_queries", "num_classes"))
    possible = queries * classes if queries and classes else math.inf
    numbers: dict[str, Any] = {"predictions_per_image": kept and int(min(kept, possible))}
    for top in TOPS:
        is_whole = kept is not None and kept >= min(top, possible)
        numbers[f"top_{top}"] = _twelve(run, top) if is_whole else None
    _check_reported(run, numbers, kept)
    return numbers


def _twelve(run: RunFolder, top: int) -> dict[str, float | None] | None:
    if run.annotations is None or run.predictions is None:
        return None
    records = top_of_each_image(run.predictions, top)
    scored = coco_numbers(score_boxes(coco_of(run.annotations), records))
    return {name: _number(scored[name]) for name in TWELVE}


def _check_reported(run: RunFolder, numbers: Mapping[str, Any], kept: int | None) -> None:
    reported = run.metrics.get("bbox/AP")
    for top in TOPS:
        counted = (numbers[f"top_{top}"] or {}).get("AP")
        is_same_cut = kept is not None and kept <= top
        if None in (reported, counted) or not is_same_cut:
            continue
        if abs(reported - counted) > _SAME:
            raise UserError(
                f"the predictions in {str(run.path)!r} give AP {counted:.2f}, but its metrics.json "
                f"says {reported:.2f}: they are of two evaluations, evaluate again"
            )


def class_ap(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """AP of each class as the run reported it, in percent."""
    prefix = "bbox/AP-"
    return {k.removeprefix(prefix): _number(v) for k, v in metrics.items() if k.startswith(prefix)}


def froc_numbers(froc: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Rule, counts and sensitivities of froc.json, without the curves."""
    if froc is None:
        return None
    overall = froc["overall"]
    return {
        "rule": overall["text"],
        "lesions": overall["num_lesions"],
        "images": overall["num_images"],
        "negative_images": overall["num_negative_images"],
        **_curve(overall),
        "per_class": {name: _curve(curve) for name, curve in froc["per_class"].items()},
    }


def _curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    points = {f"{point['fppi']:g}": _number(point["sensitivity"]) for point in curve["points"]}
    return {"cpm": _number(curve["cpm"]), "sensitivity": points}


def describe_speed(run: RunFolder) -> dict[str, Any]:
    """How fast the evaluation went, on what, and the most memory the run held."""
    measured, session = run.record.get("evaluation") or {}, run.session
    processes, memory = session.get("processes"), session.get("peak_memory") or {}
    machine = session.get("machine")

    def rate(key: str) -> float | None:
        value = measured.get(key)
        return round(value * (processes or 1), 3) if value else None

    return {
        "images_per_second": rate("images_per_second"),
        "model_images_per_second": rate("model_images_per_second"),
        "batch_size": measured.get("batch_size"),
        "processes": processes,
        "hardware": machine_text(machine) if machine else None,
        "load_average_at_start": (machine or {}).get("load_average_at_start"),
        "peak_memory_bytes": memory.get("bytes"),
        "peak_memory_of": memory.get("of") and f"{memory['of']}, {session['mode']}",
    }


def describe_training(run: RunFolder) -> dict[str, Any]:
    """How the weights came to be: of the run itself, else as the checkpoint tells."""
    provenance = run.checkpoint_content.get("provenance") or {}
    schedule, length = run.training_config.get("train") or {}, run.record.get("training") or {}
    seconds = [session.get("seconds") for session in run.training_sessions]
    is_known = bool(seconds) and None not in seconds
    last = run.training_sessions[-1] if run.training_sessions else {}
    machine = last.get("machine")
    return {
        "command": provenance.get("command"),
        "commit": provenance.get("git_commit"),
        "data": _trained_on(run) or None,
        "epochs": None if schedule.get("max_iter") else schedule.get("epochs"),
        "steps": length.get("steps") or schedule.get("max_iter"),
        "seed": schedule.get("seed"),
        "hours": round(sum(seconds) / 3600, 4) if is_known else None,
        "processes": last.get("processes"),
        "hardware": machine_text(machine) if machine else None,
    }


def _trained_on(run: RunFolder) -> dict[str, str | None]:
    """Training data sets and their fingerprints; the checkpoint also tells those of validation."""
    told = (run.checkpoint_content.get("provenance") or {}).get("datasets") or {}
    names = dataset_names(run.training_config, "train")
    return {k: v.get("sha256") for k, v in told.items() if not names or k in names}


def _inside(path: Path | None, root: Path) -> str | None:
    """A path relative to the repository, or None if it lies elsewhere."""
    if path is None or not path.resolve().is_relative_to(root.resolve()):
        return None
    relative = path.resolve().relative_to(root.resolve())
    ignored = ("output", "data", "datasets")  # .gitignore: not part of the repository
    return None if relative.parts[0] in ignored else relative.as_posix()


def _number(value: float | None) -> float | None:
    """Four digits behind the point; None for what does not exist."""
    return None if value is None or not math.isfinite(value) else round(float(value), 4)
