# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images of different sizes in one batch, in the memory format that convolutions like best.

Channels last: no reordering around convolutions, norms over contiguous channels, and the tokens of
a feature map, (B, h*w, C), are a view of it.

B batch, H and W the largest height and width in it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolutions_to_channels_last(module: nn.Module) -> None:
    """Store the weights of all 2-d convolutions channels last, in place; values stay as they are.

    A convolution with such a weight answers in that format, whatever the format of its input.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            child.weight.data = child.weight.data.contiguous(memory_format=torch.channels_last)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the work that is queued on the device."""
    if device.type == "cuda" and tensor.is_cpu:
        tensor = tensor.pin_memory()  # only from there is a copy really asynchronous
    return tensor.to(device, non_blocking=True)


def pad_and_stack(images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Normalised images into one batch, with zeros at the bottom and right.

    Args:
        images (Sequence[Tensor]): B images (3, h, w).

    Returns:
        tuple[Tensor, BoolTensor or None]: (B, 3, H, W), channels last in memory, and the padding
        mask (B, H, W), True on padding; None if all sizes are equal.
    """
    sizes = [image.shape[-2:] for image in images]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    if all(size == (height, width) for size in sizes):
        return torch.stack(list(images)).contiguous(memory_format=torch.channels_last), None
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    batch = batch.contiguous(memory_format=torch.channels_last)
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for index, (image, (h, w)) in enumerate(zip(images, sizes)):
        batch[index, :, :h, :w] = image
        padding_mask[index, :h, :w] = False
    return batch, padding_mask


def resize_padding_mask(padding_mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """The mask of a feature map: the nearest pixel of the image's mask, rounding down.

    Args:
        padding_mask (BoolTensor, optional): (B, H, W), True on padding.
        size (tuple[int, int]): (h, w) of the feature map.

    Returns:
        BoolTensor or None: (B, h, w).
    """
    if padding_mask is None:
        return None
    return F.interpolate(padding_mask[None].float(), size=size, mode="nearest")[0].bool()
