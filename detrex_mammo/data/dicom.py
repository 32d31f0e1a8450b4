# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DICOM mammograms to float pixels, in the standard's order, at full precision.

decode -> padding mask -> modality LUT -> VOI LUT or window -> MONOCHROME1 inversion, last
(DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2). Each stored value is taken through it once, in
double precision, as an entry of a table; nothing is rounded to 8 bits on the way.
PresentationLUTShape INVERSE is not read: it says MONOCHROME1 once more and would invert twice.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi, pixel_array

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.dicom_header import Header, open_dicom
from detrex_mammo.data.dicom_record import describe
from detrex_mammo.data.grey_levels import WindowPolicy, apply_window, range_of_pixels, stretch
from detrex_mammo.errors import UserError

# pydicom logs the traceback of each decoder that fails; ours is one sentence.
logging.getLogger("pydicom.pixels.decoders.base").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class DicomImage:
    """One decoded mammogram.

    Attributes:
        pixels: (H, W) float32 in [0, 255]; bright is dense tissue.
        record: patient_id, study_id, laterality ("L", "R" or None), view ("CC", "MLO", ... or
            None), pixel_spacing ([row, column] in mm or None), manufacturer, bits_stored,
            photometric, window (the policy that was used).
        padding_mask: (H, W) bool, True on pixel padding; None when there is none.
        stored: (H, W) stored values, integers.
        steps: what was done to them, one sentence each, in order: decoding, padding, modality LUT,
            window, inversion.
    """

    pixels: np.ndarray
    record: dict[str, Any]
    padding_mask: np.ndarray | None
    stored: np.ndarray
    steps: dict[str, str]


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
        UserError: the file is missing, cut off, not DICOM or without pixels; a tag is damaged; its
            codec is not installed; the window, frame or presentation intent is not possible.
    """
    policy = WindowPolicy.parse(window)
    dataset, header = open_dicom(path)
    if header.for_processing and not allow_for_processing:
        raise UserError(
            f"{str(path)!r} is FOR PROCESSING (raw detector values): use its FOR PRESENTATION "
            "partner, or allow it with allow_for_processing=True"
        )
    stored = _decode(dataset, header, frame, path)
    padding = _padding_mask(stored, header)
    _check_range(stored, padding, header, path)
    first = int(stored.min())
    offsets = stored if first == 0 else stored.astype(np.int64) - first
    levels = np.arange(first, int(stored.max()) + 1)
    steps = {"stored values": _describe_stored(dataset, header, stored, frame)}
    steps["padding"] = _describe_padding(header, padding)
    try:
        values, steps["modality LUT"] = _modality(levels, dataset)
        counts = _histogram(offsets, None if padding is None else ~padding, len(levels))
        if policy.kind == "tissue":
            preview = stretch(values, *range_of_pixels(values, counts, (0.0, 100.0)))
            preview = (255.0 - preview if header.is_inverted else preview).astype(np.float32)
            tissue = find_breast(preview[offsets]).mask
            counts = _histogram(
                offsets, tissue if padding is None else tissue & ~padding, len(levels)
            )
        table, steps["window"] = _shown(values, counts, dataset, header, policy)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error
    except Exception as error:  # damaged tables: pydicom raises many kinds
        raise UserError(
            f"grey value tables of {str(path)!r} are damaged ({type(error).__name__}: {error}): "
            "repair the file, or use window 'minmax'"
        ) from error
    if header.is_inverted:
        table = 255.0 - table
    steps["inversion"] = (
        "MONOCHROME1, so inverted last" if header.is_inverted else "MONOCHROME2, so not inverted"
    )
    pixels = table.astype(np.float32)[offsets]
    if padding is not None:
        pixels[padding] = 0.0
    return DicomImage(pixels, {**describe(dataset), "window": window}, padding, stored, steps)


def _decode(
    dataset: pydicom.Dataset, header: Header, frame: int | None, path: str | os.PathLike
) -> np.ndarray:
    """Stored values (H, W) of one frame; the others are not decoded."""
    frames = header.frames
    if frame is None and frames > 1:
        raise UserError(
            f"{str(path)!r} has {frames} frames: choose one with frame=0 to {frames - 1}"
        )
    if not 0 <= (frame or 0) < frames:
        raise UserError(f"frame is {frame}, but {str(path)!r} has frames 0 to {frames - 1}")
    try:
        # Bits above BitsStored are cut off where they may hold something else: a missing sign or
        # an overlay. Elsewhere they show that the header is wrong, see _check_range.
        masked = header.is_signed or _has_overlay_in_pixels(dataset)
        stored = pixel_array(dataset, index=frame or 0, correct_unused_bits=masked)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise many kinds; a Rust panic is no Exception
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
    if stored.shape != (header.rows, header.columns):
        raise UserError(
            f"pixels of {str(path)!r} are of shape {stored.shape}, but its header says "
            f"{header.rows} rows and {header.columns} columns: it is damaged"
        )
    return stored


def _has_overlay_in_pixels(dataset: pydicom.Dataset) -> bool:
    """Whether the bits above BitsStored hold graphics, an old way to store them."""
    groups = {
        tag.group for tag in dataset.keys() if 0x6000 <= tag.group <= 0x60FF and tag.elem == 0x102
    }
    return any((group, 0x3000) not in dataset for group in groups)


def _check_range(
    stored: np.ndarray, padding: np.ndarray | None, header: Header, path: str | os.PathLike
) -> None:
    low, high = header.storable
    image = stored if padding is None else stored[~padding]
    if image.min() < low or image.max() > high:
        raise UserError(
            f"{str(path)!r} holds values from {image.min()} to {image.max()}, but BitsStored is "
            f"{header.bits_stored}: repair its header"
        )


def _histogram(offsets: np.ndarray, counted: np.ndarray | None, num_levels: int) -> np.ndarray:
    """(V,) pixels of each level, of those that count."""
    chosen = offsets if counted is None else offsets[counted]
    return np.bincount(chosen.ravel(), minlength=num_levels)


def _padding_mask(stored: np.ndarray, header: Header) -> np.ndarray | None:
    """Pixels between PixelPaddingValue and PixelPaddingRangeLimit, which come before any LUT."""
    if header.padding is None:
        return None
    low, high = header.padding
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() and not mask.all() else None


def _modality(levels: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """(V,) float64 grey value of each stored value after the modality LUT, and a sentence."""
    values = np.asarray(apply_modality_lut(levels, dataset), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the modality LUT gives values that are no numbers")
    if dataset.get("ModalityLUTSequence"):
        return values, f"table, to {values.min():g} ... {values.max():g}"
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values, "none"
    return values, f"x {slope} + {intercept}, to {values.min():g} ... {values.max():g}"


def _shown(
    values: np.ndarray,
    counts: np.ndarray,
    dataset: pydicom.Dataset,
    header: Header,
    policy: WindowPolicy,
) -> tuple[np.ndarray, str]:
    """Grey value in [0, 255] of each stored value, before MONOCHROME1 is inverted, and a sentence.

    Args:
        values: (V,) after the modality LUT.
        counts: (V,) pixels with each that count.
        dataset: with its windows and VOI LUTs.
        header: of the data set.
        policy: the setting.
    """
    kind, luts, windows = policy.kind, [], []
    if kind in ("auto", "window", "lut"):
        luts, windows = dataset.get("VOILUTSequence") or [], _windows(dataset)
    if kind == "auto":
        kind = "lut" if luts else "window" if windows else "minmax"
    if kind == "none":
        ends = np.asarray(apply_modality_lut(np.array(header.storable), dataset), np.float64)
        low, high = float(ends.min()), float(ends.max())
        return stretch(
            values, low, high
        ), f"none: all that the bits can store, {low:g} ... {high:g}"
    if kind in ("minmax", "percentile", "tissue"):
        low, high = range_of_pixels(values, counts, policy.percentiles)
        return stretch(values, low, high), f"{_policy_text(kind, policy)}: {low:g} ... {high:g}"
    number = len(luts) if kind == "lut" else len(windows)
    if policy.index >= number:
        raise UserError(
            f"window is '{kind}:{policy.index}', but the file has {len(luts)} VOI LUTs and "
            f"{len(windows)} windows, counted from 0"
        )
    place = f"number {policy.index} of the file's {number}"
    if kind == "lut":
        bits = int(luts[policy.index].LUTDescriptor[2])
        shown = apply_voi(np.rint(values).astype(np.int64), dataset, index=policy.index)
        shown = np.asarray(shown, np.float64)
        return stretch(shown, 0.0, 2.0**bits - 1), f"VOI LUT {place}, {bits} bits"
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    centre, width = windows[policy.index]
    shown = apply_window(values, centre, width, function)
    return shown, f"window {place}: centre {centre:g}, width {width:g}, {function}"


def _policy_text(kind: str, policy: WindowPolicy) -> str:
    low, high = policy.percentiles
    return {
        "minmax": "smallest and largest pixel",
        "percentile": f"percentiles {low:g} and {high:g} of the pixels",
        "tissue": f"percentiles {low:g} and {high:g} of the breast",
    }[kind]


def _windows(dataset: pydicom.Dataset) -> list[tuple[float, float]]:
    """(centre, width) of each window; an empty tag is none."""
    ends = []
    for name in ("WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        several = isinstance(value, pydicom.multival.MultiValue | list)
        ends.append([] if value is None else [float(v) for v in (value if several else [value])])
    windows = list(zip(*ends))
    if not np.isfinite(windows).all():
        raise ValueError(f"window {windows} is no number")
    return windows


def _describe_stored(
    dataset: pydicom.Dataset, header: Header, stored: np.ndarray, frame: int | None
) -> str:
    syntax = dataset.file_meta.TransferSyntaxUID.name
    sign = "signed" if header.is_signed else "unsigned"
    which = f", frame {frame or 0} of {header.frames}" if header.frames > 1 else ""
    return (
        f"{syntax}{which}: {header.columns} x {header.rows}, {sign}, {header.bits_stored} of "
        f"{header.bits_allocated} bits, {stored.min()} ... {stored.max()}"
    )


def _describe_padding(header: Header, mask: np.ndarray | None) -> str:
    if header.padding is None:
        return "none declared"
    low, high = header.padding
    share = 0.0 if mask is None else float(mask.mean())
    return f"stored values {low} ... {high} are no image: {share:.1%} of the pixels"
