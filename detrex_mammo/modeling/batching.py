# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images of different sizes in one batch.

B batch, H and W the largest height and width in it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_and_stack(images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Normalised images into one batch, with zeros at the bottom and right.

    Args:
        images (Sequence[Tensor]): B images (3, h, w).

    Returns:
        tuple[Tensor, BoolTensor or None]: (B, 3, H, W), and the padding mask (B, H, W), True on
        padding; None if all sizes are equal.
    """
    sizes = [image.shape[-2:] for image in images]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    if all(size == (height, width) for size in sizes):
        return torch.stack(list(images)), None
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
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
