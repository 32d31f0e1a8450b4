# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Names that several formats share with the published code, which are ours too."""

from detrex_mammo.checkpoint.key_table import Rule

SECOND_COPY = "a second copy of what stands at the top"


def same(*names: str, **options) -> list[Rule]:
    """Rules that change nothing."""
    return [Rule(name, name, **options) for name in names]


def heads() -> list[Rule]:
    """Class and box heads, one of each for each layer."""
    return same("class_embed.{l}.{p}", "bbox_embed.{l}.layers.{k}.{p}")


def copied_heads(prefix: str) -> list[Rule]:
    """Heads once more, inside the decoder that uses them to refine."""
    classes, boxes = heads()
    return [
        Rule(f"{prefix}{boxes.theirs}", boxes.ours, when="with_box_refine", optional=SECOND_COPY),
        Rule(f"{prefix}{classes.theirs}", classes.ours, when="two_stage", optional=SECOND_COPY),
    ]
