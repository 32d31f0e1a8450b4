# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Simulated masses and calcification clusters, inserted into real or synthetic mammograms.

Everything made here is simulated and says so wherever it is written down.
"""

from detrex_mammo.data.lesion_simulation.calcifications import simulate_cluster
from detrex_mammo.data.lesion_simulation.film import FilmCurve
from detrex_mammo.data.lesion_simulation.insertion import InsertedLesion, insert_lesions
from detrex_mammo.data.lesion_simulation.masses import simulate_mass
from detrex_mammo.data.lesion_simulation.parameters import (
    ClusterParameters,
    MassParameters,
    PlacementParameters,
    Range,
)

CATEGORIES = [
    {"id": 1, "name": "mass", "supercategory": "simulated lesion"},
    {"id": 2, "name": "calcification cluster", "supercategory": "simulated lesion"},
]

__all__ = [
    "CATEGORIES",
    "ClusterParameters",
    "FilmCurve",
    "InsertedLesion",
    "MassParameters",
    "PlacementParameters",
    "Range",
    "insert_lesions",
    "simulate_cluster",
    "simulate_mass",
]
