"""Implements :class:`.ops.Ops` as Triton kernels that read and write each tensor once.

Each program instance handles one token, or one block of a token's columns. Rows may be strided, so
that a norm writes directly into the wider buffer that the next matmul reads.
:mod:`.reference_ops` documents the functions.
"""

# pyright: reportIndexIssue=false

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from medcot.engines.fused import reference_ops
from medcot.engines.fused.packing import PackedRows

ELEMENTWISE_BLOCK = 2048
"""Columns per program instance of an elementwise kernel."""
AMAX_FLOOR, E4M3_MAX = tl.constexpr(reference_ops.AMAX_FLOOR), tl.constexpr(reference_ops.E4M3_MAX)
VOCAB_BLOCK = 8192
"""Logits per iteration of the cross-entropy kernel."""


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> torch.Tensor:
    """Compute the RMS norm; see :func:`.reference_ops.rms_norm`."""
    tokens, width = hidden.shape
    rstd = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(tokens,)](
        hidden, weight, out, rstd, hidden.stride(0), out.stride(0), width, eps,
        block=block, num_warps=_warps(block),
    )  # fmt: skip
    return rstd


def add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add and normalize; see :func:`.reference_ops.add_rms_norm`."""
    tokens, width = hidden.shape
    total = torch.empty_like(hidden)
    rstd = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    block = triton.next_power_of_2(width)
    _add_rms_norm_kernel[(tokens,)](
        hidden, update, weight, total, out, rstd, hidden.stride(0), update.stride(0),
        out.stride(0), width, eps, block=block, num_warps=_warps(block),
    )  # fmt: skip
    return total, rstd


def recompute_rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, out: torch.Tensor
) -> None:
    """Normalize with known ``rstd``; see :func:`.reference_ops.recompute_rms_norm`."""
    tokens, width = hidden.shape
    block = triton.next_power_of_2(width)
    _recompute_rms_norm_kernel[(tokens,)](
        hidden, weight, rstd, out, hidden.stride(0), out.stride(0), width,
        block=block, num_warps=_warps(block),
    )  # fmt: skip


def rms_norm_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual_gradient: torch.Tensor | None,
) -> torch.Tensor:
    """Differentiate the norm; see :func:`.reference_ops.rms_norm_backward`."""
    tokens, width = hidden.shape
    result = torch.empty_like(hidden)
    block = triton.next_power_of_2(width)
    residual = hidden if residual_gradient is None else residual_gradient
    _rms_norm_backward_kernel[(tokens,)](
        gradient, hidden, weight, rstd, residual, result, gradient.stride(0), hidden.stride(0),
        residual.stride(0), width, add_residual=residual_gradient is not None,
        block=block, num_warps=_warps(block),
    )  # fmt: skip
    return result


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Compute SwiGLU; see :func:`.reference_ops.swiglu`."""
    tokens, double_width = gate_up.shape
    grid = (tokens, triton.cdiv(double_width // 2, ELEMENTWISE_BLOCK))
    _swiglu_kernel[grid](
        gate_up, out, gate_up.stride(0), out.stride(0), double_width // 2, block=ELEMENTWISE_BLOCK
    )


def swiglu_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiate SwiGLU; see :func:`.reference_ops.swiglu_backward`."""
    tokens, double_width = gate_up.shape
    result = torch.empty_like(gate_up)
    activation = torch.empty(tokens, double_width // 2, dtype=gate_up.dtype, device=gate_up.device)
    grid = (tokens, triton.cdiv(double_width // 2, ELEMENTWISE_BLOCK))
    _swiglu_backward_kernel[grid](
        gradient, gate_up, result, activation, gradient.stride(0), gate_up.stride(0),
        double_width // 2, block=ELEMENTWISE_BLOCK,
    )  # fmt: skip
    return result, activation


def apply_rope_(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated_heads: int, head_dim: int
) -> None:
    """Apply RoPE in place; see :func:`.reference_ops.apply_rope_`."""
    half = head_dim // 2
    _rope_kernel[(len(qkv),)](
        qkv, cos, sin, qkv.stride(0), cos.stride(0), rotated_heads, half,
        heads_block=triton.next_power_of_2(rotated_heads), half_block=triton.next_power_of_2(half),
    )  # fmt: skip


def norm_rope(
    qkv: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Normalize heads and apply RoPE; see :func:`.reference_ops.norm_rope`."""
    heads, head_dim = weight.shape
    half = head_dim // 2
    result = torch.empty(len(qkv), heads * head_dim, dtype=qkv.dtype, device=qkv.device)
    _norm_rope_kernel[(len(qkv),)](
        qkv, weight, cos, sin, result, qkv.stride(0), cos.stride(0), heads, half, eps,
        heads_block=triton.next_power_of_2(heads), half_block=triton.next_power_of_2(half),
    )  # fmt: skip
    return result


def head_norm_backward_(
    gradient: torch.Tensor, qkv: torch.Tensor, weight: torch.Tensor, eps: float
) -> None:
    """Differentiate the heads' norms; see :func:`.reference_ops.head_norm_backward_`."""
    heads, head_dim = weight.shape
    _head_norm_backward_kernel[(len(qkv),)](
        gradient, qkv, weight, gradient.stride(0), qkv.stride(0), heads, head_dim, eps,
        heads_block=triton.next_power_of_2(heads), block=triton.next_power_of_2(head_dim),
    )  # fmt: skip


def qkv_rope_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: PackedRows,
) -> torch.Tensor:
    """Differentiate RoPE; see :func:`.reference_ops.qkv_rope_backward`."""
    tokens, heads, head_dim = queries.shape
    kv_heads, half = keys.shape[1], head_dim // 2
    has_prefix = rows.own_key_index is not None
    result = torch.empty(
        tokens, (heads + 2 * kv_heads) * head_dim, dtype=queries.dtype, device=queries.device
    )
    _qkv_rope_backward_kernel[(tokens,)](
        queries.contiguous(), keys.contiguous(), values.contiguous(), cos, sin, result,
        rows.own_key_index if has_prefix else rows.cu_seqlens_k, rows.cu_seqlens_k, rows.shared,
        cos.stride(0), heads, kv_heads, half, rows=len(rows.key_lengths), has_prefix=has_prefix,
        heads_block=triton.next_power_of_2(heads), kv_heads_block=triton.next_power_of_2(kv_heads),
        half_block=triton.next_power_of_2(half),
    )  # fmt: skip
    return result


def quantize_rows(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to e4m3; see :func:`.reference_ops.quantize_rows`."""
    count, width = x.shape
    rows = torch.empty(padded, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(padded, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _quantize_rows_kernel[(count,)](
        x, rows, scales, x.stride(0), width, block=block, num_warps=_warps(block)
    )
    return rows, scales


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute losses and gradients; see :func:`.reference_ops.cross_entropy_`."""
    tokens, vocab = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    block = min(VOCAB_BLOCK, triton.next_power_of_2(vocab))
    _cross_entropy_kernel[(tokens,)](
        logits, targets, losses, logits.stride(0), vocab, block=block, num_warps=_warps(block)
    )
    return losses


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


@triton.jit
def _normalize(x, rstd, weight):
    """Normalize; like transformers, round to the input's dtype before applying the weight."""
    return weight * (x.to(tl.float32) * rstd).to(x.dtype)


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, out_ptr, rstd_ptr, x_stride, out_stride, width, eps, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    x_fp32 = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x_fp32 * x_fp32, axis=0) / width + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(out_ptr + row * out_stride + columns, _normalize(x, rstd, weight), mask=mask)


@triton.jit
def _add_rms_norm_kernel(
    x_ptr, update_ptr, weight_ptr, total_ptr, out_ptr, rstd_ptr,
    x_stride, update_stride, out_stride, width, eps, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    update = tl.load(update_ptr + row * update_stride + columns, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    total = (x.to(tl.float32) + update.to(tl.float32)).to(x.dtype)
    tl.store(total_ptr + row * x_stride + columns, total, mask=mask)
    x_fp32 = total.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x_fp32 * x_fp32, axis=0) / width + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(out_ptr + row * out_stride + columns, _normalize(total, rstd, weight), mask=mask)


@triton.jit
def _recompute_rms_norm_kernel(
    x_ptr, weight_ptr, rstd_ptr, out_ptr, x_stride, out_stride, width, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    rstd = tl.load(rstd_ptr + row)
    tl.store(out_ptr + row * out_stride + columns, _normalize(x, rstd, weight), mask=mask)


@triton.jit
def _rms_norm_backward_kernel(
    gradient_ptr, x_ptr, weight_ptr, rstd_ptr, residual_ptr, out_ptr,
    gradient_stride, x_stride, residual_stride, width,
    add_residual: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < width
    gradient = tl.load(gradient_ptr + row * gradient_stride + columns, mask=mask, other=0.0)
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    rstd = tl.load(rstd_ptr + row)
    normed = x.to(tl.float32) * rstd
    slope = gradient.to(tl.float32) * weight.to(tl.float32)
    result = rstd * (slope - normed * (tl.sum(slope * normed, axis=0) / width))
    if add_residual:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=mask, other=0.0)
        result += residual.to(tl.float32)
    tl.store(out_ptr + row * x_stride + columns, result.to(x.dtype), mask=mask)


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, gate_up_stride, out_stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    mask = columns < width
    gate = tl.load(gate_up_ptr + row * gate_up_stride + columns, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * gate_up_stride + width + columns, mask=mask, other=0.0)
    gate_fp32 = gate.to(tl.float32)
    silu = (gate_fp32 * tl.sigmoid(gate_fp32)).to(gate.dtype)
    tl.store(out_ptr + row * out_stride + columns, silu * up, mask=mask)


@triton.jit
def _swiglu_backward_kernel(
    gradient_ptr, gate_up_ptr, out_ptr, activation_ptr, gradient_stride, gate_up_stride, width,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    mask = columns < width
    gate = tl.load(gate_up_ptr + row * gate_up_stride + columns, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * gate_up_stride + width + columns, mask=mask, other=0.0)
    slope = tl.load(gradient_ptr + row * gradient_stride + columns, mask=mask, other=0.0)
    gate_fp32, slope = gate.to(tl.float32), slope.to(tl.float32)
    sigmoid = tl.sigmoid(gate_fp32)
    silu = gate_fp32 * sigmoid
    to_gate = slope * up.to(tl.float32) * sigmoid * (1 + gate_fp32 * (1 - sigmoid))
    start = out_ptr + row * gate_up_stride + columns
    tl.store(start, to_gate.to(gate.dtype), mask=mask)
    tl.store(start + width, (slope * silu).to(gate.dtype), mask=mask)
    tl.store(activation_ptr + row * width + columns, silu.to(gate.dtype) * up, mask=mask)


@triton.jit
def _rotate(first, second, cos, sin):
    """Rotate both halves of heads; the two halves of the cos and sin tables are equal."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


@triton.jit
def _rope_kernel(
    qkv_ptr, cos_ptr, sin_ptr, stride, table_stride, heads, half,
    heads_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, heads_block)[:, None], tl.arange(0, half_block)[None, :]
    column_mask = column < half
    mask = (head < heads) & column_mask
    table = token * table_stride + column
    cos = tl.load(cos_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    start = qkv_ptr + token * stride + head * 2 * half + column
    first = tl.load(start, mask=mask, other=0.0)
    second = tl.load(start + half, mask=mask, other=0.0)
    first, second = _rotate(first, second, cos, sin)
    tl.store(start, first, mask=mask)
    tl.store(start + half, second, mask=mask)


@triton.jit
def _norm_rope_kernel(
    qkv_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, stride, table_stride, heads, half, eps,
    heads_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, heads_block)[:, None], tl.arange(0, half_block)[None, :]
    column_mask = column < half
    mask = (head < heads) & column_mask
    table = token * table_stride + column
    cos = tl.load(cos_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    offset = head * 2 * half + column
    start = qkv_ptr + token * stride + offset
    first = tl.load(start, mask=mask, other=0.0)
    second = tl.load(start + half, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(a * a + b * b, axis=1) / (2 * half) + eps)[:, None]
    first = _normalize(first, rstd, tl.load(weight_ptr + offset, mask=mask, other=0.0))
    second = _normalize(second, rstd, tl.load(weight_ptr + offset + half, mask=mask, other=0.0))
    first, second = _rotate(first, second, cos, sin)
    start = out_ptr + token * heads * 2 * half + offset
    tl.store(start, first, mask=mask)
    tl.store(start + half, second, mask=mask)


@triton.jit
def _head_norm_backward_kernel(
    gradient_ptr, qkv_ptr, weight_ptr, gradient_stride, stride, heads, width, eps,
    heads_block: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, heads_block)[:, None], tl.arange(0, block)[None, :]
    mask = (head < heads) & (column < width)
    offset = head * width + column
    gradient_ptr += token * gradient_stride + offset
    gradient = tl.load(gradient_ptr, mask=mask, other=0.0)
    x = tl.load(qkv_ptr + token * stride + offset, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    normed = x * rstd
    slope = gradient.to(tl.float32) * weight
    result = rstd * (slope - normed * (tl.sum(slope * normed, axis=1) / width)[:, None])
    tl.store(gradient_ptr, result.to(gradient.dtype), mask=mask)


@triton.jit
def _token_gradient(
    gradient_ptr, own_key_ptr, cu_seqlens_ptr, offset, mask, token, stride, shared,
    rows: tl.constexpr, has_prefix: tl.constexpr,
):  # fmt: skip
    """Return the gradient of a token's key or value, summed over all rows that share the token."""
    key = token
    if has_prefix:
        key = tl.load(own_key_ptr + token)
    total = tl.load(gradient_ptr + key * stride + offset, mask=mask, other=0.0).to(tl.float32)
    if has_prefix:  # noqa: SIM102 - constexpr: the compiler drops the branch
        if token < shared:
            for index in range(1, rows):
                key = tl.load(cu_seqlens_ptr + index).to(tl.int64) + token
                part = tl.load(gradient_ptr + key * stride + offset, mask=mask, other=0.0)
                total += part.to(tl.float32)
    return total


@triton.jit
def _qkv_rope_backward_kernel(
    query_ptr, key_ptr, value_ptr, cos_ptr, sin_ptr, out_ptr, own_key_ptr, cu_seqlens_ptr, shared,
    table_stride, heads, kv_heads, half, rows: tl.constexpr, has_prefix: tl.constexpr,
    heads_block: tl.constexpr, kv_heads_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, half_block)[None, :]
    column_mask = column < half
    table = token * table_stride + column
    cos = tl.load(cos_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    sin = -tl.load(sin_ptr + table, mask=column_mask, other=0.0).to(tl.float32)
    out_ptr += token * (heads + 2 * kv_heads) * 2 * half

    head = tl.arange(0, heads_block)[:, None]
    mask = (head < heads) & column_mask
    offset = head * 2 * half + column
    start = query_ptr + token * heads * 2 * half + offset
    first, second = _rotate(
        tl.load(start, mask=mask, other=0.0), tl.load(start + half, mask=mask, other=0.0),
        cos, sin,
    )  # fmt: skip
    tl.store(out_ptr + offset, first, mask=mask)
    tl.store(out_ptr + offset + half, second, mask=mask)

    head = tl.arange(0, kv_heads_block)[:, None]
    mask = (head < kv_heads) & column_mask
    offset = head * 2 * half + column
    stride = kv_heads * 2 * half
    a = _token_gradient(
        key_ptr, own_key_ptr, cu_seqlens_ptr, offset, mask, token, stride, shared, rows, has_prefix
    )
    b = _token_gradient(
        key_ptr,
        own_key_ptr,
        cu_seqlens_ptr,
        offset + half,
        mask,
        token,
        stride,
        shared,
        rows,
        has_prefix,
    )
    keys = out_ptr + heads * 2 * half + offset
    dtype = out_ptr.dtype.element_ty
    tl.store(keys, (a * cos - b * sin).to(dtype), mask=mask)
    tl.store(keys + half, (b * cos + a * sin).to(dtype), mask=mask)

    values = out_ptr + (heads + kv_heads) * 2 * half + offset
    a = _token_gradient(
        value_ptr,
        own_key_ptr,
        cu_seqlens_ptr,
        offset,
        mask,
        token,
        stride,
        shared,
        rows,
        has_prefix,
    )
    b = _token_gradient(
        value_ptr,
        own_key_ptr,
        cu_seqlens_ptr,
        offset + half,
        mask,
        token,
        stride,
        shared,
        rows,
        has_prefix,
    )
    tl.store(values, a.to(dtype), mask=mask)
    tl.store(values + half, b.to(dtype), mask=mask)


@triton.jit
def _quantize_rows_kernel(x_ptr, out_ptr, scales_ptr, stride, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    mask = columns < width
    x = tl.load(x_ptr + row * stride + columns, mask=mask, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0), AMAX_FLOOR) / E4M3_MAX
    tl.store(scales_ptr + row, scale)
    tl.store(out_ptr + row * width + columns, (x / scale).to(tl.float8e4nv), mask=mask)


@triton.jit
def _cross_entropy_kernel(
    logits_ptr, targets_ptr, losses_ptr, stride, vocab: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    target = tl.load(targets_ptr + row)
    chosen = tl.load(logits_ptr + target).to(tl.float32)
    running_max, running_sum = -float("inf"), 0.0
    for start in range(0, vocab, block):
        columns = start + tl.arange(0, block)
        part = tl.load(logits_ptr + columns, mask=columns < vocab, other=-float("inf"))
        part = part.to(tl.float32)
        new_max = tl.maximum(running_max, tl.max(part, axis=0))
        running_sum = running_sum * tl.exp(running_max - new_max) + tl.sum(
            tl.exp(part - new_max), axis=0
        )
        running_max = new_max
    log_sum_exp = running_max + tl.log(running_sum)
    tl.store(losses_ptr + row, log_sum_exp - chosen)
    # Overwriting is safe: each row belongs to one program, which has read its target already.
    for start in range(0, vocab, block):
        columns = start + tl.arange(0, block)
        mask = columns < vocab
        part = tl.load(logits_ptr + columns, mask=mask, other=-float("inf"))
        slope = tl.exp(part.to(tl.float32) - log_sum_exp) - (columns == target).to(tl.float32)
        tl.store(logits_ptr + columns, slope.to(part.dtype), mask=mask)
