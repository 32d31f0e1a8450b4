# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DICOM mammograms to float pixels, in the standard's order, at full precision.

decode -> padding mask -> modality LUT -> VOI LUT or window -> MONOCHROME1 inversion, last
(DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2). Nothing is rounded to 8 bits on the way.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

from detrex_mammo.errors import UserError

WINDOWS = "'auto', 'window:i', 'minmax', 'percentile:low,high' or 'none'"
_CBIS_PATIENT = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_(P_\d+)_")
_VIEW_IN_TEXT = re.compile(r"(?<![A-Z])(CC|MLO|ML|LM|LMO|XCCL|XCCM|AT)(?![A-Z])")


@dataclass(frozen=True)
class DicomImage:
    """One decoded mammogram.

    Attributes:
        pixels: (H, W) float32 in [0, 255]; bright is dense tissue.
        record: patient_id, study_id, laterality ("L", "R" or None), view ("CC", "MLO", ... or
            None), pixel_spacing ([row, column] in mm or None), manufacturer, bits_stored,
            photometric, window (the policy that was used).
        padding_mask: (H, W) bool, True on pixel padding; None when the file names none.
    """

    pixels: np.ndarray
    record: dict[str, Any]
    padding_mask: np.ndarray | None = None


def read_dicom(
    path: str | os.PathLike,
    window: str = "auto",
    frame: int | None = None,
    allow_for_processing: bool = False,
) -> DicomImage:
    """Read a mammogram.

    Args:
        path: DICOM file.
        window: "auto": the file's first VOI LUT or window, else the range of its pixels;
            "window:i": its window number i, from 0; "minmax": the range of its pixels;
            "percentile:low,high": between two percentiles; "none": the range its bits allow.
            Padding never counts.
        frame: which frame of a multi-frame image, from 0.
        allow_for_processing: also take raw FOR PROCESSING images, which look different.

    Raises:
        UserError: the file is missing, cut off, not DICOM or without pixels; its codec is not
            installed; the window, frame or presentation intent is not possible.
    """
    dataset = _read_dataset(path)
    intent = str(dataset.get("PresentationIntentType", "")).upper()
    if intent == "FOR PROCESSING" and not allow_for_processing:
        raise UserError(
            f"{str(path)!r} is FOR PROCESSING (raw detector values): use its FOR PRESENTATION "
            "partner, or allow it explicitly with allow_for_processing"
        )
    stored = _one_frame(_decode(dataset, path), frame, path)
    padding = _padding_mask(stored, dataset)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    low_high_values = _grey_range(values, stored, padding, dataset, window, path)
    low, high, values = low_high_values
    scale = 255.0 / (high - low) if high > low else 0.0
    pixels = np.clip((values - low) * scale, 0.0, 255.0)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 255.0 - pixels
    if padding is not None:
        pixels[padding] = 0.0
    return DicomImage(pixels.astype(np.float32), _record(dataset, window), padding)


def _read_dataset(path) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError:
        raise UserError(f"DICOM file {str(path)!r} does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder: give a DICOM file") from None
    except InvalidDicomError:
        raise UserError(f"{str(path)!r} is not a DICOM file: it lacks the DICM prefix") from None
    except (EOFError, OSError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"DICOM file {str(path)!r} is cut off or damaged ({error})") from error
    if "PixelData" not in dataset:
        raise UserError(
            f"DICOM file {str(path)!r} holds no pixel data: it is cut off or no image "
            f"(modality {dataset.get('Modality', 'unknown')})"
        )
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(
            f"DICOM file {str(path)!r} is {photometric or 'of no photometric interpretation'}; "
            "a mammogram is MONOCHROME1 or MONOCHROME2"
        )
    return dataset


def _decode(dataset: pydicom.Dataset, path) -> np.ndarray:
    try:
        return dataset.pixel_array
    except Exception as error:  # pydicom's decoders raise many kinds
        reason = " ".join(str(error).split())
        if "missing" in reason and "dependenc" in reason or isinstance(error, ImportError):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise UserError(
                f"{str(path)!r} is compressed as {syntax}, which needs a decoder that is not "
                "installed: pip install 'detrex_mammo[dicom]'"
            ) from error
        raise UserError(
            f"pixels of {str(path)!r} cannot be decoded, the file is cut off or damaged ({reason})"
        ) from error


def _one_frame(stored: np.ndarray, frame: int | None, path) -> np.ndarray:
    if stored.ndim == 2:
        if frame not in (None, 0):
            raise UserError(f"frame is {frame}, but {str(path)!r} has one frame, 0")
        return stored
    if frame is None:
        raise UserError(
            f"{str(path)!r} has {len(stored)} frames: choose one with frame=0 to {len(stored) - 1}"
        )
    if not 0 <= frame < len(stored):
        raise UserError(f"frame is {frame}, but {str(path)!r} has frames 0 to {len(stored) - 1}")
    return stored[frame]


def _padding_mask(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Pixels between PixelPaddingValue and PixelPaddingRangeLimit, which come before any LUT."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit", value)
    low, high = sorted((int(value), int(limit)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _grey_range(values, stored, padding, dataset, window, path):
    """(value shown black, value shown white, values), the VOI transformation applied."""
    kind, _, argument = str(window).partition(":")
    has_lut, has_window = "VOILUTSequence" in dataset, "WindowCenter" in dataset
    valid = values if padding is None else values[~padding]
    if kind == "auto" and (has_lut or has_window):
        kind, argument = "window", "0"
    if kind == "window":
        return _windowed(values, stored, dataset, argument, path)
    if kind in ("auto", "minmax"):
        return float(valid.min()), float(valid.max()), values
    if kind == "percentile":
        low, high = _two_numbers(argument, window)
        return (*np.percentile(valid, (low, high)).tolist(), values)
    if kind == "none":
        ends = _stored_range(dataset)
        low, high = sorted(np.asarray(apply_modality_lut(ends, dataset), np.float64).tolist())
        return low, high, values
    raise UserError(f"window is {window!r}; it must be {WINDOWS}")


def _windowed(values, stored, dataset, argument, path):
    index = int(argument) if argument.isdigit() else -1
    luts = len(dataset.get("VOILUTSequence", []))
    windows = (
        np.atleast_1d(dataset.get("WindowCenter", [])).size if "WindowCenter" in dataset else 0
    )
    if luts and 0 <= index < luts:
        item = dataset.VOILUTSequence[index]
        bits = int(item.LUTDescriptor[2])
        shown = apply_voi(values.astype(np.int64), dataset, index=index)
        return 0.0, float(2**bits - 1), np.asarray(shown, np.float64)
    if 0 <= index < windows:
        ends = np.asarray(apply_windowing_range(dataset, index), np.float64)
        # apply_windowing reads the stored bits for its output range: give it rescaled values.
        shown = np.asarray(apply_windowing(values, dataset, index=index), np.float64)
        return float(ends[0]), float(ends[1]), shown
    raise UserError(
        f"window is 'window:{argument}', but {str(path)!r} has {luts} VOI LUTs and {windows} "
        "windows: use a number from 0, or 'auto'"
    )


def apply_windowing_range(dataset: pydicom.Dataset, index: int) -> tuple[float, float]:
    """Values that a window maps to black and to white: pydicom's output range of the window."""
    far = np.array([-1e12, 1e12])
    low, high = np.asarray(apply_windowing(far, dataset, index=index), np.float64)
    return float(low), float(high)


def _stored_range(dataset: pydicom.Dataset) -> np.ndarray:
    bits = int(dataset.BitsStored)
    if dataset.PixelRepresentation:
        return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    return np.array([0, 2**bits - 1])


def _two_numbers(text: str, window: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 100:
        raise UserError(
            f"window is {window!r}; percentiles are two numbers, 0 <= low < high <= 100"
        )
    return low, high


def _record(dataset: pydicom.Dataset, window: str) -> dict[str, Any]:
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    return {
        "patient_id": _patient(str(dataset.get("PatientID", ""))),
        "study_id": str(dataset.get("StudyInstanceUID", "")) or None,
        "laterality": _laterality(dataset),
        "view": _view(dataset),
        "pixel_spacing": [float(value) for value in spacing] if spacing else None,
        "manufacturer": str(dataset.get("Manufacturer", "")) or None,
        "bits_stored": int(dataset.BitsStored),
        "photometric": str(dataset.PhotometricInterpretation),
        "window": window,
    }


def _patient(patient_id: str) -> str | None:
    """The patient; CBIS-DDSM writes a folder name there, ``Mass-Test_P_00173_LEFT_CC``."""
    match = _CBIS_PATIENT.search(patient_id)
    return match.group(1) if match else (patient_id or None)


def _laterality(dataset: pydicom.Dataset) -> str | None:
    for name in ("ImageLaterality", "Laterality"):
        value = str(dataset.get(name, "")).strip().upper()[:1]
        if value in ("L", "R"):
            return value
    match = re.search(r"(?<![A-Z])(LEFT|RIGHT)(?![A-Z])", str(dataset.get("PatientID", "")).upper())
    return match.group(1)[0] if match else None


def _view(dataset: pydicom.Dataset) -> str | None:
    codes = dataset.get("ViewCodeSequence") or []
    orientation = dataset.get("PatientOrientation") or ""
    if not isinstance(orientation, str):
        orientation = " ".join(str(part) for part in orientation)
    meaning = str(codes[0].get("CodeMeaning", "")).lower() if len(codes) else ""
    if meaning in ("cranio-caudal", "medio-lateral oblique"):
        return "CC" if meaning.startswith("cranio") else "MLO"
    for text in (
        str(dataset.get("ViewPosition", "")),
        orientation,
        str(dataset.get("SeriesDescription", "")),
        str(dataset.get("PatientID", "")).replace("_", " "),
    ):
        match = _VIEW_IN_TEXT.search(text.upper())
        if match:
            return match.group(1)
    return None
