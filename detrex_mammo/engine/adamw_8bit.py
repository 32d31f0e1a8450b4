# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""AdamW whose state takes two bytes a parameter instead of eight, by bitsandbytes.

Dettmers et al., 8-bit Optimizers via Block-wise Quantization, https://arxiv.org/abs/2110.02861.
Parameters of fewer than 4096 numbers, such as biases and norms, keep theirs in 32 bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from detrex_mammo.engine.optimizer import check_kind
from detrex_mammo.errors import UserError


def adamw_8bit(
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    min_8bit_size: int = 4096,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args:
        params: parameters or groups.
        lr, betas, eps, weight_decay: as in :class:`torch.optim.AdamW`.
        min_8bit_size: parameters of fewer numbers keep a state of 32 bits.
        fused: True, as its kernels are; a setting of torch's AdamW, which this can stand in for.

    Raises:
        UserError: bitsandbytes is not installed, or parameters are sharded.
    """
    if fused is not True:
        raise UserError(f"optimizer.fused is {fused!r}, but adamw_8bit has fused kernels only")
    groups = list(params)
    flat = [p for group in groups for p in (group["params"] if _is_group(group) else [group])]
    if any(hasattr(parameter, "placements") for parameter in flat):
        raise UserError(
            "optimizer is adamw_8bit, whose kernels cannot read sharded parameters: use "
            "torch.optim.AdamW, or train without sharding"
        )
    options = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "min_8bit_size": min_8bit_size}
    return _adamw_class()(groups, betas=tuple(betas), **options)


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping)


@lru_cache(maxsize=1)
def _adamw_class() -> type[torch.optim.Optimizer]:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"optimizer is adamw_8bit, but bitsandbytes cannot be imported ({error}): "
            "pip install 'detrex_mammo[8bit]'"
        ) from error

    class AdamW8bit(bitsandbytes.optim.AdamW8bit):
        """bitsandbytes' own, which keeps the order of parameters in memory, and checks states."""

        def fill_qmap(self) -> None:
            """Make the tables of what 8 bits stand for, from numbers also where others are fake."""
            with unset_fake_temporarily():
                super().fill_qmap()

        def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            """Zeros in the order in which the step goes through them, row by row."""
            return torch.zeros(p.shape, dtype=dtype, device=p.device)

        def update_step(self, group: dict, p: Tensor, gindex: int, pindex: int) -> None:
            """Step; convolutions that lie in memory channels last still do so afterwards."""
            is_channels_last = p.dim() == 4 and not p.is_contiguous()
            super().update_step(group, p, gindex, pindex)
            if is_channels_last:
                p.data = p.data.contiguous(memory_format=torch.channels_last)

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            """Load; their own does not call the hooks in which other optimizers check it."""
            check_kind(self, state_dict)
            super().load_state_dict(state_dict, move_to_device)

    return AdamW8bit
