# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Live transformers models on disk, and what they predict."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from detrex_mammo.modeling.batching import pad_and_stack
from tests.checkpoint.other_names import arguments, rename
from tests.modeling.hf_oracle import VARIANTS, tiny_oracle

logging.getLogger("transformers").setLevel(logging.ERROR)
# (h, w): not square, both padded; enough tokens for the queries of a two-stage model
SIZES = [(75, 118), (101, 67)]


def live_model(variant: str, **more):
    """A perturbed tiny model of transformers."""
    return tiny_oracle(**{**VARIANTS[variant], **more})


def images() -> list[torch.Tensor]:
    """Images as our models take them: (3, h, w) RGB in [0, 255]."""
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, h, w, generator=generator) * 255 for h, w in SIZES]


def predictions(theirs, ours) -> tuple[dict, dict]:
    """Logits and boxes of transformers' model and of ours on one padded batch."""
    batch, padding = pad_and_stack([ours.normalize(image) for image in images()])
    with torch.no_grad():
        expected = theirs(pixel_values=batch, pixel_mask=(~padding).long())
        found = ours.predict(batch, padding)[0][-1]
    expected = {"pred_logits": expected.logits, "pred_boxes": expected.pred_boxes}
    if theirs.config.two_stage:  # the order of proposals is decided by rounding
        found = _reorder(found, expected)
    return expected, found


def assert_equal(theirs, ours, rows=None) -> None:
    """Predictions within 1e-5; ``rows`` are the outputs of theirs that ours has."""
    expected, found = predictions(theirs, ours)
    if rows is not None:
        expected["pred_logits"] = expected["pred_logits"][..., rows]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def write_huggingface(theirs, folder: Path, form: str) -> Path:
    """Write a model as one of the folders or files that people hold."""
    folder.mkdir()
    if form == "memory":  # the names of transformers 5 in memory
        torch.save(theirs.state_dict(), folder / "weights.pth")
        return folder / "weights.pth"
    shards = {"max_shard_size": "300KB"} if form == "sharded" else {}
    theirs.save_pretrained(folder, **shards)
    if form == "bin":  # transformers 4 wrote every copy
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    if form == "file":
        (folder / "config.json").rename(folder / "elsewhere.json")
        return folder / "model.safetensors"
    return folder


def write_other(theirs, path: Path, format_name: str) -> Path:
    """Write a model as a file of another project."""
    state = rename(theirs, format_name)
    content = {
        "official": {"model": state, "epoch": 49, "args": arguments(theirs)},
        "detrex": {"model": state, "iteration": 10},
        "mmdetection": {"meta": {"cfg": mm_config(theirs), "epoch": 50}, "state_dict": state},
        "tao": {"state_dict": state, "epoch": 3, "global_step": 9},
    }[format_name]
    torch.save(content, path)
    return path


def mm_config(theirs) -> str:
    """What of a config mmengine stores decides the model."""
    config = theirs.config
    return (
        "model = dict(type='DeformableDETR', backbone=dict(style='pytorch'),\n"
        "    encoder=dict(layer_cfg=dict(self_attn_cfg=dict("
        f"num_heads={config.encoder_attention_heads}))),\n"
        f"    num_queries={config.num_queries})\n"
        "optim_wrapper = dict(lr=1e-4)\n"
    )


def _reorder(found: dict, expected: dict) -> dict:
    """Ours in the order of theirs: pairs with the nearest boxes."""
    result = {name: value.clone() for name, value in found.items()}
    for index, (mine, other) in enumerate(zip(found["pred_boxes"], expected["pred_boxes"])):
        rows, columns = linear_sum_assignment(torch.cdist(other, mine, p=1).numpy())
        assert rows.tolist() == list(range(len(rows)))
        for name, value in found.items():
            result[name][index] = value[index][torch.from_numpy(columns)]
    return result
