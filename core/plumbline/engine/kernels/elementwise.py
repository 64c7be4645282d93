"""Triton kernels of the training step, for CUDA; `plumbline.engine.elementwise` has the same in torch.

Each computes in float32 and rounds once, when it stores. Row-wise kernels have one program a row.
"""

import triton
import triton.language as tl

# mypy and ruff see Triton's decorated functions as untyped; they are compiled, not called by Python.


@triton.jit
def merge_kernel(
    out,
    packed,
    scales,
    code,
    outer_scales,
    outer_code,
    offset,
    a,
    b,
    strength,
    rows,
    columns,
    rank,
    NESTED: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTER_BLOCK: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = dequantised 4-bit weight + strength * b @ a, a tile of ROWS x COLUMNS weights a program.

    A byte holds two weights, the first in its upper half. ``columns`` is a multiple of BLOCK.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    pair = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    block = tl.program_id(1) * (COLUMNS // BLOCK) + tl.arange(0, COLUMNS // BLOCK)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_there = (row < rows)[:, None]
    pointers = packed + row[:, None] * (columns // 2) + pair[None, :]
    byte = tl.load(pointers, mask=row_there & (pair < columns // 2)[None, :], other=0).to(tl.int32)
    index = row[:, None] * (columns // BLOCK) + block[None, :]
    block_there = row_there & (block < columns // BLOCK)[None, :]
    if NESTED:
        level = tl.load(scales + index, mask=block_there, other=0).to(tl.int32)
        outer = tl.load(outer_scales + index // OUTER_BLOCK, mask=block_there, other=0.0)
        scale = tl.load(outer_code + level) * outer + tl.load(offset)
    else:
        scale = tl.load(scales + index, mask=block_there, other=0.0)
    wide = tl.broadcast_to(scale[:, :, None], (ROWS, COLUMNS // BLOCK, BLOCK // 2))
    wide = tl.reshape(wide, (ROWS, COLUMNS // 2))
    both = tl.join(tl.load(code + (byte >> 4)) * wide, tl.load(code + (byte & 15)) * wide)
    weight = tl.reshape(both, (ROWS, COLUMNS))
    column_there = (column < columns)[None, :]
    for begin in range(0, rank, RANK):
        number = begin + tl.arange(0, RANK)
        in_rank = number < rank
        left_place = b + row[:, None] * rank + number[None, :]
        left = tl.load(left_place, mask=row_there & in_rank[None, :], other=0.0)
        right_place = a + number[:, None] * columns + column[None, :]
        right = tl.load(right_place, mask=in_rank[:, None] & column_there, other=0.0)
        weight += strength * tl.dot(left, right, input_precision="ieee")
    pointers = out + row[:, None] * columns + column[None, :]
    tl.store(pointers, weight.to(out.dtype.element_ty), mask=row_there & column_there)


@triton.jit
def norm_kernel(out, x, weight, x_stride, columns, epsilon, BLOCK: tl.constexpr):
    """Root mean square norm of a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < columns
    value = tl.load(x + row * x_stride + column, mask=there, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / columns + epsilon)
    # Rounded before the weight, as the models do it.
    normed = (value * inverse).to(out.dtype.element_ty).to(tl.float32)
    scaled = normed * tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * columns + column, scaled.to(out.dtype.element_ty), mask=there)


@triton.jit
def norm_backward_kernel(
    gradient, x, weight, add, x_stride, columns, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradient of a norm's output becomes that of its input, plus ``add``, in place."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < columns
    value = tl.load(x + row * x_stride + column, mask=there, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / columns + epsilon)
    scaled_gradient = tl.load(gradient + row * columns + column, mask=there, other=0.0).to(tl.float32)
    scaled_gradient *= tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    normed = value * inverse
    result = inverse * (scaled_gradient - normed * (tl.sum(scaled_gradient * normed, 0) / columns))
    if ADD:
        result += tl.load(add + row * columns + column, mask=there, other=0.0).to(tl.float32)
    tl.store(gradient + row * columns + column, result.to(gradient.dtype.element_ty), mask=there)


@triton.jit
def rotate_kernel(
    out,
    x,
    cosine,
    sine,
    positions,
    out_stride,
    x_stride,
    heads,
    INVERSE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Rotary embedding of all heads of a token (or its inverse, for gradients); out may be x."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    column = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)
    there = (head < heads)[:, None]
    cos = tl.load(cosine + position * HALF + column)[None, :].to(tl.float32)
    sin = tl.load(sine + position * HALF + column)[None, :].to(tl.float32)
    if INVERSE:
        sin = -sin
    offsets = head[:, None] * (2 * HALF) + column[None, :]
    first = tl.load(x + token * x_stride + offsets, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x + token * x_stride + offsets + HALF, mask=there, other=0.0).to(tl.float32)
    turned = first * cos - second * sin
    tl.store(out + token * out_stride + offsets, turned.to(out.dtype.element_ty), mask=there)
    turned = second * cos + first * sin
    tl.store(out + token * out_stride + offsets + HALF, turned.to(out.dtype.element_ty), mask=there)


@triton.jit
def swiglu_kernel(out, gate_up, width, BLOCK: tl.constexpr):
    """silu(gate) * up, where a row is its gates and then its ups."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=there, other=0.0).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (active * up).to(out.dtype.element_ty), mask=there)


@triton.jit
def swiglu_backward_kernel(gradient, gate_up, width, BLOCK: tl.constexpr):
    """In place: the gradient of the product becomes the product, gate and up become their gradients."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    pointers = gate_up + row * 2 * width + column
    product_gradient = tl.load(gradient + row * width + column, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(pointers, mask=there, other=0.0).to(tl.float32)
    up = tl.load(pointers + width, mask=there, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    active = (gate * sigmoid).to(gradient.dtype.element_ty).to(tl.float32)
    tl.store(gradient + row * width + column, (active * up).to(gradient.dtype.element_ty), mask=there)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(pointers, (product_gradient * up * slope).to(gate_up.dtype.element_ty), mask=there)
    tl.store(pointers + width, (product_gradient * active).to(gate_up.dtype.element_ty), mask=there)


@triton.jit
def cross_entropy_kernel(
    losses, logits, targets, weights, weight, columns, stride, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """A row's negative log-likelihood; its logits become weight * (softmax - target), in place."""
    row = tl.program_id(0).to(tl.int64)
    if WEIGHTED:
        weight = tl.load(weights + row)
    begin = logits + row * stride
    target = tl.load(targets + row)
    highest = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(begin + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(value, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(value - higher), 0)
        highest = higher
    logarithm = highest + tl.log(total)
    tl.store(losses + row, logarithm - tl.load(begin + target).to(tl.float32))
    tl.debug_barrier()
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(begin + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        share = tl.exp(value - logarithm) - tl.where(column == target, 1.0, 0.0)
        tl.store(begin + column, (share * weight).to(logits.dtype.element_ty), mask=column < columns)
