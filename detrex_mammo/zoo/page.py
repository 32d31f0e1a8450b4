# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""model_zoo.md from zoo/*.json: three tables, and below them what each measured row stands on."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.checks import problems_of
from detrex_mammo.zoo.entry import PUBLISHED, TOPS
from detrex_mammo.zoo.text import (
    coco_table,
    code,
    command_text,
    data_text,
    froc_table,
    hardware_text,
    markdown,
    number,
)

PAGE = "model_zoo.md"
UNKNOWN = "not measured"
HEAD = """\
<!-- Written by `python tools/model_zoo.py build` from zoo/*.json. Do not edit. -->
# Model zoo

What was measured here comes from files that runs wrote; nobody typed it, and what a run did not
measure says so. AP is COCO's box AP (IoU 0.50 to 0.95, percent) over the 100 / 300 best predictions
of an image; FP are false positives. A GFLOP is 10⁹ multiply-adds for one image of the stated size,
deformable attention counted. Speeds are those of the evaluation, reading the images included.

Add a row: `python tools/model_zoo.py add OUTPUT_FOLDER`, then `python tools/model_zoo.py build`.
"""
HEADERS = [
    *("model", "evaluated on", "AP, top 100 / 300", "AP50", "sensitivity at 1 FP per image"),
    *("params", "GFLOPs", "images/s", "weights"),
]


def build(root: Path) -> str:
    """The page of a repository.

    Raises:
        UserError: a file of the zoo is damaged, or a link or hash in it is wrong.
    """
    entries = [read_entry(path) for path in sorted((root / "zoo").glob("*.json"))]
    published = [e for path, e in entries if path.name == PUBLISHED]
    rows = [(path, e) for path, e in entries if path.name != PUBLISHED]
    try:
        page = "\n".join(_parts([e for _, e in rows], published[0] if published else None))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"a file in {str(root / 'zoo')!r} is not as this tool writes it "
            f"({type(error).__name__}: {error}): add it again"
        ) from error
    wrong = problems_of(root, rows, page)
    if wrong:
        raise UserError(f"{len(wrong)} of the zoo's links or hashes are wrong: {'; '.join(wrong)}")
    return page


def read_entry(path: Path) -> tuple[Path, dict[str, Any]]:
    """A file of the zoo."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it and add the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no JSON object): remove it and add the run again")
    return path, content


def check(root: Path) -> None:
    """Raise UserError if model_zoo.md is not what :func:`build` makes."""
    path = root / PAGE
    if not path.is_file() or path.read_text(encoding="utf-8") != build(root):
        raise UserError(f"{PAGE} is not what zoo/*.json gives: run tools/model_zoo.py build")


def _parts(rows: Sequence[Mapping[str, Any]], published: Mapping[str, Any] | None) -> list[str]:
    trained = [row for row in rows if row["kind"] == "trained"]
    converted = [row for row in rows if row["kind"] == "converted"]
    parts = [HEAD]
    for title, chosen in (("Trained here", trained), ("Converted weights", converted)):
        table = markdown([_row(row) for row in chosen], HEADERS) if chosen else "None yet.\n"
        parts += [f"## {title}\n", table, *(_details(row) for row in chosen)]
    if published:
        parts += ["## Published, not measured here\n", published["note"] + "\n"]
        parts.append(_published(published))
    return parts


def _row(row: Mapping[str, Any]) -> list[str]:
    coco, froc, model = row["coco"], row["froc"], row["model"]
    tops = [coco[f"top_{top}"] or {} for top in TOPS]
    size = model["input_size"]
    at_size = f" at {size[0]}x{size[1]}" if size else ""
    return [
        f"[{row['name']}](#{anchor(row['name'])})",
        data_text(row["data"], UNKNOWN),
        " / ".join(_number(top.get("AP"), "{:.1f}") for top in tops),
        _number(tops[0].get("AP50"), "{:.1f}"),
        _number(froc and froc["sensitivity"].get("1"), "{:.3f}"),
        _number(model["parameters"], "{:.1f} M", 1e-6),
        _number(model["multiply_adds"], "{:.2f}" + at_size, 1e-9),
        _number(row["speed"]["images_per_second"], "{:.1f}"),
        _weights(row["checkpoint"]),
    ]


def _weights(checkpoint: Mapping[str, Any]) -> str:
    digest = checkpoint["sha256"]
    short = f"`{digest[:8]}`" if digest else UNKNOWN
    target = checkpoint["url"] or checkpoint["file"]
    return f"[{short}]({target})" if target else f"{short}, not published"


def _details(row: Mapping[str, Any]) -> str:
    parts = [f"### {row['name']}\n", markdown(_facts(row), ["", ""])]
    parts.append(coco_table(row["coco"], UNKNOWN))
    if row["froc"]:
        parts.append(froc_table(row["froc"], UNKNOWN))
    return "\n".join(part for part in parts if part)


def _facts(row: Mapping[str, Any]) -> list[list[str]]:
    data, speed, config = row["data"], row["speed"], row["config"]["file"]
    named = f"[{config}]({config}); " if config else ""
    memory = _number(speed["peak_memory_bytes"], "{:.2f} GB", 1e-9)
    of = f" ({speed['peak_memory_of']})" if speed["peak_memory_of"] else ""
    return [
        ["config", f"{named}config.yaml {code(row['config']['sha256'], UNKNOWN)}"],
        ["command", command_text(row["command"], UNKNOWN)],
        ["commit", code(row["commit"], UNKNOWN)],
        ["data", f"{data_text(data, UNKNOWN)}; annotations {code(data['sha256'], UNKNOWN)}"],
        ["classes", _class_text(row["classes"])],
        ["predictions", _number(row["coco"]["predictions_per_image"], "at most {} an image")],
        ["trained by", _training(row["training"])] if row["kind"] == "trained" else _source(row),
        ["hardware", hardware_text(speed, UNKNOWN)],
        ["speed", _speed(speed)],
        ["peak memory", memory + of],
        ["checkpoint", _checkpoint(row["checkpoint"])],
        ["date", row["date"] or UNKNOWN],
    ]


def _class_text(classes: Sequence[str] | None) -> str:
    if not classes:
        return UNKNOWN
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return f"{len(classes)}: {shown}"


def _training(training: Mapping[str, Any]) -> str:
    length = f"{training['epochs']:g} epochs" if training["epochs"] else ""
    data = ", ".join(training["data"] or {})
    parts = [
        command_text(training["command"], UNKNOWN),
        f"commit {code(training['commit'], UNKNOWN)}",
        length or _number(training["steps"], "{} steps"),
        f"seed {training['seed']}" if training["seed"] is not None else "",
        f"data {data}" if data else "",
        f"hours {_number(training['hours'], '{:.2f}')}",
        training["hardware"] or "",
    ]
    return "; ".join(part for part in parts if part)


def _source(row: Mapping[str, Any]) -> list[str]:
    source = row["source"] or {}
    parts = [str(source[key]) for key in ("format", "file") if source.get(key)]
    parts += [code(source["sha256"], UNKNOWN)] if source.get("sha256") else []
    return ["converted from", f"{', '.join(parts) or UNKNOWN}; {_verified(row['verification'])}"]


def _verified(verified: Mapping[str, Any] | None) -> str:
    """The verification that a converted checkpoint carries, in words."""
    if not verified or verified.get("passed") is None:
        return "not verified"
    largest = ", ".join(f"{name} {value:.1e}" for name, value in verified["largest"].items())
    verdict = "verified" if verified["passed"] else "verification failed"
    if verified.get("source_weights") != "as stored":
        verdict = f"model {verdict}, names by their table alone,"
    return f"{verdict} against {verified['against']}, largest differences: {largest}"


def _speed(speed: Mapping[str, Any]) -> str:
    if speed["images_per_second"] is None:
        return UNKNOWN
    whole = f"{speed['images_per_second']:.1f} images/s with reading"
    model = _number(speed["model_images_per_second"], "{:.1f} in the model alone")
    return f"{whole}, {model}; batch {speed['batch_size']}, {speed['processes']} process(es)"


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    size = number(checkpoint["bytes"], ", {:.1f} MB", "", 1e-6)
    target = checkpoint["url"] or checkpoint["file"]
    link = f"[{Path(target).name}]({target})" if target else "not published"
    return f"{link}{size}, sha256 {code(checkpoint['sha256'], UNKNOWN)}"


def _published(published: Mapping[str, Any]) -> str:
    rows = []
    for row in published["rows"]:
        source = published["sources"][row["source"]]
        note = f"; {row['note']}" if row.get("note") else ""
        rows.append(
            [
                row["model"],
                str(row["epochs"]),
                f"{row['ap']:.2f}".removesuffix("0"),
                str(row["top"]),
                f"[{source['name']}]({source['url']}){note}",
                f"[config]({row['config']})",
            ]
        )
    heads = ["ResNet-50 model", "epochs", "AP, as reported", "detections", "reported by", "here"]
    return markdown(rows, heads)


def anchor(name: str) -> str:
    """The link target that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")


def _number(value: Any, pattern: str, scale: float | None = None) -> str:
    return number(value, pattern, UNKNOWN, scale)
