# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Who and what a DICOM mammogram shows, also where the proper tags are empty."""

import math
import re
from typing import Any

import pydicom

from detrex_mammo.data.dicom_header import text_of, value_of

# CBIS-DDSM writes a folder name as patient, ``Mass-Test_P_00173_LEFT_CC``; the patient is P_00173.
_CBIS_PATIENT = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_(P_\d+)_")
# A side may stand right before the view: "LCC", "R MLO".
_VIEW_IN_TEXT = re.compile(r"(?<![A-Z])([LR])?[ _-]*(XCCL|XCCM|CC|MLO|LMO|ML|LM)(?![A-Z])")
_SIDE_IN_TEXT = re.compile(r"(?<![A-Z])(LEFT|RIGHT)(?![A-Z])")
# PS3.16 CID 4014: SNOMED CT codes and their SNOMED-RT predecessors.
_VIEW_CODES = {
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
    "399099002": "LMO",
    "R-10230": "LMO",
}
_VIEW_MEANINGS = {
    "cranio-caudal": "CC",
    "medio-lateral oblique": "MLO",
    "medial-lateral": "ML",
    "medio-lateral": "ML",
    "latero-medial": "LM",
    "latero-medial oblique": "LMO",
}
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def describe(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Keys of a dataset record, None where the file does not say.

    Returns:
        dict: patient_id, study_id, laterality ("L" or "R"), view ("CC", "MLO", ...),
        pixel_spacing ([row, column] in mm; that of the detector or the scanner if the image has
        none of its own), manufacturer, bits_stored, photometric.
    """
    return {
        "patient_id": _patient(text_of(dataset, "PatientID")),
        "study_id": text_of(dataset, "StudyInstanceUID") or None,
        "laterality": _laterality(dataset),
        "view": _view(dataset),
        "pixel_spacing": _spacing(dataset),
        "manufacturer": text_of(dataset, "Manufacturer") or None,
        "bits_stored": int(dataset.BitsStored),
        "photometric": str(dataset.PhotometricInterpretation),
    }


def _patient(patient_id: str) -> str | None:
    match = _CBIS_PATIENT.search(patient_id)
    return match.group(1) if match else (patient_id or None)


def _free_texts(dataset: pydicom.Dataset) -> list[str]:
    """Where sites write side and view, upper case. A PatientOrientation of two values is none."""
    texts = [
        text_of(dataset, n) for n in ("PatientOrientation", "SeriesDescription", "ProtocolName")
    ]
    patient_id = text_of(dataset, "PatientID")
    if _CBIS_PATIENT.search(patient_id):
        texts.append(patient_id)
    return [text.upper().replace("_", " ") for text in texts]


def _laterality(dataset: pydicom.Dataset) -> str | None:
    for name in ("ImageLaterality", "Laterality"):
        value = text_of(dataset, name).upper()[:1]
        if value in ("L", "R"):
            return value
    for text in _free_texts(dataset):
        view = _VIEW_IN_TEXT.search(text)
        side = view.group(1) if view else None
        if side is None:
            match = _SIDE_IN_TEXT.search(text)
            side = match.group(1)[0] if match else None
        if side is not None:
            return side
    return None


def _view(dataset: pydicom.Dataset) -> str | None:
    position = text_of(dataset, "ViewPosition").upper()
    if position:
        return position
    codes = value_of(dataset, "ViewCodeSequence")
    for item in codes if isinstance(codes, pydicom.Sequence) else []:
        code, meaning = text_of(item, "CodeValue"), text_of(item, "CodeMeaning").lower()
        view = _VIEW_CODES.get(code) or _VIEW_MEANINGS.get(meaning)
        if view:
            return view
    for text in _free_texts(dataset):
        match = _VIEW_IN_TEXT.search(text)
        if match:
            return match.group(2)
    return None


def _spacing(dataset: pydicom.Dataset) -> list[float] | None:
    for name in _SPACINGS:
        value = value_of(dataset, name)
        if isinstance(value, pydicom.multival.MultiValue) and len(value) == 2:
            try:
                row, column = (float(part) for part in value)
            except (TypeError, ValueError):
                continue
            if all(math.isfinite(part) and part > 0 for part in (row, column)):
                return [row, column]
    return None
