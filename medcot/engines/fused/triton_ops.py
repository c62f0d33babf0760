"""The functions of :mod:`.reference_ops` as Triton kernels: each tensor is read and
written once.

One program a token, or a token and a stretch of its width. Rows may be strided, so that a norm
writes straight into the wider buffer that a matrix product reads.
"""

# pyright: reportIndexIssue=false

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from medcot.engines.fused import reference_ops
from medcot.engines.fused.packing import PackedRows

STRETCH = 2048
"""Elements of a row that one program of an elementwise kernel takes."""
SMALLEST, LARGEST = tl.constexpr(reference_ops.SMALLEST), tl.constexpr(reference_ops.LARGEST)
WORDS_AT_ONCE = 8192
"""Logits of a row that the loss reads at a time."""


def rms(hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    tokens, width = hidden.shape
    scale = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    block = triton.next_power_of_2(width)
    _rms[(tokens,)](
        hidden, weight, out, scale, hidden.stride(0), out.stride(0), width, eps,
        block=block, num_warps=_warps(block),
    )  # fmt: skip
    return scale


def add_rms(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, width = hidden.shape
    total = torch.empty_like(hidden)
    scale = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    block = triton.next_power_of_2(width)
    _add_rms[(tokens,)](
        hidden, update, weight, total, out, scale, hidden.stride(0), update.stride(0),
        out.stride(0), width, eps, block=block, num_warps=_warps(block),
    )  # fmt: skip
    return total, scale


def renorm(
    hidden: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
) -> None:
    tokens, width = hidden.shape
    block = triton.next_power_of_2(width)
    _renorm[(tokens,)](
        hidden, weight, scale, out, hidden.stride(0), out.stride(0), width,
        block=block, num_warps=_warps(block),
    )  # fmt: skip


def rms_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    passing: torch.Tensor | None,
) -> torch.Tensor:
    tokens, width = hidden.shape
    result = torch.empty_like(hidden)
    block = triton.next_power_of_2(width)
    beside = hidden if passing is None else passing
    _rms_backward[(tokens,)](
        gradient, hidden, weight, scale, beside, result, gradient.stride(0), hidden.stride(0),
        beside.stride(0), width, passes=passing is not None, block=block, num_warps=_warps(block),
    )  # fmt: skip
    return result


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    tokens, both = gate_up.shape
    grid = (tokens, triton.cdiv(both // 2, STRETCH))
    _swiglu[grid](gate_up, out, gate_up.stride(0), out.stride(0), both // 2, block=STRETCH)


def swiglu_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, both = gate_up.shape
    result = torch.empty_like(gate_up)
    active = torch.empty(tokens, both // 2, dtype=gate_up.dtype, device=gate_up.device)
    grid = (tokens, triton.cdiv(both // 2, STRETCH))
    _swiglu_backward[grid](
        gradient, gate_up, result, active, gradient.stride(0), gate_up.stride(0), both // 2,
        block=STRETCH,
    )  # fmt: skip
    return result, active


def rope_(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, head_dim: int
) -> None:
    half = head_dim // 2
    _rope[(len(qkv),)](
        qkv, cos, sin, qkv.stride(0), cos.stride(0), turned, half,
        heads_block=triton.next_power_of_2(turned), half_block=triton.next_power_of_2(half),
    )  # fmt: skip


def join_rope_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: PackedRows,
) -> torch.Tensor:
    tokens, wide, head_dim = queries.shape
    narrow, half = keys.shape[1], head_dim // 2
    shares = rows.own_keys is not None
    result = torch.empty(
        tokens, (wide + 2 * narrow) * head_dim, dtype=queries.dtype, device=queries.device
    )
    _join_rope_backward[(tokens,)](
        queries.contiguous(), keys.contiguous(), values.contiguous(), cos, sin, result,
        rows.own_keys if shares else rows.key_starts, rows.key_starts, rows.shared,
        cos.stride(0), wide, narrow, half, rows=len(rows.key_lengths), shares=shares,
        wide_block=triton.next_power_of_2(wide), narrow_block=triton.next_power_of_2(narrow),
        half_block=triton.next_power_of_2(half),
    )  # fmt: skip
    return result


def quantize_rows(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    count, width = x.shape
    rows = torch.empty(padded, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(padded, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _quantize_rows[(count,)](
        x, rows, scales, x.stride(0), width, block=block, num_warps=_warps(block)
    )
    return rows, scales


def token_losses_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    tokens, words = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    block = min(WORDS_AT_ONCE, triton.next_power_of_2(words))
    _token_losses[(tokens,)](
        logits, targets, losses, logits.stride(0), words, block=block, num_warps=_warps(block)
    )
    return losses


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


@triton.jit
def _normed(x, scale, weight):
    """The norm as transformers rounds it: to the input's dtype before the weight."""
    return weight * (x.to(tl.float32) * scale).to(x.dtype)


@triton.jit
def _rms(
    x_ptr, weight_ptr, out_ptr, scale_ptr, x_stride, out_stride, width, eps, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    x = tl.load(x_ptr + row * x_stride + places, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + places, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * out_stride + places, _normed(x, scale, weight), mask=inside)


@triton.jit
def _add_rms(
    x_ptr, update_ptr, weight_ptr, total_ptr, out_ptr, scale_ptr,
    x_stride, update_stride, out_stride, width, eps, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    x = tl.load(x_ptr + row * x_stride + places, mask=inside, other=0.0)
    update = tl.load(update_ptr + row * update_stride + places, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + places, mask=inside, other=0.0)
    total = (x.to(tl.float32) + update.to(tl.float32)).to(x.dtype)
    tl.store(total_ptr + row * x_stride + places, total, mask=inside)
    wide = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * out_stride + places, _normed(total, scale, weight), mask=inside)


@triton.jit
def _renorm(
    x_ptr, weight_ptr, scale_ptr, out_ptr, x_stride, out_stride, width, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    x = tl.load(x_ptr + row * x_stride + places, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + places, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + row)
    tl.store(out_ptr + row * out_stride + places, _normed(x, scale, weight), mask=inside)


@triton.jit
def _rms_backward(
    gradient_ptr, x_ptr, weight_ptr, scale_ptr, passing_ptr, out_ptr,
    gradient_stride, x_stride, passing_stride, width,
    passes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    gradient = tl.load(gradient_ptr + row * gradient_stride + places, mask=inside, other=0.0)
    x = tl.load(x_ptr + row * x_stride + places, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + places, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + row)
    normed = x.to(tl.float32) * scale
    slope = gradient.to(tl.float32) * weight.to(tl.float32)
    result = scale * (slope - normed * (tl.sum(slope * normed, axis=0) / width))
    if passes:
        beside = tl.load(passing_ptr + row * passing_stride + places, mask=inside, other=0.0)
        result += beside.to(tl.float32)
    tl.store(out_ptr + row * x_stride + places, result.to(x.dtype), mask=inside)


@triton.jit
def _swiglu(both_ptr, out_ptr, both_stride, out_stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * block + tl.arange(0, block)
    inside = places < width
    gate = tl.load(both_ptr + row * both_stride + places, mask=inside, other=0.0)
    up = tl.load(both_ptr + row * both_stride + width + places, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(out_ptr + row * out_stride + places, silu * up, mask=inside)


@triton.jit
def _swiglu_backward(
    gradient_ptr, both_ptr, out_ptr, active_ptr, gradient_stride, both_stride, width,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * block + tl.arange(0, block)
    inside = places < width
    gate = tl.load(both_ptr + row * both_stride + places, mask=inside, other=0.0)
    up = tl.load(both_ptr + row * both_stride + width + places, mask=inside, other=0.0)
    slope = tl.load(gradient_ptr + row * gradient_stride + places, mask=inside, other=0.0)
    wide, slope = gate.to(tl.float32), slope.to(tl.float32)
    share = tl.sigmoid(wide)
    silu = wide * share
    to_gate = slope * up.to(tl.float32) * share * (1 + wide * (1 - share))
    start = out_ptr + row * both_stride + places
    tl.store(start, to_gate.to(gate.dtype), mask=inside)
    tl.store(start + width, (slope * silu).to(gate.dtype), mask=inside)
    tl.store(active_ptr + row * width + places, silu.to(gate.dtype) * up, mask=inside)


@triton.jit
def _turn(first, second, cos, sin):
    """Both halves of some heads, turned; the tables' own halves are the same."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


@triton.jit
def _rope(
    qkv_ptr, cos_ptr, sin_ptr, stride, table_stride, heads, half,
    heads_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, heads_block)[:, None], tl.arange(0, half_block)[None, :]
    known = place < half
    inside = (head < heads) & known
    table = row * table_stride + place
    cos = tl.load(cos_ptr + table, mask=known, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=known, other=0.0).to(tl.float32)
    start = qkv_ptr + row * stride + head * 2 * half + place
    first = tl.load(start, mask=inside, other=0.0)
    second = tl.load(start + half, mask=inside, other=0.0)
    first, second = _turn(first, second, cos, sin)
    tl.store(start, first, mask=inside)
    tl.store(start + half, second, mask=inside)


@triton.jit
def _of_token(
    start_ptr, own_ptr, starts_ptr, offset, inside, token, stride, shared,
    rows: tl.constexpr, shares: tl.constexpr,
):  # fmt: skip
    """The gradient of a token's key or value: its own, or those of all rows that share it."""
    place = token
    if shares:
        place = tl.load(own_ptr + token)
    total = tl.load(start_ptr + place * stride + offset, mask=inside, other=0.0).to(tl.float32)
    if shares:  # noqa: SIM102 - known when compiling: the rest is left out where it is not
        if token < shared:
            for index in range(1, rows):
                place = tl.load(starts_ptr + index).to(tl.int64) + token
                part = tl.load(start_ptr + place * stride + offset, mask=inside, other=0.0)
                total += part.to(tl.float32)
    return total


@triton.jit
def _join_rope_backward(
    query_ptr, key_ptr, value_ptr, cos_ptr, sin_ptr, out_ptr, own_ptr, starts_ptr, shared,
    table_stride, wide, narrow, half, rows: tl.constexpr, shares: tl.constexpr,
    wide_block: tl.constexpr, narrow_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, half_block)[None, :]
    known = place < half
    table = row * table_stride + place
    cos = tl.load(cos_ptr + table, mask=known, other=0.0).to(tl.float32)
    sin = -tl.load(sin_ptr + table, mask=known, other=0.0).to(tl.float32)
    out_ptr += row * (wide + 2 * narrow) * 2 * half

    head = tl.arange(0, wide_block)[:, None]
    inside = (head < wide) & known
    offset = head * 2 * half + place
    start = query_ptr + row * wide * 2 * half + offset
    first, second = _turn(
        tl.load(start, mask=inside, other=0.0), tl.load(start + half, mask=inside, other=0.0),
        cos, sin,
    )  # fmt: skip
    tl.store(out_ptr + offset, first, mask=inside)
    tl.store(out_ptr + offset + half, second, mask=inside)

    head = tl.arange(0, narrow_block)[:, None]
    inside = (head < narrow) & known
    offset = head * 2 * half + place
    stride = narrow * 2 * half
    a = _of_token(key_ptr, own_ptr, starts_ptr, offset, inside, row, stride, shared, rows, shares)
    b = _of_token(
        key_ptr, own_ptr, starts_ptr, offset + half, inside, row, stride, shared, rows, shares
    )
    keys = out_ptr + wide * 2 * half + offset
    kind = out_ptr.dtype.element_ty
    tl.store(keys, (a * cos - b * sin).to(kind), mask=inside)
    tl.store(keys + half, (b * cos + a * sin).to(kind), mask=inside)

    values = out_ptr + (wide + narrow) * 2 * half + offset
    a = _of_token(value_ptr, own_ptr, starts_ptr, offset, inside, row, stride, shared, rows, shares)
    b = _of_token(
        value_ptr, own_ptr, starts_ptr, offset + half, inside, row, stride, shared, rows, shares
    )
    tl.store(values, a.to(kind), mask=inside)
    tl.store(values + half, b.to(kind), mask=inside)


@triton.jit
def _quantize_rows(x_ptr, out_ptr, scales_ptr, stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, block)
    inside = places < width
    x = tl.load(x_ptr + row * stride + places, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), SMALLEST) / LARGEST
    tl.store(scales_ptr + row, scale)
    tl.store(out_ptr + row * width + places, (x / scale).to(tl.float8e4nv), mask=inside)


@triton.jit
def _token_losses(
    logits_ptr, targets_ptr, losses_ptr, stride, words: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    target = tl.load(targets_ptr + row)
    chosen = tl.load(logits_ptr + target).to(tl.float32)
    highest, total = -float("inf"), 0.0
    for start in range(0, words, block):
        places = start + tl.arange(0, block)
        part = tl.load(logits_ptr + places, mask=places < words, other=-float("inf"))
        part = part.to(tl.float32)
        above = tl.maximum(highest, tl.max(part, axis=0))
        total = total * tl.exp(highest - above) + tl.sum(tl.exp(part - above), axis=0)
        highest = above
    log_total = highest + tl.log(total)
    tl.store(losses_ptr + row, log_total - chosen)
    # Every program has read its target before it writes: a row is one program's.
    for start in range(0, words, block):
        places = start + tl.arange(0, block)
        inside = places < words
        part = tl.load(logits_ptr + places, mask=inside, other=-float("inf"))
        slope = tl.exp(part.to(tl.float32) - log_total) - (places == target).to(tl.float32)
        tl.store(logits_ptr + places, slope.to(part.dtype), mask=inside)
