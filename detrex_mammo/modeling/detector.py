# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, https://arxiv.org/abs/2010.04159, in its five published forms.

B batch, H and W the padded image, Q queries, K classes, C channels, L levels.
"""

import warnings
from collections.abc import Sequence

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import at_least_float32, box_xyxy_to_cxcywh
from detrex_mammo.modeling.batching import (
    convolutions_to_channels_last,
    pad_and_stack,
    resize_padding_mask,
    to_device,
)
from detrex_mammo.modeling.criterion import SetCriterion
from detrex_mammo.modeling.denoising import Denoising
from detrex_mammo.modeling.heads import Predictor, build_heads
from detrex_mammo.modeling.hybrid_matching import HybridMatching
from detrex_mammo.modeling.neck import InputProjection
from detrex_mammo.modeling.postprocessing import select_detections
from detrex_mammo.modeling.query_groups import ExtraQueries
from detrex_mammo.modeling.test_time_augmentation import TestTimeAugmentation
from detrex_mammo.modeling.tiling import Tiles
from detrex_mammo.modeling.training_queries import check_agreement, make_queries
from detrex_mammo.modeling.transformer import DeformableTransformer

# Of an image, in grey values of [0, 255]: below it there is noise, which is not made any louder.
MIN_DEVIATION = 1.0


@META_ARCH_REGISTRY.register()
class DeformableDETR(nn.Module):
    """The detector.

    Args:
        backbone (nn.Module): images (B, 3, H, W) to ``{name: (B, channels, h, w)}``; tells its
            channels by ``output_shape()``.
        in_features (Sequence[str]): feature maps to use, finest first; one for single-scale.
        transformer (DeformableTransformer): encoder and decoder.
        criterion (SetCriterion, optional): the loss; None for a detector that only predicts.
        num_classes (int): K, without background; the same as the criterion's.
        num_queries (int): Q; the same as the transformer's.
        num_feature_levels (int): L; the same as the transformer's.
        embed_dim (int): C; the same as the transformer's.
        aux_loss (bool): losses of all decoder layers, not only of the last.
        with_box_refine (bool): each decoder layer refines the boxes of the one before.
        two_stage (bool): queries are the encoder's best proposals; needs ``with_box_refine``.
        inverse_sigmoid_eps (float): 1e-5 as published; 1e-3 for weights that detrex trained.
        topk (int): detections per image; capped, with a warning, at Q * K.
        clip_boxes (bool): cut detections at the image's border. The published code does not.
        pixel_mean (Sequence[float], optional): RGB, of pixels in [0, 255]; None, like
            ``pixel_std``: each image is normalised by its own mean and deviation, over all of its
            pixels and channels.
        pixel_std (Sequence[float], optional): RGB.
        tiles (Tiles, optional): detect in overlapping tiles where an image is larger than one;
            training is not touched. None: always the whole image.
        test_time_augmentation (TestTimeAugmentation, optional): detect in several versions of an
            image and average them; training is not touched. None: the image as it is.
        denoising (Denoising, optional): further queries in training, from boxes with noise on them;
            needs ``two_stage``. Inference is not touched.
        hybrid (HybridMatching, optional): further queries in training, matched one-to-many.
            Inference is not touched.

    Raises:
        UserError: two settings contradict each other.
    """

    def __init__(
        self,
        backbone: nn.Module,
        in_features: Sequence[str],
        transformer: DeformableTransformer,
        criterion: SetCriterion | None,
        num_classes: int,
        num_queries: int = 300,
        num_feature_levels: int = 4,
        embed_dim: int = 256,
        aux_loss: bool = True,
        with_box_refine: bool = False,
        two_stage: bool = False,
        inverse_sigmoid_eps: float = 1e-5,
        topk: int = 300,
        clip_boxes: bool = False,
        pixel_mean: Sequence[float] | None = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] | None = (58.395, 57.12, 57.375),
        tiles: Tiles | None = None,
        test_time_augmentation: TestTimeAugmentation | None = None,
        denoising: Denoising | None = None,
        hybrid: HybridMatching | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.two_stage = two_stage
        self.with_box_refine = with_box_refine
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.aux_loss = aux_loss
        self.topk = topk
        self.clip_boxes = clip_boxes
        self.tiles = tiles
        self.test_time_augmentation = test_time_augmentation
        _check_kind("tiles", tiles, Tiles)
        _check_kind("test_time_augmentation", test_time_augmentation, TestTimeAugmentation)
        _check_kind("backbone", backbone, nn.Module, may_be_null=False)
        for name in ("num_classes", "num_queries", "topk"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}, but must be at least 1")
        self._check_agreement(transformer, criterion, embed_dim, num_feature_levels)
        self.backbone = backbone
        self.in_features = list(in_features)
        self.input_proj = InputProjection(self._channels(), embed_dim, num_feature_levels)
        self.transformer = transformer
        self.query_embed = None if two_stage else nn.Embedding(num_queries, embed_dim * 2)
        self.class_embed, self.bbox_embed = build_heads(
            embed_dim, num_classes, transformer.num_decoder_layers, with_box_refine, two_stage
        )
        self.criterion = criterion
        self.denoising, self.hybrid = denoising, hybrid
        _check_kind("denoising", denoising, Denoising)
        _check_kind("hybrid", hybrid, HybridMatching)
        check_agreement(denoising, hybrid, num_classes, embed_dim, two_stage)
        convolutions_to_channels_last(self.backbone)
        convolutions_to_channels_last(self.input_proj)
        self._register_pixel_statistics(pixel_mean, pixel_std)

    def _register_pixel_statistics(self, pixel_mean, pixel_std) -> None:
        if (pixel_mean is None) != (pixel_std is None):
            raise UserError(
                f"model.pixel_mean is {pixel_mean} and model.pixel_std {pixel_std}; give three "
                "numbers for both, or null for both (each image's own)"
            )
        self.normalizes_by_image = pixel_mean is None
        if self.normalizes_by_image:
            pixel_mean, pixel_std = (0.0,) * 3, (1.0,) * 3
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if not isinstance(values, Sequence) or len(values) != 3:
                raise UserError(f"model.{name} is {values}; it must be three numbers, or null")
            buffer = torch.tensor([float(v) for v in values]).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def _check_agreement(self, transformer, criterion, embed_dim, num_feature_levels) -> None:
        pairs = {
            "embed_dim": (embed_dim, transformer.embed_dim),
            "num_feature_levels": (num_feature_levels, transformer.num_feature_levels),
            "two_stage": (self.two_stage, transformer.two_stage),
        }
        if self.two_stage:
            pairs["num_queries"] = (self.num_queries, transformer.num_queries)
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise UserError(
                    f"model.{name} is {ours} but model.transformer.{name} is {theirs}; "
                    "set it once and interpolate it"
                )
        if criterion is not None and criterion.num_classes != self.num_classes:
            raise UserError(
                f"model.num_classes is {self.num_classes} but model.criterion.num_classes is "
                f"{criterion.num_classes}; set it once and interpolate it"
            )
        if self.two_stage and not self.with_box_refine:
            raise UserError(
                "model.two_stage is True and model.with_box_refine False; proposals are boxes, "
                "which only refinement can use, so set model.with_box_refine=True"
            )
        if self.topk > self.num_queries * self.num_classes:
            warnings.warn(
                f"model.topk is {self.topk}, more than num_queries x num_classes = "
                f"{self.num_queries} x {self.num_classes}; an image gets at most "
                f"{self.num_queries * self.num_classes} detections",
                stacklevel=3,
            )

    def _channels(self) -> list[int]:
        shapes = self.backbone.output_shape()
        missing = [name for name in self.in_features if name not in shapes]
        if missing or not self.in_features:
            raise UserError(
                f"model.in_features is {self.in_features}; the backbone offers {list(shapes)}"
            )
        return [shapes[name].channels for name in self.in_features]

    def parts_to_compile(self) -> list[nn.Module]:
        """What gains from torch.compile: the layers of encoder and decoder.

        The layers of each share one compilation. The backbone's convolutions would gain nothing.
        """
        return [*self.transformer.encoder.layers, *self.transformer.decoder.layers]

    @property
    def device(self) -> torch.device:
        """Where the model is, and where it takes its inputs to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict]) -> dict[str, Tensor] | list[dict]:
        """Train or detect.

        Args:
            batched_inputs (Sequence[dict]): B images, each with ``image`` (3, h, w) RGB in
                [0, 255]; in training ``instances`` with ``gt_boxes`` (xyxy pixels of ``image``)
                and ``gt_classes``; otherwise optionally ``height`` and ``width``, the size that
                detections are scaled to.

        Returns:
            dict[str, Tensor] or list[dict]: in training the weighted losses of
            :class:`SetCriterion`; otherwise for each image ``{"instances": Instances}`` with
            ``pred_boxes`` (xyxy pixels of (height, width)), ``scores`` and ``pred_classes``.
        """
        images = [self.normalize(inputs["image"]) for inputs in batched_inputs]
        if self.training:
            return self._losses(images, self.prepare_targets(batched_inputs))
        sizes = [
            (inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1]))
            for inputs, image in zip(batched_inputs, images)
        ]
        if self.test_time_augmentation is None:
            detections = self._detect_in_tiles(images, sizes)
        else:
            versions = self.test_time_augmentation
            detections = versions.detect(self._detect_in_tiles, images, sizes, self.topk)
        return [{"instances": instances} for instances in detections]

    def _losses(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses of normalised images, with those of the queries that only training has."""
        queries = make_queries(targets, self.num_queries, self.denoising, self.hybrid)
        extra = None if queries is None else queries.extra
        outputs, encoder_output = self.predict(*pad_and_stack(images), True, extra)
        outputs = outputs if self.aux_loss else outputs[-1:]
        outputs, groups = (outputs, ()) if queries is None else queries.split(outputs)
        return self._criterion()(outputs, encoder_output, targets, groups)

    def _detect_in_tiles(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """As :meth:`_detect`, an image larger than a tile in tiles."""
        if self.tiles is None or not any(self.tiles.applies_to(image) for image in images):
            return self._detect(images, sizes)
        return [
            self.tiles.detect(self._detect, image, size, self.topk)
            for image, size in zip(images, sizes)
        ]

    def _detect(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Detections of normalised images, each scaled to its (height, width)."""
        outputs, _ = self.predict(*pad_and_stack(images))
        last = outputs[-1]
        return select_detections(
            last["pred_logits"], last["pred_boxes"], sizes, self.topk, self.clip_boxes
        )

    def normalize(self, image: Tensor) -> Tensor:
        """(3, h, w) in [0, 255] to zero mean and unit deviation, on the model's device.

        The statistics are the data set's or, without them, those of this image, whole as it is:
        before any padding and tiling. A deviation below ``MIN_DEVIATION`` counts as that.
        """
        image = to_device(image, self.device).to(self.pixel_mean.dtype)
        if not self.normalizes_by_image:
            return (image - self.pixel_mean) / self.pixel_std
        deviation, mean = torch.std_mean(at_least_float32(image), correction=0)
        return ((image - mean) / deviation.clamp(min=MIN_DEVIATION)).to(image.dtype)

    def predict(
        self,
        images: Tensor,
        padding_mask: Tensor | None = None,
        all_outputs: bool = False,
        extra: ExtraQueries | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
        """Raw predictions of a normalised batch.

        Args:
            images (Tensor): (B, 3, H, W), normalised, padding at the bottom and right.
            padding_mask (BoolTensor, optional): (B, H, W), True on padding; None without any.
            all_outputs (bool): of all decoder layers and the encoder, as training needs them,
                rather than of the last decoder layer alone.
            extra (ExtraQueries, optional): queries of training, behind the others.

        Returns:
            tuple[list[dict], dict or None]: see :meth:`DeformableTransformer.forward`.
        """
        features = self.backbone(images)
        levels = self.input_proj([features[name] for name in self.in_features])
        masks = None
        if padding_mask is not None:
            masks = [resize_padding_mask(padding_mask, level.shape[-2:]) for level in levels]
        query_embed = None if self.two_stage else self.query_embed.weight
        if extra is not None and extra.query_embed is not None:
            query_embed = torch.cat((query_embed, extra.query_embed))
        predictor = Predictor(
            self.class_embed, self.bbox_embed, self.inverse_sigmoid_eps, self.with_box_refine
        )
        return self.transformer(levels, masks, query_embed, predictor, all_outputs, extra)

    def prepare_targets(self, batched_inputs: Sequence[dict]) -> list[dict[str, Tensor]]:
        """``labels`` (T,) and ``boxes`` (T, 4) cxcywh, normalised by each unpadded image."""
        targets = []
        for inputs in batched_inputs:
            if "instances" not in inputs:
                raise ValueError(
                    "an input without 'instances' in training; give empty instances to an image "
                    "without any box"
                )
            instances: Instances = inputs["instances"]
            height, width = inputs["image"].shape[-2:]
            boxes = instances.gt_boxes.tensor.float()
            scale = torch.tensor([width, height, width, height], dtype=torch.float32)
            boxes = box_xyxy_to_cxcywh(boxes) / to_device(scale, boxes.device)
            self._check_labels(instances.gt_classes)
            labels = instances.gt_classes.long()
            targets.append(
                {"labels": to_device(labels, self.device), "boxes": to_device(boxes, self.device)}
            )
        return targets

    def _check_labels(self, classes: Tensor) -> None:
        """Refuse a class that no output stands for; only on the host, where looking is free."""
        if classes.is_cpu and len(classes):
            lowest, highest = int(classes.min()), int(classes.max())
            if lowest < 0 or highest >= self.num_classes:
                raise UserError(
                    f"a box has class {highest if highest >= self.num_classes else lowest}, but "
                    f"model.num_classes is {self.num_classes}, so classes are 0 to "
                    f"{self.num_classes - 1}; set model.num_classes to that of the dataset"
                )

    def _criterion(self) -> SetCriterion:
        if self.criterion is None:
            raise UserError("model.criterion is null, but training needs a SetCriterion")
        return self.criterion


def _check_kind(name: str, value: object, kind: type, may_be_null: bool = True) -> None:
    if not isinstance(value, kind) and not (may_be_null and value is None):
        raise UserError(
            f"model.{name} is {value!r}; it must be {'null or ' * may_be_null}a node, such as "
            f"{{_target_: {kind.__module__}.{kind.__name__}, ...}}"
        )
