# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.fsdp``: each process holds a share of every weight, gradient and optimizer state.

torch's FSDP2. A layer's weights are whole only while it computes. What leaves a process is whole
too: weights in evaluation, and everything in a checkpoint, which is that of an unsharded run.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import Backbone, ResNet
from detectron2.utils import comm
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from detrex_mammo.errors import UserError
from detrex_mammo.modeling.decoder import DeformableDecoderLayer
from detrex_mammo.modeling.encoder import DeformableEncoderLayer

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # torch before 2.6
    FSDPModule, DTensor, fully_shard = (), (), None

logger = logging.getLogger(__name__)


def check_sharding(settings: Mapping[str, Any]) -> bool:
    """Whether a run shards its model.

    Args:
        settings: ``train`` of a config.

    Raises:
        UserError: a setting that sharding does not go with.
    """
    if not settings["fsdp"]["enabled"]:
        return False
    if fully_shard is None:
        raise UserError(
            f"train.fsdp.enabled is True, which needs torch 2.6, but this is {torch.__version__}: "
            "install a newer one or set train.fsdp.enabled=False"
        )
    for name in ("compile", "tensorboard_images"):
        if settings.get(name):
            raise UserError(
                f"train.{name} is {settings[name]} and train.fsdp.enabled True, which do not work "
                f"together: leave one out"
            )
    if comm.get_world_size() == 1:
        logger.warning("train.fsdp.enabled has no effect with one process: nothing to share out")
        return False
    return True


def shard(model: nn.Module, device: str, reshard_after_forward: bool = True) -> nn.Module:
    """Share a model out over all processes, in place; they begin with the main one's weights.

    The optimizer must be built afterwards.

    Args:
        model: on its device, equal in names and shapes in all processes.
        device: "cuda" or "cpu".
        reshard_after_forward: free a layer's weights until its backward pass; otherwise they stay,
            which takes more memory and less exchange.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # what FSDP can divide
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, 0)
    mesh = init_device_mesh(device, (comm.get_world_size(),))
    for part in _parts(model):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard_after_forward)
    # Its own weights (heads, embeddings) are needed by the backward pass at once.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    model.frees_layers = reshard_after_forward
    return model


def _parts(model: nn.Module) -> list[nn.Module]:
    """Layers of encoder and decoder, and stages of the backbone: called one after the other."""
    layers = (DeformableEncoderLayer, DeformableDecoderLayer)
    parts = [module for module in model.modules() if isinstance(module, layers)]
    backbone = getattr(model, "backbone", None)
    body = getattr(backbone, "body", None)
    if isinstance(backbone, ResNet):
        parts += [backbone.stem, *backbone.stages]
    elif isinstance(body, nn.ModuleDict):  # timm's, which calls its children in turn
        parts += body.children()
    elif isinstance(backbone, Backbone):
        parts.append(backbone)
    return [part for part in parts if next(part.parameters(), None) is not None]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called on a model."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, every process has all weights of a model, so that each can call it as often as it
    likes; nothing else is changed, and a model that is not sharded is left alone.

    Do not ask for the state dict inside. All processes take part.
    """
    if not is_sharded(model):
        yield
        return
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            frees = model.frees_layers and part is not model
            part.set_reshard_after_forward(frees, recurse=False)
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """The share of this process, in the same memory; a tensor that is not sharded is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors from shares, one after the other; all processes take part.

    Args:
        tensors: sharded and others, which are handed on; the same names in all processes.

    Returns:
        dict: in the main process; elsewhere without what was sharded. That lies on the CPU.
    """
    found = {}
    for name, value in tensors.items():
        if not isinstance(value, DTensor):
            found[name] = value
            continue
        full = value.detach().full_tensor()
        if comm.is_main_process():
            found[name] = full.cpu()
    return found


def like(value: Any, reference: Any) -> Any:
    """A whole tensor, shared out as another of its shape is; every process has it, none sends."""
    fits = isinstance(value, Tensor) and isinstance(reference, DTensor)
    if not fits or isinstance(value, DTensor) or value.shape != reference.shape:
        return value
    mesh, places = reference.device_mesh, reference.placements
    return distribute_tensor(value.to(reference.device), mesh, places, src_data_rank=None)


def states_are_whole(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer give and take the state of an unsharded one; all processes take part."""
    optimizer.register_state_dict_post_hook(_gather_state)
    optimizer.register_load_state_dict_pre_hook(_share_out_state)


def _gather_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    values = {index: gathered(entry) for index, entry in state["state"].items()}
    return {**state, "state": values}


def _share_out_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = [index for group in state["param_groups"] for index in group["params"]]
    values = dict(state["state"])
    for index, parameter in zip(order, own):
        if index in values:
            values[index] = {n: like(value, parameter) for n, value in values[index].items()}
    return {**state, "state": values}


def clip_gradients(
    parameters: Sequence[nn.Parameter], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Clip the norm of all gradients together, sharded or not.

    Returns:
        Tensor: (), the norm before; of all shares.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type)
    # A share may be empty, which has no largest value.
    shares = [share for share in map(local, gradients) if share.numel()]
    own = nn.utils.get_total_norm(shares, norm_type).to(gradients[0].device)
    norms = [torch.empty_like(own) for _ in range(comm.get_world_size())]
    dist.all_gather(norms, own)
    norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    if shares:
        torch._foreach_mul_(shares, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
