# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention on the GPU, eq. 3 of https://arxiv.org/abs/2010.04159.

Imports Triton, so only ``triton_kernel`` imports this, and only when it launches something.

B batch, S tokens of all levels, Q queries, M heads, D channels per head, L levels, P points.
PP and DP: P and D rounded up to a power of two.

Where a query looks is given in one of two forms (REF, as in the C kernel):
  0     ``places`` are locations (x, y) in [0, 1] and ``attention`` is weights;
  2, 4  ``places`` are offsets from reference points (x, y) or (cx, cy, w, h), and ``attention``
        is logits, whose softmax over all L * P samples is taken here.

What makes it fast:
- a program takes BQ queries of one head; a tile (BQ, PP, DP) holds all points of one level, so
  that a thread reads 16 bytes of a row at once and the corners of several samples are in flight;
- points are added up once, after the last level: until then each keeps its own accumulator;
- levels are unrolled and their sizes are arguments, no table in memory: nothing to copy to the
  device, hence nothing to wait for, and a new image size compiles nothing. As floats, because
  Triton compiles integers anew when they are 1 or divisible by 16.

Outside of a level nothing is read and zero is taken instead; a NaN or infinite coordinate is
outside of every level.
"""

import triton
import triton.language as tl

# The lowest finite float32, for maxima: -inf minus itself would be NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _program(num_queries, M: tl.constexpr, BQ: tl.constexpr, WIDE: tl.constexpr):
    """The image, head and queries of this program; heads vary fastest: they share cache lines."""
    program = tl.program_id(0)
    head = program % M
    block = program // M
    num_blocks = tl.cdiv(num_queries, BQ)
    queries = (block % num_blocks) * BQ + tl.arange(0, BQ)
    if WIDE:
        queries = queries.to(tl.int64)
    # The image is 64 bits wide: offsets inside one image rarely need that, those of a batch do.
    return (block // num_blocks).to(tl.int64), head, queries


@triton.jit
def _load(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointers, number, mask):
    tl.store(pointers, number.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _load_weights(attention, live, is_point, L: tl.constexpr, P: tl.constexpr, REF: tl.constexpr):
    """Attention weights as L factors, one for each level, and a common factor.

    A softmax in two steps: over the levels each thread knows its logits, and only the common
    factor takes an exchange between threads. With the finished weights in every level's arithmetic
    Triton would exchange them again at each corner, through shared memory.

    Args:
        attention: pointers to each sample of the first level, (BQ, PP).
        live: which samples exist, (BQ, PP).
        is_point: the same for any query, (1, PP).

    Returns:
        A tuple of L times (BQ, PP), and (BQ, PP) or (1, PP), zero where there is no point.
    """
    weights = ()
    for level in tl.static_range(L):
        weights += (_load(attention + level * P, live),)
    factor = tl.where(is_point, 1.0, 0.0)
    if REF != 0:
        largest = tl.full(weights[0].shape, LOWEST, tl.float32)
        for level in tl.static_range(L):
            largest = tl.maximum(largest, weights[level])
        logits, weights = weights, ()
        total = tl.zeros_like(largest)
        for level in tl.static_range(L):
            weights += (tl.exp(logits[level] - largest),)
            total += weights[level]
        largest = tl.where(is_point, largest, LOWEST)
        factor *= tl.exp(largest - tl.max(largest, 1)[:, None])
        factor /= tl.sum(factor * total, 1)[:, None]
    return weights, factor


@triton.jit
def _query_rows(
    image, head, queries, references, places, attention,
    references_batch, places_batch, places_query, attention_batch, attention_query,
    P: tl.constexpr, L: tl.constexpr, REF: tl.constexpr,
):  # fmt: skip
    """Pointers to the first of each query's reference points, places and attention; (BQ, 1)."""
    rows = queries[:, None]
    references += image * references_batch + rows * (L * REF)
    places += image * places_batch + head * (2 * L * P) + rows * places_query
    attention += image * attention_batch + head * (L * P) + rows * attention_query
    return references, places, attention


@triton.jit
def _locate(
    references, pairs, exists, live, width, height,
    level: tl.constexpr, P: tl.constexpr, REF: tl.constexpr,
):  # fmt: skip
    """Pixel coordinates of a level's samples, (BQ, PP), and pixels per unit of ``places``.

    Args:
        references: pointers to each query's first reference point, (BQ, 1).
        pairs: pointers to the x of each sample, (BQ, PP); y lies behind it.
    """
    origin_x, origin_y, step_x, step_y = -0.5, -0.5, width, height
    if REF != 0:
        point = references + level * REF
        origin_x = _load(point, exists) * width - 0.5
        origin_y = _load(point + 1, exists) * height - 0.5
        step_x, step_y = 1.0, 1.0
        if REF == 4:
            step_x = _load(point + 2, exists) * (width * 0.5 / P)
            step_y = _load(point + 3, exists) * (height * 0.5 / P)
    x = origin_x + _load(pairs, live) * step_x
    y = origin_y + _load(pairs + 1, live) * step_y
    return x, y, step_x, step_y


@triton.jit
def _find_corners(x, y, start, width, height, live):
    """What :func:`_corner` needs to know of a sample's four neighbours; all (BQ, PP).

    Args:
        x, y: pixel coordinates, (BQ, PP); any number, NaN and infinity too.
        start: the level's first token.
        live: which samples exist, (BQ, PP).
    """
    left, top = tl.floor(x), tl.floor(y)
    near = live & (left >= -1) & (left < width) & (top >= -1) & (top < height)  # not at NaN
    # Integers only now: a float that does not fit one may become anything.
    column = tl.where(near, left, -2.0).to(tl.int32)
    row = tl.where(near, top, -2.0).to(tl.int32)
    columns, rows = tl.cast(width, tl.int32), tl.cast(height, tl.int32)
    has_right, has_lower = near & (column + 1 < columns), near & (row + 1 < rows)
    cell = start + row * columns + column
    dx, dy = tl.where(near, x - left, 0.0), tl.where(near, y - top, 0.0)
    return cell, columns, dx, dy, column >= 0, has_right, row >= 0, has_lower


@triton.jit
def _corner_rows(
    base, cell, columns,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pointers to the channels of the upper left and the lower left neighbour, (BQ, PP, DP).

    The right one lies M * D behind the left one: a constant, which costs no instruction.
    """
    if WIDE:
        cell = cell.to(tl.int64)
        columns = columns.to(tl.int64)
    upper = base + (cell * (M * D))[:, :, None] + tl.arange(0, DP)[None, None, :]
    return upper, upper + columns * (M * D)


@triton.jit
def _corner(corners, right: tl.constexpr, lower: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """One neighbour: whether to read its channels, (BQ, PP, DP), and its share in x and y."""
    _, _, dx, dy, has_left, has_right, has_upper, has_lower = corners
    mask = ((has_right if right else has_left) & (has_lower if lower else has_upper))[:, :, None]
    if D != DP:
        mask = mask & (tl.arange(0, DP)[None, None, :] < D)
    return mask, dx if right else 1 - dx, dy if lower else 1 - dy


@triton.jit(do_not_specialize=("num_tokens", "num_queries"))
def forward_kernel(
    value, references, places, attention, output, shapes, num_tokens, num_queries,
    references_batch, places_batch, places_query, attention_batch, attention_query,
    M: tl.constexpr, D: tl.constexpr, P: tl.constexpr, L: tl.constexpr, REF: tl.constexpr,
    BQ: tl.constexpr, DP: tl.constexpr, PP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """``output`` (B, Q, M, D); the names ending in _batch and _query are strides in elements.

    Args:
        value: (B, S, M, D), contiguous. An int32 is a pair of bfloat16: taking it apart by hand
            costs two instructions where Triton's conversion costs three. D then counts pairs.
        references: (B, Q, L, REF), each image contiguous.
        places: (B, Q, M, L, P, 2), each query contiguous.
        attention: (B, Q, M, L, P), each query contiguous.
        shapes: L pairs (h, w), floats.
    """
    image, head, queries = _program(num_queries, M, BQ, WIDE)
    exists = (queries < num_queries)[:, None]
    points = tl.arange(0, PP)[None, :]
    is_point = points < P
    live = exists & is_point
    references, places, attention = _query_rows(
        image, head, queries, references, places, attention,
        references_batch, places_batch, places_query, attention_batch, attention_query, P, L, REF,
    )  # fmt: skip
    value += image * num_tokens * (M * D) + head * D
    weights, factor = _load_weights(attention + points, live, is_point, L, P, REF)
    PAIRED: tl.constexpr = value.dtype.element_ty == tl.int32
    total = tl.zeros([BQ, PP, DP], tl.float32)
    odd = tl.zeros([BQ, PP, DP], tl.float32)  # channels; if PAIRED, total has the even ones
    start = 0
    for level in tl.static_range(L):
        height, width = shapes[level]
        pairs = places + 2 * (level * P + points)
        x, y, _, _ = _locate(references, pairs, exists, live, width, height, level, P, REF)
        corners = _find_corners(x, y, start, width, height, live)
        rows = _corner_rows(value, corners[0], corners[1], M, D, DP, WIDE)
        for lower in tl.static_range(2):
            for right in tl.static_range(2):
                mask, share_x, share_y = _corner(corners, right, lower, D, DP)
                share = (weights[level] * (share_x * share_y))[:, :, None]
                row = tl.load(rows[lower] + right * (M * D), mask=mask, other=0)
                if PAIRED:
                    odd += share * (row & -65536).to(tl.float32, bitcast=True)
                    row = (row << 16).to(tl.float32, bitcast=True)
                total += share * row.to(tl.float32)
        start += tl.cast(height, tl.int32) * tl.cast(width, tl.int32)
    total = tl.sum(total * factor[:, :, None], 1)
    PARTS: tl.constexpr = 2 if PAIRED else 1
    if PAIRED:
        total = tl.join(total, tl.sum(odd * factor[:, :, None], 1)).reshape(BQ, PARTS * DP)
    channels = tl.arange(0, PARTS * DP)[None, :]
    output += ((image * num_queries + queries[:, None]) * M + head) * (PARTS * D) + channels
    _store(output, total, exists & (channels < PARTS * D))


@triton.jit
def _level_gradients(
    corners, weight, grad, value, grad_value, units,
    M: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, WIDE: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """Add to ``grad_value``; return the gradients of weight, x and y of a level, (BQ, PP).

    Those of x and y still lack their factor ``weight``.

    Args:
        grad: gradient of the output times the weights' common factor, (BQ, PP, DP).
        value, grad_value: pointers to the head's first element of the image.
    """
    along_weight, along_x, along_y = 0.0, 0.0, 0.0
    rows = _corner_rows(value, corners[0], corners[1], M, D, DP, WIDE)
    grad_rows = _corner_rows(grad_value, corners[0], corners[1], M, D, DP, WIDE)
    for lower in tl.static_range(2):
        for right in tl.static_range(2):
            mask, share_x, share_y = _corner(corners, right, lower, D, DP)
            product = tl.sum(_load(rows[lower] + right * (M * D), mask) * grad, 2)
            along_weight += share_x * share_y * product
            along_x += (product if right else -product) * share_y
            along_y += (product if lower else -product) * share_x
            addend = (weight * (share_x * share_y))[:, :, None] * grad
            if DETERMINISTIC:
                addend = (addend * units).to(tl.int64)
            pointers = grad_rows[lower] + right * (M * D)
            tl.atomic_add(pointers, addend, mask=mask, sem="relaxed")
    return along_weight, along_x, along_y


@triton.jit
def _store_grad_attention(
    grad_attention,
    grads,
    weights,
    factor,
    live,
    L: tl.constexpr,
    P: tl.constexpr,
    REF: tl.constexpr,
):
    """Gradients of the weights, or through the softmax of the logits: w * (grad - sum(w * grad)).

    Args:
        grads: for each level, the gradient of the weight times ``factor``, (BQ, PP).
        weights, factor: see :func:`_load_weights`.
    """
    mean = factor * 0.0
    if REF != 0:
        for level in tl.static_range(L):
            mean += grads[level] * weights[level]
        mean = factor * tl.sum(tl.where(live, mean, 0.0), 1)[:, None]
    for level in tl.static_range(L):
        grad = grads[level]
        if REF != 0:
            grad = weights[level] * (grad - mean)
        _store(grad_attention + level * P, grad, live)


@triton.jit(do_not_specialize=("num_tokens", "num_queries"))
def backward_kernel(
    grad_output, value, references, places, attention, grad_value, grad_places, grad_attention,
    units, shapes, num_tokens, num_queries,
    references_batch, places_batch, places_query, attention_batch, attention_query,
    M: tl.constexpr, D: tl.constexpr, P: tl.constexpr, L: tl.constexpr, REF: tl.constexpr,
    BQ: tl.constexpr, DP: tl.constexpr, PP: tl.constexpr, WIDE: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """The gradients, from the inputs alone; for the arguments see :func:`forward_kernel`.

    Args:
        grad_output: (B, Q, M, D), contiguous.
        grad_value: (B, S, M, D), zero at the start; float32, or if DETERMINISTIC int64, whose sums
            do not depend on the order, counting 1 / ``units``.
        grad_places, grad_attention: like places and attention, but contiguous.
        units: pointer to one float32, read if DETERMINISTIC.
    """
    image, head, queries = _program(num_queries, M, BQ, WIDE)
    exists = (queries < num_queries)[:, None]
    points = tl.arange(0, PP)[None, :]
    is_point = points < P
    live = exists & is_point
    references, places, attention = _query_rows(
        image, head, queries, references, places, attention,
        references_batch, places_batch, places_query, attention_batch, attention_query, P, L, REF,
    )  # fmt: skip
    value += image * num_tokens * (M * D) + head * D
    grad_value += image * num_tokens * (M * D) + head * D
    row = (image * num_queries + queries[:, None]) * M + head
    weights, factor = _load_weights(attention + points, live, is_point, L, P, REF)
    channels = tl.arange(0, DP)[None, :]
    grad = _load(grad_output + row * D + channels, exists & (channels < D))
    grad = grad[:, None, :] * factor[:, :, None]
    per_unit = tl.load(units) if DETERMINISTIC else 1.0
    grads = ()
    start = 0
    for level in tl.static_range(L):
        height, width = shapes[level]
        samples = level * P + points
        x, y, step_x, step_y = _locate(
            references, places + 2 * samples, exists, live, width, height, level, P, REF
        )
        along_weight, along_x, along_y = _level_gradients(
            _find_corners(x, y, start, width, height, live), weights[level], grad,
            value, grad_value, per_unit, M, D, DP, WIDE, DETERMINISTIC,
        )  # fmt: skip
        pairs = grad_places + 2 * (row * (L * P) + samples)
        _store(pairs, along_x * weights[level] * step_x, live)
        _store(pairs + 1, along_y * weights[level] * step_y, live)
        grads += (along_weight,)
        start += tl.cast(height, tl.int32) * tl.cast(width, tl.int32)
    rows = grad_attention + row * (L * P) + points
    _store_grad_attention(rows, grads, weights, factor, live, L, P, REF)
