# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A plateau schedule that writes down what each process is told."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.utils import comm

from detrex_mammo.engine.plateau import PlateauSchedule


@dataclass
class WrittenPlateau(PlateauSchedule):
    """Appends each multiplier to a file of its process, if it has a folder."""

    folder: str = ""

    def __call__(self, iteration: int, iters_per_epoch: int, max_iter: int) -> float:
        value = super().__call__(iteration, iters_per_epoch, max_iter)
        if self.folder:
            with open(Path(self.folder) / f"rates_{comm.get_rank()}", "a") as file:
                file.write(f"{value}\n")
        return value


def read_rates(folder: Path, rank: int) -> list[float]:
    return [float(line) for line in (folder / f"rates_{rank}").read_text().split()]
