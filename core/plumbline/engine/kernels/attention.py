"""Triton kernels of causal attention within packed rows, after FlashAttention-2 (Dao, 2023).

Written for many rows that are short beside the pack: a program is a tile of one row that exists,
and heads that share keys and values add their gradients up inside the program. Exponents are
powers of two; ``scale`` has log2(e) in it. Logarithms of sums are in base 2.

Queries are (tokens, heads, WIDTH), keys and values (tokens, heads / GROUP, WIDTH), each with the
stride of a token given. ``tiles`` holds pairs: a row's number and the tile's first token in it.
"""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    out,
    logarithms,
    query,
    key,
    value,
    tiles,
    boundaries,
    scale,
    tokens,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Attention's output, and per query the logarithm of its softmax's denominator (heads, tokens)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    row, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    begin = tl.load(boundaries + row)
    length = tl.load(boundaries + row + 1) - begin
    if first >= length:
        return
    begin = begin.to(tl.int64)
    asking = first + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    there = (asking < length)[:, None]
    offsets = (begin + asking)[:, None] * query_stride + head * WIDTH + width[None, :]
    q = tl.load(query + offsets, mask=there, other=0.0)
    keys = key + begin * key_stride + (head // GROUP) * WIDTH
    values = value + begin * value_stride + (head // GROUP) * WIDTH
    highest = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, WIDTH), tl.float32)
    # Keys before the tile are seen by all its queries; those beside it need the mask.
    whole = first // COLUMNS * COLUMNS
    for start in range(0, whole, COLUMNS):
        asked = start + tl.arange(0, COLUMNS)
        k = tl.load(keys + asked[:, None] * key_stride + width[None, :])
        score = tl.dot(q, k.T) * scale
        higher = tl.maximum(highest, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(share, 1)
        v = tl.load(values + asked[:, None] * value_stride + width[None, :])
        summed = tl.dot(share.to(v.dtype), v, summed * shrink[:, None])
        highest = higher
    for start in range(whole, tl.minimum(first + ROWS, length), COLUMNS):
        asked = start + tl.arange(0, COLUMNS)
        seen = (asked < length)[:, None]
        k = tl.load(keys + asked[:, None] * key_stride + width[None, :], mask=seen, other=0.0)
        score = tl.dot(q, k.T) * scale
        score = tl.where(asked[None, :] <= asking[:, None], score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(share, 1)
        v = tl.load(values + asked[:, None] * value_stride + width[None, :], mask=seen, other=0.0)
        summed = tl.dot(share.to(v.dtype), v, summed * shrink[:, None])
        highest = higher
    offsets = (begin + asking)[:, None] * out_stride + head * WIDTH + width[None, :]
    tl.store(out + offsets, (summed / total[:, None]).to(out.dtype.element_ty), mask=there)
    tl.store(logarithms + head * tokens + begin + asking, highest + tl.log2(total), mask=asking < length)


@triton.jit
def products_kernel(products, out, gradient, tokens, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Per query and head, the product of output and its gradient summed over the width (heads, tokens)."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head, heads = tl.program_id(1), tl.num_programs(1)
    there = token < tokens
    offsets = token.to(tl.int64)[:, None] * (heads * WIDTH) + head * WIDTH + tl.arange(0, WIDTH)[None, :]
    left = tl.load(out + offsets, mask=there[:, None], other=0.0).to(tl.float32)
    right = tl.load(gradient + offsets, mask=there[:, None], other=0.0).to(tl.float32)
    tl.store(products + head * tokens + token, tl.sum(left * right, 1), mask=there)


@triton.jit
def query_gradient_kernel(
    out,
    gradient,
    query,
    key,
    value,
    logarithms,
    products,
    tiles,
    boundaries,
    scale,
    factor,
    tokens,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    gradient_stride,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1)
    row, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    begin = tl.load(boundaries + row)
    length = tl.load(boundaries + row + 1) - begin
    if first >= length:
        return
    begin = begin.to(tl.int64)
    asking = first + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    there = (asking < length)[:, None]
    token = begin + asking
    q = tl.load(query + token[:, None] * query_stride + head * WIDTH + width[None, :], mask=there, other=0.0)
    pointers = gradient + token[:, None] * gradient_stride + head * WIDTH + width[None, :]
    out_gradient = tl.load(pointers, mask=there, other=0.0)
    logarithm = tl.load(logarithms + head * tokens + token, mask=asking < length, other=0.0)
    product = tl.load(products + head * tokens + token, mask=asking < length, other=0.0)
    keys = key + begin * key_stride + (head // GROUP) * WIDTH
    values = value + begin * value_stride + (head // GROUP) * WIDTH
    summed = tl.zeros((ROWS, WIDTH), tl.float32)
    whole = first // COLUMNS * COLUMNS
    for start in range(0, whole, COLUMNS):
        asked = start + tl.arange(0, COLUMNS)
        k = tl.load(keys + asked[:, None] * key_stride + width[None, :])
        v = tl.load(values + asked[:, None] * value_stride + width[None, :])
        share = tl.exp2(tl.dot(q, k.T) * scale - logarithm[:, None])
        slope = share * (tl.dot(out_gradient, v.T) - product[:, None])
        summed = tl.dot(slope.to(k.dtype), k, summed)
    for start in range(whole, tl.minimum(first + ROWS, length), COLUMNS):
        asked = start + tl.arange(0, COLUMNS)
        seen = (asked < length)[:, None]
        k = tl.load(keys + asked[:, None] * key_stride + width[None, :], mask=seen, other=0.0)
        v = tl.load(values + asked[:, None] * value_stride + width[None, :], mask=seen, other=0.0)
        share = tl.exp2(tl.dot(q, k.T) * scale - logarithm[:, None])
        share = tl.where(asked[None, :] <= asking[:, None], share, 0.0)
        slope = share * (tl.dot(out_gradient, v.T) - product[:, None])
        summed = tl.dot(slope.to(k.dtype), k, summed)
    pointers = out + token[:, None] * out_stride + head * WIDTH + width[None, :]
    tl.store(pointers, (summed * factor).to(out.dtype.element_ty), mask=there)


@triton.jit
def key_gradient_kernel(
    key_out,
    value_out,
    gradient,
    query,
    key,
    value,
    logarithms,
    products,
    tiles,
    boundaries,
    scale,
    factor,
    tokens,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    gradient_stride,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradients of a tile of COLUMNS keys and values, over all queries and heads that see them."""
    tile, head = tl.program_id(0), tl.program_id(1)
    row, first = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    begin = tl.load(boundaries + row)
    length = tl.load(boundaries + row + 1) - begin
    if first >= length:
        return
    begin = begin.to(tl.int64)
    asked = first + tl.arange(0, COLUMNS)
    width = tl.arange(0, WIDTH)
    seen = (asked < length)[:, None]
    token = begin + asked
    k = tl.load(key + token[:, None] * key_stride + head * WIDTH + width[None, :], mask=seen, other=0.0)
    v = tl.load(value + token[:, None] * value_stride + head * WIDTH + width[None, :], mask=seen, other=0.0)
    key_sum = tl.zeros((COLUMNS, WIDTH), tl.float32)
    value_sum = tl.zeros((COLUMNS, WIDTH), tl.float32)
    for member in range(0, GROUP):
        asker = head * GROUP + member
        queries = query + begin * query_stride + asker * WIDTH
        out_gradient_rows = gradient + begin * gradient_stride + asker * WIDTH
        for start in range(first // ROWS * ROWS, length, ROWS):
            asking = start + tl.arange(0, ROWS)
            inside = asking < length
            q = tl.load(
                queries + asking[:, None] * query_stride + width[None, :], mask=inside[:, None], other=0.0
            )
            out_gradient = tl.load(
                out_gradient_rows + asking[:, None] * gradient_stride + width[None, :],
                mask=inside[:, None],
                other=0.0,
            )
            at = asker * tokens + begin + asking
            logarithm = tl.load(logarithms + at, mask=inside, other=0.0)
            product = tl.load(products + at, mask=inside, other=0.0)
            share = tl.exp2(tl.dot(k, q.T) * scale - logarithm[None, :])
            share = tl.where((asked[:, None] <= asking[None, :]) & inside[None, :], share, 0.0)
            value_sum = tl.dot(share.to(out_gradient.dtype), out_gradient, value_sum)
            slope = share * (tl.dot(v, out_gradient.T) - product[None, :])
            key_sum = tl.dot(slope.to(q.dtype), q, key_sum)
    offsets = token[:, None] * out_stride + head * WIDTH + width[None, :]
    tl.store(key_out + offsets, (key_sum * factor).to(key_out.dtype.element_ty), mask=seen)
    tl.store(value_out + offsets, value_sum.to(value_out.dtype.element_ty), mask=seen)
