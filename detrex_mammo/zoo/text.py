# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Facts of an entry as markdown, for the zoo's page and for the card alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from detrex_mammo.zoo.entry import TOPS, TWELVE


def number(value: Any, pattern: str, missing: str, scale: float | None = None) -> str:
    """A number as text, or what stands for a missing one."""
    if value is None:
        return missing
    return pattern.format(value if scale is None else value * scale)


def code(text: str | None, missing: str) -> str:
    """A command, a hash, a commit."""
    return f"`{text}`" if text else missing


def command_text(command: str | None, missing: str) -> str:
    """As it is typed in the repository's root; records have the tool's name without its folder."""
    is_tool = command and command.split()[0].endswith(".py")
    return code(f"python tools/{command}" if is_tool else command, missing)


def data_text(data: Mapping[str, Any], missing: str) -> str:
    """A data set with its counts, and whether its lesions are simulated."""
    text = data["name"] or missing
    if data["images"] is not None:
        text += f": {data['images']:,} images, {data['boxes']:,} boxes"
    simulated = data["simulated_boxes"]
    if simulated:
        share = "all" if simulated == data["boxes"] else f"{simulated:,}"
        return f"{text}, **{share} simulated**"
    return f"{text}, **{data['note']}**" if data["note"] else text


def hardware_text(speed: Mapping[str, Any], missing: str) -> str:
    """What an evaluation ran on, and how busy that was before."""
    load = number(speed["load_average_at_start"], "; load average {:g} when it started", "")
    return (speed["hardware"] or missing) + load


def coco_table(coco: Mapping[str, Any], missing: str) -> str:
    """COCO's twelve over the best 100 and 300 predictions of an image; empty without any."""
    tops = {top: coco[f"top_{top}"] for top in TOPS}
    if not any(tops.values()):
        return ""
    rows = []
    for top, numbers in tops.items():
        cells = [missing] * len(TWELVE)
        if numbers is not None:
            cells = [number(numbers[name], "{:.1f}", "-") for name in TWELVE]
        rows.append([f"top {top}", *cells])
    return markdown(rows, ["COCO, percent (-: no such object)", *TWELVE])


def froc_table(froc: Mapping[str, Any], missing: str) -> str:
    """Sensitivities of all lesions and of each class, and what was counted."""
    points = list(froc["sensitivity"])
    rows = [
        [name, *(number(curve["sensitivity"].get(f), "{:.3f}", missing) for f in points)]
        + [number(curve["cpm"], "{:.3f}", missing)]
        for name, curve in {"all": froc, **froc["per_class"]}.items()
    ]
    table = markdown(rows, ["sensitivity at false positives per image", *points, "CPM"])
    rule = froc["rule"][:1].upper() + froc["rule"][1:]
    return (
        f"{table}\nFROC of {froc['lesions']:,} lesions in {froc['images']:,} images, "
        f"{froc['negative_images']:,} of them without lesions. {rule}. CPM: mean sensitivity at "
        "1/8 to 8.\n"
    )


def markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table; what would end a cell is escaped."""
    lines = [headers, ["---"] * len(headers), *rows]
    lines = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
