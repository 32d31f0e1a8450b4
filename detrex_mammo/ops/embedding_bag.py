# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention without a C compiler: a plan of rows and ``embedding_bag``.

Every sample is a weighted sum of four cells, so a query and head is one bag of 4 * L * P rows of
``value``. Finding the rows (the plan) costs more than summing them. Hence the levels get a border
of zeros, which spares the plan every test of a corner; it runs over a few queries at a time, so
that it stays in the processor's cache; and in inference torch.compile makes one loop of it.

B batch, S = sum of h*w over levels, M heads, D channels per head, Q queries, L levels, P points;
K = L * P samples, R = B * Q rows of queries.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detrex_mammo.ops.reference import accumulation_dtype

# Rows of value that one step of inference reads: their numbers and weights fit in a cache.
CHUNK = 2**19
# torch.compile takes seconds. It begins after this many calls of at least this many chunks, so
# that nobody waits for it who wants one image.
COMPILE_AFTER = 12
MIN_CHUNKS_TO_COMPILE = 4
_MAX_INT32 = 2**31 - 1
_num_large_calls = 0
_compiled_plan: Callable[..., tuple[Tensor, Tensor]] | None = None  # the eager one if that fails


def ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Eq. 3 of https://arxiv.org/abs/2010.04159 without its projections; differentiable.

    Args:
        value (Tensor): (B, S, M, D), levels one after another, each row by row.
        spatial_shapes (Sequence[tuple[int, int]]): L pairs (h, w).
        sampling_locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        attention_weights (Tensor): (B, Q, M, L, P), summing to 1 over (L, P).

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``; accumulated in at least float32.
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = (sampling_locations.shape[i] for i in (1, 3, 4))
    if batch * queries * heads * channels * points == 0:
        return value.new_zeros(batch, queries, heads * channels)
    dtype = accumulation_dtype(value, sampling_locations, attention_weights)
    table = _bordered_table(value.to(dtype), spatial_shapes)  # (B * cells, M, D)
    samples = levels * points
    plan_inputs = (
        sampling_locations.to(dtype).reshape(batch * queries, heads, samples, 2),
        attention_weights.to(dtype).reshape(batch * queries, heads, samples),
        _first_rows(table, batch, queries),
    )
    levels_of_samples = _levels_of_samples(table, spatial_shapes, points)
    rows = table.flatten(0, 1)
    needs_grad = torch.is_grad_enabled() and (
        value.requires_grad or sampling_locations.requires_grad or attention_weights.requires_grad
    )
    if needs_grad or torch.compiler.is_compiling():
        out = _sum_bags(rows, *_plan(*plan_inputs, *levels_of_samples))
    else:
        out = _infer(rows, plan_inputs, levels_of_samples)
    return out.view(batch, queries, heads * channels).to(value.dtype)


def _bordered_table(value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The levels of every image, each within a border of zeros.

    Two cells to the left and one row above and below; what lies right of a row is the next row's
    left border, and one more cell ends the last image.

    Args:
        value (Tensor): (B, S, M, D).
        shapes (Sequence[tuple[int, int]]): L pairs (h, w).

    Returns:
        Tensor: (B * cells + 1, M, D), cells = sum of (h + 2) * (w + 2).
    """
    batch, _, heads, channels = value.shape
    cells = sum((h + 2) * (w + 2) for h, w in shapes)
    table = value.new_zeros(batch * cells + 1, heads, channels)
    images = table[:-1].view(batch, cells, heads, channels)
    start = 0
    for (h, w), level in zip(shapes, value.split([h * w for h, w in shapes], dim=1)):
        stop = start + (h + 2) * (w + 2)
        bordered = images[:, start:stop].view(batch, h + 2, w + 2, heads, channels)
        bordered[:, 1:-1, 2:] = level.reshape(batch, h, w, heads, channels)
        start = stop
    return table


def _index_dtype(table: Tensor) -> torch.dtype:
    """Half the memory where it suffices; while something is traced its sizes may be unknown."""
    is_narrow = not torch.compiler.is_compiling() and table[..., 0].numel() <= _MAX_INT32
    return torch.int32 if is_narrow else torch.int64


def _first_rows(table: Tensor, batch: int, queries: int) -> Tensor:
    """(R, 1, 1), the first row of the table that belongs to each query's image."""
    index = _index_dtype(table)
    rows_per_image = (table.shape[0] - 1) // batch * table.shape[1]
    images = torch.arange(batch, dtype=index, device=table.device) * rows_per_image
    return images.repeat_interleave(queries)[:, None, None]


def _levels_of_samples(
    table: Tensor, shapes: Sequence[tuple[int, int]], points: int
) -> tuple[Tensor, ...]:
    """What the plan knows about the level of each sample.

    Returns:
        tuple[Tensor, ...]: width and height (K,); number of the table's row that holds cell
        (0, 0) of an image's level, (M, K); rows from one line of cells to the next (K,).
    """
    heads, start, numbers = table.shape[1], 0, []
    for h, w in shapes:
        numbers.append((w, h, (start + w + 2 + 2) * heads, (w + 2) * heads))
        start += (h + 2) * (w + 2)
    columns = torch.tensor(numbers, device=table.device).repeat_interleave(points, dim=0)
    width, height, first, line = columns.unbind(1)
    index = _index_dtype(table)
    first = first + torch.arange(heads, device=table.device)[:, None]
    return width.to(table.dtype), height.to(table.dtype), first.to(index), line.to(index)


def _plan(
    locations: Tensor,
    weights: Tensor,
    image: Tensor,
    width: Tensor,
    height: Tensor,
    first: Tensor,
    line: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows of the table and their weights; elementwise only, for torch.compile to make one loop.

    A sample that reads nothing of its level (NaN and infinity, too) goes to the border.

    Args:
        locations (Tensor): (R, M, K, 2) as (x, y), in [0, 1] of the padded level.
        weights (Tensor): (R, M, K).
        image (Tensor): (R, 1, 1), see :func:`_first_rows`.
        width, height, first, line (Tensor): see :func:`_levels_of_samples`.

    Returns:
        tuple[Tensor, Tensor]: (R, M, 4, K) integers and weights.
    """
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    touches = (x >= -1) & (x < width) & (y >= -1) & (y < height)
    x, y = torch.where(touches, x, -2.0), torch.where(touches, y, -1.0)
    left, top = x.floor(), y.floor()
    heads = first.shape[0]
    row = image + first + top.to(first.dtype) * line + left.to(first.dtype) * heads
    below = row + line
    lower = weights * (y - top)
    upper = weights - lower
    upper_right, lower_right = upper * (x - left), lower * (x - left)
    return (
        torch.stack([row, row + heads, below, below + heads], dim=-2),
        torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-2),
    )


def _sum_bags(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """(R * M, D), the weighted sum of each query's and head's rows."""
    index, weights = index.flatten(0, 1).flatten(1), weights.flatten(0, 1).flatten(1)
    if index.numel() > _MAX_INT32:
        index = index.long()
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


def _infer(rows: Tensor, plan_inputs: tuple[Tensor, ...], levels: tuple[Tensor, ...]) -> Tensor:
    """The same in steps of a fixed number of queries, the only size that is ever compiled."""
    count, heads, samples = plan_inputs[1].shape
    step = max(1, CHUNK // (4 * heads * samples))
    plan = _fast_plan() if rows.is_cpu and count // step >= MIN_CHUNKS_TO_COMPILE else _plan
    out = rows.new_empty(count, heads, rows.shape[1])
    for start in range(0, count, step):
        inputs = [tensor[start : start + step] for tensor in plan_inputs]
        planned = (plan if len(inputs[0]) == step else _plan)(*inputs, *levels)
        out[start : start + step] = _sum_bags(rows, *planned).view(-1, heads, rows.shape[1])
    return out


def _fast_plan() -> Callable[..., tuple[Tensor, Tensor]]:
    """The compiled plan if it is time for it and compiling works, else the plan itself."""
    global _num_large_calls
    _num_large_calls += 1
    return _compiled_or_eager_plan if _num_large_calls > COMPILE_AFTER else _plan


def _compiled_or_eager_plan(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    global _compiled_plan
    try:
        _compiled_plan = _compiled_plan or torch.compile(_plan, dynamic=False)
        return _compiled_plan(*inputs)
    except Exception as error:  # whatever stops a compiler
        if _compiled_plan is _plan:
            raise
        _compiled_plan = _plan
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"ms_deform_attn's backend 'embedding_bag' goes on without torch.compile ({reason})",
            stacklevel=2,
        )
        return _plan(*inputs)
