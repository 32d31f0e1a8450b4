# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Transforms of the package albumentations inside a mapper's list of augmentations."""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from detectron2.data.transforms import AugInput, Augmentation, Transform
from omegaconf import OmegaConf

from detrex_mammo.errors import UserError


class Albumentations(Augmentation):
    """Apply transforms of albumentations (2.0, MIT), one after the other.

    They see float32 (H, W, 1) in [0, 1]; those that work in 8 bits inside are refused by name. A
    box that they drop leaves with its class; what they leave is inside the
    image. Their random numbers follow ``np.random``, so that a seed fixes them.

    Args:
        transforms: each a dict of a name and the settings of albumentations' class of that name,
            such as ``dict(name="Perspective", scale=[0.05, 0.1], p=0.5)``; ``transforms`` of a
            composition are such dicts again. Ready objects are taken, too.
        min_area: a box that is smaller afterwards, in square pixels, is dropped.
        min_visibility: a box of which a smaller share is left is dropped.

    Raises:
        UserError: the package is missing, it has no such transform or setting, or the transform
            works in 8 bits.
    """

    def __init__(
        self, transforms: Sequence[Any], min_area: float = 1.0, min_visibility: float = 0.0
    ):
        super().__init__()
        package = _import()
        self.transforms = [_build(package, spec) for spec in transforms]
        for transform in self.transforms:
            _check_precision(package, transform)
        self._compose = _compose(package, self.transforms, min_area, min_visibility)

    def __call__(self, aug_input: AugInput) -> Transform:
        boxes = aug_input.boxes
        self._compose.set_random_seed(int(np.random.randint(2**31)))
        arguments = {
            "image": np.ascontiguousarray(aug_input.image[..., None]) / np.float32(255),
            "bboxes": np.zeros((0, 4)) if boxes is None else np.asarray(boxes, np.float64),
            "numbers": np.arange(0 if boxes is None else len(boxes)),
        }
        try:
            made = self._compose(**arguments)
        except Exception as error:  # whatever a stranger's transform raises at float pixels
            names = [type(transform).__name__ for transform in self.transforms]
            raise UserError(
                f"albumentations' {', '.join(names)} cannot transform a float32 mammogram with "
                f"boxes ({type(error).__name__}: {' '.join(str(error).split())}): change or leave "
                "out that transform"
            ) from error
        image = np.asarray(made["image"], np.float32)
        aug_input.image = np.clip(image.reshape(image.shape[:2]) * np.float32(255), 0, 255)
        if boxes is not None:
            kept = np.asarray(made["numbers"], dtype=np.int64)
            if hasattr(aug_input, "keep"):
                aug_input.keep(kept)
            aug_input.boxes = np.asarray(made["bboxes"], np.float64).reshape(-1, 4)
        return _Done()


class _Done(Transform):
    """What was drawn is done and forgotten: it can neither be done again nor undone."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        raise TypeError("albumentations' transforms cannot be applied a second time")

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise TypeError("albumentations' transforms cannot be applied a second time")


def _import() -> ModuleType:
    # Without it the package asks the network for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        raise UserError(
            f"the augmentation Albumentations needs a package that cannot be imported ({error}): "
            "pip install 'detrex_mammo[albumentations]'"
        ) from error
    return albumentations


def _compose(package: ModuleType, transforms: Sequence[Any], min_area: float, share: float) -> Any:
    parameters = package.BboxParams(
        "pascal_voc",
        label_fields=["numbers"],
        min_area=min_area,
        min_visibility=share,
        clip=True,
        filter_invalid_bboxes=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that noise does not move boxes
        return package.Compose(transforms, bbox_params=parameters)


def _check_precision(package: ModuleType, transform: Any) -> None:
    """Refuse what rounds float images to 8 bits on the way, as some do without a word."""
    if isinstance(transform, package.BaseCompose):
        for inner in transform.transforms:
            _check_precision(package, inner)
        return
    probe = copy.deepcopy(transform)
    probe.p = 1.0
    ramp = np.linspace(0.25, 0.75, 256 * 256, dtype=np.float32).reshape(256, 256, 1)
    try:
        compose = _compose(package, [probe], 0.0, 0.0)
        compose.set_random_seed(0)
        made = compose(image=ramp, bboxes=np.zeros((0, 4)), numbers=[])["image"]
    except Exception:  # a transform may need another size: a real image will tell
        return
    if made.dtype != np.float32 or len(np.unique(made)) <= 256:
        raise UserError(
            f"albumentations' {type(transform).__name__} rounds a mammogram to 8 bits, which loses "
            "most of its grey values: leave it out, or use RandomIntensity for grey values"
        )


def _build(package: ModuleType, spec: Any) -> Any:
    """A transform from its dict."""
    spec = OmegaConf.to_container(spec, resolve=True) if OmegaConf.is_config(spec) else spec
    kinds = (package.BasicTransform, package.BaseCompose)
    if isinstance(spec, kinds):
        return spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise UserError(
            f"Albumentations got the transform {spec!r}; it is a dict of 'name' and settings"
        )
    settings = {key: value for key, value in spec.items() if key != "name"}
    kind = getattr(package, spec["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, kinds)):
        raise UserError(
            f"Albumentations got the name {spec['name']!r}, which is no transform of "
            f"albumentations {package.__version__}: see its list of transforms"
        )
    if "transforms" in settings:
        settings["transforms"] = [_build(package, inner) for inner in settings["transforms"]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # its word on an unknown setting
            return kind(**settings)
    except (TypeError, ValueError, UserWarning) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Albumentations cannot make {spec['name']!r}: {reason}") from error
