# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Energy and CO2 of a training: codecarbon's figures if the run has them, else an estimate."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrex_mammo.errors import UserError

EMISSIONS = "emissions.csv"  # what codecarbon writes
GPU_WATTS, CORE_WATTS = 300.0, 10.0  # assumed, under load; the card says so
KG_PER_KWH = 0.475  # the world's average of 2018 by the IEA's Global Energy and CO2 Status Report


@dataclass(frozen=True)
class Energy:
    """Energy of a training.

    Attributes:
        kwh: electric energy.
        kg: of CO2 equivalent.
        method: in words, with every assumption.
    """

    kwh: float
    kg: float
    method: str


def energy_of(
    folder: Path,
    hours: float | None,
    machine: Mapping[str, Any] | None,
    processes: int | None,
    watts: float | None = None,
    kg_per_kwh: float = KG_PER_KWH,
) -> Energy | None:
    """Energy of a run.

    Args:
        folder: of the run; codecarbon's emissions.csv there comes first.
        hours: of wall-clock time; None if not recorded, and then there is no estimate.
        machine: as :func:`detrex_mammo.evaluation.hardware.describe_machine` tells.
        processes: of the run, one for each GPU if there are GPUs.
        watts: of everything that computed; by default assumed from the machine.
        kg_per_kwh: of CO2 equivalent.

    Returns:
        Energy: None if nothing can be said.
    """
    measured = folder / EMISSIONS
    if measured.is_file():
        return _read(measured)
    if hours is None or (watts is None and not machine):
        return None
    power, assumption = (watts, f"{watts:g} W as given") if watts else _power(machine, processes)
    kwh = hours * power / 1000
    return Energy(
        kwh,
        kwh * kg_per_kwh,
        f"estimated: {hours:.2f} h x {power:g} W ({assumption}) x {kg_per_kwh:g} kg per kWh; "
        "cooling, idle parts and manufacture are not counted",
    )


def _power(machine: Mapping[str, Any], processes: int | None) -> tuple[float, str]:
    if machine["gpu"]:
        number = processes or 1
        return number * GPU_WATTS, f"assumed: {GPU_WATTS:g} W for each of {number} GPUs"
    cores = machine["cores"]
    return cores * CORE_WATTS, f"assumed: {CORE_WATTS:g} W for each of {cores} processor cores"


def _read(path: Path) -> Energy:
    """Sum of codecarbon's rows, one for each start of the run."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("no rows")
        kwh = sum(float(row["energy_consumed"]) for row in rows)
        kg = sum(float(row["emissions"]) for row in rows)
        places = {row.get("country_name") for row in rows} - {"", None}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is not what codecarbon writes ({type(error).__name__}: {error}): "
            "remove it, or put the right one there"
        ) from error
    where = f", in {', '.join(sorted(places))}" if places else ""
    return Energy(kwh, kg, f"measured by codecarbon ({EMISSIONS}){where}")
