# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What happens to one mammogram from its file to the network's input, step by step."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.breast import BreastRegion, find_breast
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import is_dicom, read_picture
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing, laterality_conflict
from detrex_mammo.errors import UserError

# Longer side of a step's picture.
PICTURE_SIZE = 1000


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: two words at most.
        text: what was done, in figures.
        picture: (H, W) or (H, W, 3) BGR uint8 after this step; None if it shows nothing new.
    """

    name: str
    text: str
    picture: np.ndarray | None = None


def inspect(
    path: str | os.PathLike, mapper: MammographyMapper, frame: int | None = None
) -> Iterator[Step]:
    """Take a file through a mapper's preprocessing and augmentations, one step at a time.

    Args:
        path: DICOM or picture.
        mapper: of evaluation.
        frame: which frame of a multi-frame DICOM file, from 0.

    Yields:
        Step: those before a failure come out before its error.

    Raises:
        UserError: a step is not possible.
    """
    spec, record = mapper.preprocessing, {"file_name": str(path), "frame": frame}
    pixels = yield from _grey_values(path, spec, frame, record)
    region = find_breast(pixels)
    yield Step("breast", _describe_breast(region, record), _outlined(pixels, region))
    geometry = spec.geometry_from(pixels.shape, region, record)
    crop = Geometry(geometry.original_size, geometry.crop)
    kept = region.mask[crop.crop[1] : crop.crop[3], crop.crop[0] : crop.crop[2]].sum()
    share = crop.size[0] * crop.size[1] / pixels.size
    yield Step(
        "crop",
        f"columns {crop.crop[0]} to {crop.crop[2]}, rows {crop.crop[1]} to {crop.crop[3]}: "
        f"{share:.1%} of the image, {kept / region.mask.sum():.2%} of the breast"
        if spec.crop_breast
        else "off",
        _small(crop.apply_image(pixels)),
    )
    turned = geometry.apply_image(pixels)
    side = f"the chest wall belongs on the {spec.chest_wall}" if spec.chest_wall else "off"
    yield Step("flip", f"{side}: {'mirrored' if geometry.flip else 'not mirrored'}", _small(turned))
    image = mapper(record)["image"]
    values = image.numpy()
    if not np.array_equal(values[0], values[1]) or not np.array_equal(values[0], values[2]):
        raise AssertionError("the three channels differ")
    yield Step(
        "network input",
        f"{values.shape[0]} equal channels of {values.shape[2]} x {values.shape[1]} (width x "
        f"height) float32, {values.min():.4f} ... {values.max():.4f}, "
        f"{len(np.unique(values[0]))} different values; the model subtracts its pixel_mean and "
        "divides by its pixel_std",
        _small(values[0]),
    )


def _grey_values(
    path: str | os.PathLike, spec: Preprocessing, frame: int | None, record: dict[str, Any]
) -> Iterator[Step]:
    """The steps up to grey values in [0, 255], which it returns; fills the record."""
    if not is_dicom(path):
        stored = read_picture(path)
        yield Step("file", f"picture {str(path)!r} of {os.path.getsize(path)} bytes")
        yield Step("stored values", _describe_stored(stored), _stretched(stored))
        pixels = spec.read(path, frame)
        yield Step("window", f"policy {spec.window!r}: {_describe_values(pixels)}", _small(pixels))
        return pixels
    from detrex_mammo.data.dicom import read_dicom
    from detrex_mammo.data.dicom_header import open_dicom, text_of

    dataset, header = open_dicom(path)
    words = [text_of(dataset, name) for name in ("Modality", "PresentationIntentType")]
    yield Step(
        "file",
        f"DICOM {str(path)!r} of {os.path.getsize(path)} bytes: {words[0] or 'no modality'}, "
        f"{words[1] or 'no presentation intent'}, {header.frames} frame(s)",
    )
    image = read_dicom(path, spec.window, frame, spec.allow_for_processing)
    record.update({key: image.record[key] for key in ("laterality", "view")})
    shown = 255 - image.pixels if header.is_inverted else image.pixels
    pictures = {"stored values": _stretched(image.stored), "window": _small(shown)}
    if image.padding_mask is not None:
        pictures["padding"] = _small(image.padding_mask * np.float32(255))
    if header.is_inverted:
        pictures["inversion"] = _small(image.pixels)
    facts = [f"{key} {image.record[key] or 'unknown'}" for key in ("laterality", "view")]
    spacing = image.record["pixel_spacing"]
    facts.append(f"spacing {' x '.join(f'{s:g}' for s in spacing)} mm" if spacing else "no spacing")
    yield Step("header", ", ".join([*facts, image.record["manufacturer"] or "no manufacturer"]))
    for name, text in image.steps.items():
        before = f"policy {spec.window!r}, " if name == "window" else ""
        after = f"; {_describe_values(image.pixels)}" if name == "inversion" else ""
        yield Step(name, before + text + after, pictures.get(name))
    return image.pixels


def _describe_stored(stored: np.ndarray) -> str:
    height, width = stored.shape
    return f"{width} x {height} {stored.dtype}, {stored.min()} ... {stored.max()}"


def _describe_values(pixels: np.ndarray) -> str:
    return (
        f"grey values {pixels.min():.4f} ... {pixels.max():.4f} with {len(np.unique(pixels))} "
        "different ones"
    )


def _describe_breast(region: BreastRegion, record: dict[str, Any]) -> str:
    if not region.found:
        return "nothing stands out from the background: the whole image is kept"
    x0, y0, x1, y1 = region.box
    text = (
        f"columns {x0} to {x1}, rows {y0} to {y1}, {region.share:.1%} of the image; chest wall on "
        f"the {region.side}"
    )
    conflict = laterality_conflict(record, region)
    if conflict:
        return f"{text}; WARNING: {conflict}"
    known = record.get("laterality")
    return f"{text}, as laterality {known} says" if known else f"{text}; no laterality to check"


def _small(pixels: np.ndarray) -> np.ndarray:
    scale = min(1.0, PICTURE_SIZE / max(pixels.shape))
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[::-1])
    resized = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.rint(np.clip(resized, 0, 255)).astype(np.uint8)


def _stretched(stored: np.ndarray) -> np.ndarray:
    low, high = float(stored.min()), float(stored.max())
    return _small((stored - np.float32(low)) * np.float32(255 / max(high - low, 1)))


def _outlined(pixels: np.ndarray, region: BreastRegion) -> np.ndarray:
    """The outline of the mask in yellow."""
    picture = cv2.cvtColor(_small(pixels), cv2.COLOR_GRAY2BGR)
    mask = cv2.resize(
        region.mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, contours, -1, (0, 255, 255), 2)


def write_step(folder: Path, number: int, step: Step) -> Path | None:
    """Write a step's picture.

    Returns:
        Path or None: its file; None if the step has no picture.

    Raises:
        UserError: it cannot be written.
    """
    if step.picture is None:
        return None
    path = folder / f"{number:02d}_{step.name.replace(' ', '_')}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", step.picture)[1].tofile(path)
    except OSError as error:
        raise UserError(f"picture {str(path)!r} cannot be written: {error.strerror}") from error
    return path
