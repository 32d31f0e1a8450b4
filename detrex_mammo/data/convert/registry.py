# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The converters by the name that ``tools/prepare_data.py`` calls them.

Each module has ``add_arguments(parser)`` and ``convert(root, out, **options) -> Dataset``. Its
images stay where they are, relative to ``root``; a module with ``WRITES_IMAGES = True`` writes
them below ``out``.
"""

from importlib import import_module
from types import ModuleType

# name: (module, one line of help)
CONVERTERS: dict[str, tuple[str, str]] = {
    "cbis-ddsm": ("cbis_ddsm", "CBIS-DDSM as TCIA delivers it, DICOM and CSV"),
    "inbreast": ("inbreast", "INbreast, DICOM and OsiriX XML"),
    "vindr-mammo": ("vindr", "VinDr-Mammo of PhysioNet, DICOM and CSV"),
    "mini-mias": ("mini_mias", "mini-MIAS, PGM and Info.txt"),
    "rsna": ("rsna", "RSNA 2023 (Kaggle), which has no boxes: its negatives"),
    "csaw-s": ("csaw_s", "CSAW-S of Zenodo, images and masks as PNG"),
    "csaw-cc": ("csaw_cc", "CSAW-CC of researchdata.se, DICOM, CSV and masks"),
    "bcs-dbt": ("bcs_dbt", "BCS-DBT of TCIA: the annotated slices, written as 16-bit PNG"),
    "embed": ("embed", "EMBED Open Data of Emory, DICOM and two tables"),
    "omi-db": ("omidb", "OMI-DB (OPTIMAM), through the package omidb"),
    "dmid": ("dmid", "DMID of figshare, TIFF, DICOM, masks and a list"),
    # common formats
    "voc": ("voc", "Pascal VOC, MammoMix's layout too"),
    "kitti": ("kitti", "KITTI sequences"),
    "yolo": ("yolo", "YOLO text files with data.yaml or classes.txt"),
    "csv": ("csv_table", "a table: file,xmin,ymin,xmax,ymax,label[,patient...]"),
    "coco": ("coco", "COCO JSON, one file or several to merge"),
}


def load(name: str) -> ModuleType:
    """A converter's module."""
    return import_module(f"{__package__}.{CONVERTERS[name][0]}")
