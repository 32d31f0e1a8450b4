# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How ResNets are named: detectron2's names are ours."""

from detrex_mammo.checkpoint.key_table import Rule

# (bottleneck blocks, blocks in res2 .. res5) -> depth of detectron2's and timm's ResNets.
DEPTHS = {
    (False, (1, 1, 1, 1)): 10,
    (True, (1, 1, 1, 1)): 14,
    (False, (2, 2, 2, 2)): 18,
    (True, (2, 2, 2, 2)): 26,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
# detectron2, which counts stages from res2.
DETECTRON2 = (
    ("stem.conv1.weight", "stem.conv1.weight"),
    ("stem.conv1.norm.{n}", "stem.conv1.norm.{n}"),
    ("res{s}.{b}.conv{k}.weight", "res{s}.{b}.conv{k}.weight"),
    ("res{s}.{b}.conv{k}.norm.{n}", "res{s}.{b}.conv{k}.norm.{n}"),
    ("res{s}.{b}.shortcut.weight", "res{s}.{b}.shortcut.weight"),
    ("res{s}.{b}.shortcut.norm.{n}", "res{s}.{b}.shortcut.norm.{n}"),
)
# torchvision, timm and mmdetection.
TORCHVISION = (
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.{n}", "stem.conv1.norm.{n}"),
    ("layer{s}.{b}.conv{k}.weight", "res{s+1}.{b}.conv{k}.weight"),
    ("layer{s}.{b}.bn{k}.{n}", "res{s+1}.{b}.conv{k}.norm.{n}"),
    ("layer{s}.{b}.downsample.0.weight", "res{s+1}.{b}.shortcut.weight"),
    ("layer{s}.{b}.downsample.1.{n}", "res{s+1}.{b}.shortcut.norm.{n}"),
)
# ResNetModel of transformers.
HUGGINGFACE = (
    ("embedder.embedder.convolution.weight", "stem.conv1.weight"),
    ("embedder.embedder.normalization.{n}", "stem.conv1.norm.{n}"),
    (
        "encoder.stages.{s}.layers.{b}.layer.{k}.convolution.weight",
        "res{s+2}.{b}.conv{k+1}.weight",
    ),
    (
        "encoder.stages.{s}.layers.{b}.layer.{k}.normalization.{n}",
        "res{s+2}.{b}.conv{k+1}.norm.{n}",
    ),
    ("encoder.stages.{s}.layers.{b}.shortcut.convolution.weight", "res{s+2}.{b}.shortcut.weight"),
    ("encoder.stages.{s}.layers.{b}.shortcut.normalization.{n}", "res{s+2}.{b}.shortcut.norm.{n}"),
)
# Settings of transformers' ResNet that leave no trace in names and shapes, and their only values.
RESNET_FIXED = {
    "downsample_in_bottleneck": False,  # True: the stride is in the 1x1 convolution
    "downsample_in_first_stage": False,
    "hidden_act": "relu",
}
COUNTERS = "a counter of batches, which a norm with fixed statistics does not need"


def backbone_rules(prefix: str, names: tuple[tuple[str, str], ...], **options) -> list[Rule]:
    """Rules of a backbone that stands under ``prefix`` on disk and under ``backbone.`` here."""
    return [
        Rule(
            f"{prefix}{theirs}",
            f"backbone.{ours}",
            **({"optional": "blocks of equal width have none"} if "shortcut" in ours else {})
            | options,
        )
        for theirs, ours in names
    ]


def blocks_of(depth: int) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether a ResNet has bottlenecks, and its blocks in res2 .. res5."""
    return next(blocks for blocks, known in DEPTHS.items() if known == depth)
