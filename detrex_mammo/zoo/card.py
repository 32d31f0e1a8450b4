# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A Hugging Face model card of an evaluated run: YAML front matter and text, from its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from detrex_mammo.config import shipped_root
from detrex_mammo.errors import UserError
from detrex_mammo.zoo.card_sections import SECTIONS
from detrex_mammo.zoo.energy import KG_PER_KWH, Energy, energy_of
from detrex_mammo.zoo.entry import make_entry
from detrex_mammo.zoo.run_folder import RunFolder
from detrex_mammo.zoo.several_sets import read_run

CARD = "README.md"


@dataclass(frozen=True)
class CardFacts:
    """What the sections of a card are written from.

    Attributes:
        run: the folder.
        entry: the same facts as in the zoo.
        energy: of the training; None if not known.
        license: of the weights; None if the user did not name it.
    """

    run: RunFolder
    entry: dict[str, Any]
    energy: Energy | None
    license: str | None = None

    @cached_property
    def is_simulated(self) -> bool:
        """Whether lesions of the evaluated data are simulated."""
        data = self.entry["data"]
        return bool(data["simulated_boxes"]) or "simulated" in (data["note"] or "")


def write_card(
    folder: str | Path,
    out: Path | None = None,
    license_id: str | None = None,
    watts: float | None = None,
    kg_per_kwh: float = KG_PER_KWH,
) -> Path:
    """Write the model card of an evaluated run.

    Args:
        folder: output folder of tools/train_net.py; with several test sets, that of one of them.
        out: the file; README.md in the folder by default. It must not exist.
        license_id: of the weights, as Hugging Face names it ("apache-2.0"); no file tells it.
        watts: power of the machine that trained, for the energy estimate.
        kg_per_kwh: CO2 equivalent of its electricity.

    Returns:
        Path: the new file.
    """
    run = read_run(folder)
    out = out or (run.results or run.path) / CARD
    if out.exists():
        raise UserError(f"{str(out)!r} exists: remove it, or give another --out")
    if not out.parent.is_dir():
        raise UserError(f"--out {str(out)!r}: there is no folder {str(out.parent)!r}")
    if any(value is not None and not value > 0 for value in (watts, kg_per_kwh)):
        raise UserError(f"--watts {watts} and --kg-per-kwh {kg_per_kwh} must be above 0")
    out.write_text(model_card(run, license_id, watts, kg_per_kwh), encoding="utf-8")
    return out


def model_card(
    run: RunFolder,
    license_id: str | None = None,
    watts: float | None = None,
    kg_per_kwh: float = KG_PER_KWH,
) -> str:
    """The text of a card; arguments as in :func:`write_card`."""
    entry = make_entry(run, run.default_name, shipped_root())
    training = entry["training"]
    machine = run.training_sessions[-1].get("machine") if run.training_sessions else None
    energy = None
    if run.is_training:  # else what the folder tells is the evaluation's
        hours, processes = training["hours"], training["processes"]
        energy = energy_of(run.path, hours, machine, processes, watts, kg_per_kwh)
    facts = CardFacts(run, entry, energy, license_id)
    head = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{head}---\n\n" + "\n".join(section(facts) for section in SECTIONS)


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """Metadata that the Hub reads."""
    entry = facts.entry
    results = _results(entry)
    trained_on = list(entry["training"]["data"] or {})
    matter: dict[str, Any] = {
        "license": facts.license or "unknown",
        "library_name": "detrex_mammo",
        "pipeline_tag": "object-detection",
        "tags": _tags(facts),
    }
    datasets = trained_on or [name for name in [entry["data"]["name"]] if name]
    if datasets:
        matter["datasets"] = datasets
    matter["metrics"] = list(dict.fromkeys(metric["type"] for metric in results))
    if results:
        note = " (simulated lesions)" if facts.is_simulated else ""
        name = entry["data"]["name"] or "not recorded"
        dataset = {"type": name, "name": name + note}
        task = {"type": "object-detection", "name": "Object detection"}
        result = {"task": task, "dataset": dataset, "metrics": results}
        matter["model-index"] = [{"name": entry["name"], "results": [result]}]
    return matter


def _tags(facts: CardFacts) -> list[str]:
    tags = ["object-detection", "deformable-detr", "detectron2"]
    if "MammographyMapper" in facts.run.config_text:
        tags.append("mammography")
    return [*tags, "simulated-lesions"] if facts.is_simulated else tags


def _results(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics that were measured."""
    coco = next((numbers for top in (100, 300) if (numbers := entry["coco"][f"top_{top}"])), {})
    froc = entry["froc"] or {"sensitivity": {}, "cpm": None}
    found = [
        ("mAP", "AP (IoU 0.50 to 0.95, percent)", coco.get("AP")),
        ("mAP", "AP50 (percent)", coco.get("AP50")),
        ("sensitivity", "sensitivity at 1 false positive per image", froc["sensitivity"].get("1")),
        ("CPM", "CPM (mean sensitivity at 1/8 to 8 false positives per image)", froc["cpm"]),
    ]
    return [
        {"type": kind, "name": name, "value": value}
        for kind, name, value in found
        if value is not None
    ]
