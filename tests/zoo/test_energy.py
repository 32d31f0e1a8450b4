# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Energy: codecarbon's figures first, else the formula by hand, else nothing."""

from pathlib import Path

import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.zoo.energy import energy_of

CPU = {"cores": 2, "gpu": None}
GPU = {"cores": 64, "gpu": {"name": "any"}}


def test_formula_by_hand(tmp_path: Path) -> None:
    """Three hours on 2 cores of 10 W are 0.06 kWh and, at 0.475 kg per kWh, 0.0285 kg."""
    found = energy_of(tmp_path, 3.0, CPU, 1)
    assert (found.kwh, found.kg) == pytest.approx((0.06, 0.0285))
    assert "assumed: 10 W for each of 2 processor cores" in found.method
    assert "3.00 h x 20 W" in found.method and "0.475 kg per kWh" in found.method


def test_gpus_and_given_values(tmp_path: Path) -> None:
    found = energy_of(tmp_path, 10.0, GPU, 8)  # 10 h x 8 x 300 W
    assert found.kwh == pytest.approx(24) and "each of 8 GPUs" in found.method
    found = energy_of(tmp_path, 10.0, None, None, watts=500, kg_per_kwh=0.1)
    assert (found.kwh, found.kg) == pytest.approx((5, 0.5)) and "500 W as given" in found.method


def test_nothing_without_hours_or_power(tmp_path: Path) -> None:
    assert energy_of(tmp_path, None, CPU, 1, watts=100) is None
    assert energy_of(tmp_path, 1.0, None, None) is None


def test_codecarbon_comes_first(tmp_path: Path) -> None:
    head = "timestamp,duration,emissions,energy_consumed,country_name\n"
    (tmp_path / "emissions.csv").write_text(f"{head}t,1,0.25,1.5,Norway\nt,1,0.5,2.0,Norway\n")
    found = energy_of(tmp_path, 3.0, CPU, 1)
    assert (found.kwh, found.kg) == pytest.approx((3.5, 0.75))
    assert "codecarbon" in found.method and "Norway" in found.method


@pytest.mark.parametrize(
    "text", ["", "emissions\n1\n", "emissions,energy_consumed\n1,x\n", "a,b\n"]
)
def test_a_damaged_file_of_codecarbon_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "emissions.csv").write_text(text)
    with pytest.raises(UserError, match="is not what codecarbon writes"):
        energy_of(tmp_path, 3.0, CPU, 1)
