# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Run a source model and the converted one on the same images.

The source model is another project's own code: transformers for detectors, torchvision or timm for
backbones. For formats whose code no registry has (official, detrex, mmdetection, TAO) transformers
runs the converted weights: that checks the model, while names are checked by the key table alone,
and the result says so.
"""

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detrex_mammo.checkpoint.architecture import resnet_of
from detrex_mammo.checkpoint.conversion import Converted
from detrex_mammo.checkpoint.formats import huggingface
from detrex_mammo.checkpoint.loading import load_weights
from detrex_mammo.checkpoint.reading import Source
from detrex_mammo.checkpoint.writing import save
from detrex_mammo.config import instantiate
from detrex_mammo.errors import UserError

# At full size float32 is up to 1.2e-4 and 7e-6 from float64; the weakest mistake costs 1.6e-2 and
# 1.6e-4.
LOGITS_BOUND, BOXES_BOUND, FEATURES_BOUND = 1e-3, 1e-4, 1e-4
_SIZES = ((384, 512), (320, 448))  # height, width; the second is padded to the first


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        against: library and version that ran the source.
        source_weights: "as stored", or "converted" where the library ran what the key table made.
        largest: largest absolute differences: ``logits`` and ``boxes`` (in [0, 1] of the image),
            or ``features`` (relative to the largest) of a backbone.
        bounds: what each may be.
        precision: "float32", or "float64" where float32's rounding exceeded the bounds.
    """

    against: str
    source_weights: str
    largest: dict[str, float]
    bounds: dict[str, float]
    precision: str = "float32"

    @property
    def checks_names(self) -> bool:
        """The library read the source itself, so that names are checked, too."""
        return self.source_weights == "as stored"

    @property
    def passed(self) -> bool:
        """Every difference is within its bound; NaN is not."""
        return all(self.largest[name] <= bound for name, bound in self.bounds.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}

    def describe(self) -> str:
        """One sentence."""
        found = ", ".join(
            f"{n} {v:.1e} (at most {self.bounds[n]:g})" for n, v in self.largest.items()
        )
        how = "" if self.checks_names else ", which ran the converted weights"
        return f"largest difference to {self.against}{how}, in {self.precision}: {found}"


def why_not(converted: Converted) -> str:
    """Why a conversion cannot be verified here; empty if it can."""
    needed = ["torchvision"] if converted.architecture is None else ["transformers"]
    if converted.architecture is not None and converted.architecture.dc5:
        needed.append("timm")
    if converted.architecture is None and converted.told["owner"] != "torchvision":
        return f"no library here runs a backbone of {converted.told['owner']} by itself"
    for name in needed:
        try:
            importlib.import_module(name)
        except ImportError:
            return f"{name} is not installed"
    return ""


def verify(source: Source, converted: Converted, seed: int = 0) -> Verification:
    """Compare on a seeded batch of two images of different sizes.

    Raises:
        UserError: a difference is too large, or the source library cannot load the source.
    """
    if converted.architecture is None:
        result = _verify_backbone(source, converted, seed)
    else:
        result = _verify_detector(source, converted, seed, torch.float32)
        if not result.passed:  # refinement can amplify rounding; a mistake stays in float64 too
            result = _verify_detector(source, converted, seed, torch.float64)
    if not result.passed:
        raise UserError(
            f"the conversion of {source.path!r} is wrong: {result.describe()}; nothing was written"
        )
    return result


def build(converted: Converted) -> nn.Module:
    """The converted detector, in eval mode on the CPU."""
    assert converted.architecture is not None
    model = instantiate(converted.architecture.model_config())
    load_weights(model, converted.state, "converted weights")
    return model.eval()


@torch.no_grad()
def _verify_detector(
    source: Source, converted: Converted, seed: int, dtype: torch.dtype
) -> Verification:
    import transformers

    images, padding = _batch(converted, seed)
    images = images.to(dtype)
    ours = build(converted).to(dtype).predict(images, padding)[0][-1]
    stored = converted.format == huggingface.NAME and source.folder is not None
    with tempfile.TemporaryDirectory() as scratch, _eps(converted):
        if stored:
            folder, rows = source.folder, converted.class_rows
        else:
            same_eps = replace(converted.architecture, inverse_sigmoid_eps=1e-5)
            folder = save(
                replace(converted, architecture=same_eps),
                Path(scratch) / "model",
                huggingface.NAME,
                {},
            )
            rows = list(range(converted.architecture.num_classes))
        model = _transformers_model(folder).to(dtype)
        theirs = model(pixel_values=images, pixel_mask=(~padding).long())
    logits, boxes = theirs.logits[..., rows], theirs.pred_boxes
    largest = _largest(ours["pred_logits"], ours["pred_boxes"], logits, boxes)
    return Verification(
        f"transformers {transformers.__version__}",
        "as stored" if stored else "converted",
        largest,
        {"logits": LOGITS_BOUND, "boxes": BOXES_BOUND},
        str(dtype).removeprefix("torch."),
    )


def _transformers_model(folder: Path) -> nn.Module:
    """transformers' model of a folder; nothing is downloaded, every weight is in the folder."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    try:
        _be_quiet()
        config = DeformableDetrConfig.from_pretrained(folder, local_files_only=True)
        backbone = getattr(config, "backbone_config", None)
        if hasattr(backbone, "use_pretrained_backbone"):
            backbone.use_pretrained_backbone = False
        model, told = DeformableDetrForObjectDetection.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"transformers cannot load {str(folder)!r} to verify it ({reason}): convert with "
            "--no-verify"
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise UserError(
            f"transformers misses {len(missing)} weights of {str(folder)!r} ({missing[0]}, ...)"
        )
    return model.eval()


def _be_quiet() -> None:
    """No progress bars, and no warning that untied heads stay untied."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _eps(converted: Converted) -> Iterator[None]:
    """transformers with the model's own eps of inverse_sigmoid, which is fixed there."""
    from transformers.models.deformable_detr import modeling_deformable_detr as module

    original = module.inverse_sigmoid
    module.inverse_sigmoid = partial(original, eps=converted.architecture.inverse_sigmoid_eps)
    try:
        yield
    finally:
        module.inverse_sigmoid = original


def _batch(converted: Converted, seed: int) -> tuple[Tensor, Tensor]:
    """Two normalised images of noise and blocks, padded; and the mask, True on padding.

    Larger where a two-stage model needs more tokens to choose its queries from.
    """
    architecture = converted.architecture
    scale = 1.0
    while architecture.two_stage and _tokens(architecture, scale) < 2 * architecture.num_queries:
        scale *= 1.25
    sizes = [(int(height * scale), int(width * scale)) for height, width in _SIZES]
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(2, 3, *sizes[0])
    padding = torch.ones(2, *sizes[0], dtype=torch.bool)
    for index, (height, width) in enumerate(sizes):
        coarse = torch.randn(1, 3, height // 32, width // 32, generator=generator)
        blocks = nn.functional.interpolate(coarse, (height, width))[0]
        noise = torch.randn(3, height, width, generator=generator)
        images[index, :, :height, :width] = blocks + 0.3 * noise
        padding[index, :height, :width] = False
    return images, padding


def _tokens(architecture: Any, scale: float) -> float:
    """Tokens of the smaller image, about: the finest level has stride 2^number of the stage."""
    height, width = _SIZES[1]
    stride = 2 ** int(architecture.in_features[0][-1])
    return height * width * scale**2 / stride**2


def _largest(logits: Tensor, boxes: Tensor, their_logits: Tensor, their_boxes: Tensor) -> dict:
    """Largest differences, with queries paired: float noise decides their order in two-stage."""
    largest = {"logits": 0.0, "boxes": 0.0}
    for mine, box, other, other_box in zip(logits, boxes, their_logits, their_boxes):
        cost = torch.cdist(box, other_box, p=1) + 0.1 * torch.cdist(mine, other, p=1)
        rows, columns = linear_sum_assignment(cost.nan_to_num(1e6).numpy())
        for name, one, two in (("logits", mine, other), ("boxes", box, other_box)):
            difference = (one[rows] - two[columns]).abs().max()
            # torch's maximum, unlike Python's, lets NaN through
            largest[name] = torch.maximum(difference, difference.new_tensor(largest[name])).item()
    return largest


@torch.no_grad()
def _verify_backbone(source: Source, converted: Converted, seed: int) -> Verification:
    import torchvision

    depth = _depth(converted.state)
    theirs = getattr(torchvision.models, f"resnet{depth}", None)
    if theirs is None:
        raise UserError(f"torchvision has no ResNet of depth {depth}: convert with --no-verify")
    theirs = theirs(weights=None)
    found = theirs.load_state_dict(source.state, strict=False)
    if set(found.missing_keys) - {"fc.weight", "fc.bias"} or found.unexpected_keys:
        raise UserError(f"torchvision's ResNet-{depth} does not take {source.path!r}")
    ours = instantiate({**_BACKBONE, "depth": depth})
    state = {name.removeprefix("backbone."): value for name, value in converted.state.items()}
    load_weights(ours, state, source.path)
    image = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(seed))
    features, expected = ours.eval()(image), _stages(theirs.eval(), image)
    difference = max(
        ((features[name] - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name in features
    )
    return Verification(
        f"torchvision {torchvision.__version__}",
        "as stored",
        {"features": difference},
        {"features": FEATURES_BOUND},
    )


_BACKBONE = {
    "_target_": "detrex_mammo.modeling.backbone.build_resnet",
    "out_features": ["res2", "res3", "res4", "res5"],
}


def _depth(state: dict[str, Tensor]) -> int:
    return resnet_of({name: tuple(value.shape) for name, value in state.items()})["depth"]


def _stages(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Feature maps of torchvision's ResNet by detectron2's names."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    stages = {}
    for index in range(1, 5):
        x = getattr(model, f"layer{index}")(x)
        stages[f"res{index + 1}"] = x
    return stages
