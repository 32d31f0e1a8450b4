# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DICOM mammograms to float pixels, in the standard's order, at full precision.

decode -> padding mask -> modality LUT -> VOI LUT or window -> MONOCHROME1 inversion, last
(DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2). Each stored value is taken through it once, in
double precision, as an entry of a table; nothing is rounded to 8 bits on the way.
PresentationLUTShape INVERSE is not read: it says MONOCHROME1 once more and would invert twice.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, apply_voi, pixel_array

from detrex_mammo.data.dicom_record import describe
from detrex_mammo.data.grey_levels import WindowPolicy, apply_window, range_of_pixels, stretch
from detrex_mammo.errors import UserError


@dataclass(frozen=True)
class DicomImage:
    """One decoded mammogram.

    Attributes:
        pixels: (H, W) float32 in [0, 255]; bright is dense tissue.
        record: patient_id, study_id, laterality ("L", "R" or None), view ("CC", "MLO", ... or
            None), pixel_spacing ([row, column] in mm or None), manufacturer, bits_stored,
            photometric, window (the policy that was used).
        padding_mask: (H, W) bool, True on pixel padding; None when there is none.
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
        window: see :meth:`detrex_mammo.data.grey_levels.WindowPolicy.parse`. Padding never counts.
        frame: which frame of a multi-frame image, from 0.
        allow_for_processing: also take raw FOR PROCESSING images, which look different.

    Raises:
        UserError: the file is missing, cut off, not DICOM or without pixels; its codec is not
            installed; the window, frame or presentation intent is not possible.
    """
    policy = WindowPolicy.parse(window)
    dataset = _read_dataset(path)
    intent = str(dataset.get("PresentationIntentType", "")).upper()
    if intent == "FOR PROCESSING" and not allow_for_processing:
        raise UserError(
            f"{str(path)!r} is FOR PROCESSING (raw detector values): use its FOR PRESENTATION "
            "partner, or allow it with allow_for_processing=True"
        )
    stored = _decode(dataset, frame, path)
    padding = _padding_mask(stored, dataset)
    first = int(stored.min())
    levels = np.arange(first, int(stored.max()) + 1)
    offsets = stored if first == 0 else stored.astype(np.int64) - first
    counts = np.bincount((offsets if padding is None else offsets[~padding]).ravel())
    counts = np.pad(counts, (0, len(levels) - len(counts)))
    try:
        table = _shown(levels, counts, dataset, policy)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        raise UserError(
            f"grey value tables of {str(path)!r} are damaged ({type(error).__name__}: {error}): "
            "repair the file, or use window 'minmax'"
        ) from error
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255.0 - table
    pixels = table.astype(np.float32)[offsets]
    if padding is not None:
        pixels[padding] = 0.0
    return DicomImage(pixels, {**describe(dataset), "window": window}, padding)


def _read_dataset(path: str | os.PathLike) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError:
        raise UserError(f"DICOM file {str(path)!r} does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder: give a DICOM file") from None
    except InvalidDicomError:
        raise UserError(f"{str(path)!r} is not a DICOM file: it lacks the DICM prefix") from None
    except Exception as error:  # pydicom raises many kinds on damaged files
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
    if dataset.get("BitsAllocated") not in (8, 16) or not dataset.get("BitsStored"):
        raise UserError(
            f"DICOM file {str(path)!r} has {dataset.get('BitsAllocated')} bits allocated and "
            f"{dataset.get('BitsStored')} stored; a mammogram has 8 or 16 allocated"
        )
    return dataset


def _decode(dataset: pydicom.Dataset, frame: int | None, path: str | os.PathLike) -> np.ndarray:
    """Stored values (H, W) of one frame; the others are not decoded."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise UserError(
            f"{str(path)!r} has {frames} frames: choose one with frame=0 to {frames - 1}"
        )
    if not 0 <= (frame or 0) < frames:
        raise UserError(f"frame is {frame}, but {str(path)!r} has frames 0 to {frames - 1}")
    try:
        return pixel_array(dataset, index=frame or 0)
    except Exception as error:  # pydicom's decoders raise many kinds
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) or ("missing" in reason and "dependenc" in reason):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            raise UserError(
                f"{str(path)!r} is compressed as {syntax}, which needs a decoder that is not "
                "installed: pip install 'detrex_mammo[dicom]'"
            ) from error
        raise UserError(
            f"pixels of {str(path)!r} cannot be decoded, the file is cut off or damaged ({reason})"
        ) from error


def _padding_mask(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray | None:
    """Pixels between PixelPaddingValue and PixelPaddingRangeLimit, which come before any LUT."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _shown(
    levels: np.ndarray, counts: np.ndarray, dataset: pydicom.Dataset, policy: WindowPolicy
) -> np.ndarray:
    """Grey value in [0, 255] of each stored value, before MONOCHROME1 is inverted.

    Args:
        levels: (V,) stored values, one apart.
        counts: (V,) pixels with each, padding left out.
    """
    values = np.asarray(apply_modality_lut(levels, dataset), dtype=np.float64)
    luts = dataset.get("VOILUTSequence") or []
    windows = _windows(dataset)
    kind = policy.kind
    if kind == "auto":
        kind = "lut" if luts else "window" if windows else "minmax"
    if kind == "none":
        ends = np.asarray(apply_modality_lut(_storable(dataset), dataset), np.float64)
        return stretch(values, float(ends.min()), float(ends.max()))
    if kind in ("minmax", "percentile"):
        return stretch(values, *range_of_pixels(values, counts, policy.percentiles))
    number = len(luts) if kind == "lut" else len(windows)
    if policy.index >= number:
        raise UserError(
            f"window is '{kind}:{policy.index}', but the file has {len(luts)} VOI LUTs and "
            f"{len(windows)} windows, counted from 0"
        )
    if kind == "lut":
        bits = int(luts[policy.index].LUTDescriptor[2])
        shown = apply_voi(np.rint(values).astype(np.int64), dataset, index=policy.index)
        return stretch(np.asarray(shown, np.float64), 0.0, 2.0**bits - 1)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    return apply_window(values, *windows[policy.index], function)


def _windows(dataset: pydicom.Dataset) -> list[tuple[float, float]]:
    """(centre, width) of each window; an empty tag is none."""
    ends = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        several = isinstance(value, pydicom.multival.MultiValue | list)
        ends.append([] if value is None else [float(v) for v in (value if several else [value])])
    return list(zip(*ends))


def _storable(dataset: pydicom.Dataset) -> np.ndarray:
    """Smallest and largest value that the stored bits can hold."""
    bits = int(dataset.BitsStored)
    if dataset.get("PixelRepresentation"):
        return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1])
    return np.array([0, 2**bits - 1])
