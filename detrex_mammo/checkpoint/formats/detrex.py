# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""detrex, github.com/IDEA-Research/detrex at e244e6c, projects/deformable_detr.

Its attention and feed-forward modules are numbered; ``norms`` stand in the order of execution, so
its decoder's ``norms.0`` is the published ``norm2``. With refinement the heads are stored twice.
"""

from collections.abc import Mapping
from typing import Any

from detrex_mammo.checkpoint.formats.backbones import COUNTERS, DETECTRON2, backbone_rules
from detrex_mammo.checkpoint.formats.parts import copied_heads, heads, same
from detrex_mammo.checkpoint.key_table import Dropped, Entry, Rule

NAME = "detrex"
MARKER = r"transformer\.level_embeds"
INVERSE_SIGMOID_EPS = 1e-3  # detrex/utils/misc.py: its models were trained, and must run, with it
_ENCODER, _DECODER = "transformer.encoder.layers.{i}.", "transformer.decoder.layers.{i}."


def neck(num_features: int, num_extra: int, norm: str) -> list[Rule]:
    """A ChannelMapper's convolutions: levels of feature maps, then extra levels."""
    places = [f"neck.convs.{i}" for i in range(num_features)]
    places += [f"neck.extra_convs.{i}" for i in range(num_extra)]
    return [
        rule
        for level, place in enumerate(places)
        for rule in (
            Rule(f"{place}.conv.{{p}}", f"input_proj.{level}.0.{{p}}"),
            Rule(f"{place}.{norm}.{{p}}", f"input_proj.{level}.1.{{p}}"),
        )
    ]


def layers(encoder: str, decoder: str, cross: str, own: str, own_decoder: str) -> list[Rule]:
    """Layers of numbered modules, as in detrex and mmdetection.

    Args:
        encoder: prefix of the encoder's layers, with ``{i}``.
        decoder: prefix of the decoder's.
        cross: the decoder's attention to the image.
        own: the encoder's attention.
        own_decoder: the decoder's attention among queries.
    """
    feed_forward = {"ffns.0." if "attentions" in own else "ffn.": ("layers.0.0", "layers.1")}
    rules = [
        Rule(f"{encoder}{own}.{{m}}.{{p}}", f"{_ENCODER}self_attn.{{m}}.{{p}}"),
        Rule(f"{decoder}{own_decoder}.attn.in_proj_{{p}}", f"{_DECODER}self_attn.in_proj_{{p}}"),
        Rule(f"{decoder}{own_decoder}.attn.out_proj.{{p}}", f"{_DECODER}self_attn.out_proj.{{p}}"),
        Rule(f"{decoder}{cross}.{{m}}.{{p}}", f"{_DECODER}cross_attn.{{m}}.{{p}}"),
    ]
    for theirs, ours, norms in ((encoder, _ENCODER, (1, 2)), (decoder, _DECODER, (2, 1, 3))):
        for prefix, (first, second) in feed_forward.items():
            rules.append(Rule(f"{theirs}{prefix}{first}.{{p}}", f"{ours}linear1.{{p}}"))
            rules.append(Rule(f"{theirs}{prefix}{second}.{{p}}", f"{ours}linear2.{{p}}"))
        for index, norm in enumerate(norms):
            rules.append(Rule(f"{theirs}norms.{index}.{{p}}", f"{ours}norm{norm}.{{p}}"))
    return rules


def table(num_features: int, num_extra: int) -> list[Entry]:
    """Names on disk and ours."""
    return [
        *backbone_rules("backbone.", DETECTRON2),
        Dropped(r"backbone\..+\.num_batches_tracked", COUNTERS),
        *neck(num_features, num_extra, norm="norm"),
        Rule("transformer.level_embeds", "transformer.level_embed"),
        Rule("query_embedding.weight", "query_embed.weight", when="single_stage"),
        *same("transformer.reference_points.{p}", when="single_stage"),
        *same(
            *(
                f"transformer.{name}.{{p}}"
                for name in ("enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm")
            ),
            when="two_stage",
        ),
        *layers(_ENCODER, _DECODER, "attentions.1", "attentions.0", "attentions.0"),
        *heads(),
        *copied_heads("transformer.decoder."),
    ]


def settings(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """detrex's files hold weights only; what its code fixes is known.

    A file that was written from here says under ``architecture`` what its weights need.
    """
    written_here = content.get("architecture")
    known = dict(written_here) if isinstance(written_here, Mapping) else {}
    return {"inverse_sigmoid_eps": INVERSE_SIGMOID_EPS, **known}, {}
