"""Implements :class:`.ops.Ops` in plain PyTorch: the reference for :mod:`.triton_ops`.

Also what runs where Triton does not. Arithmetic is float32, results have the dtype of the input,
rounded where transformers' own layers round. Tensors have tokens first. ``out`` is written to and
may be a strided part of a wider buffer.
"""

from __future__ import annotations

import torch

from medcot.engines.fused.packing import PackedRows

E4M3_MAX = 448.0
"""Largest finite number of the 8-bit float format e4m3."""
AMAX_FLOOR = 1e-12
"""Smallest absolute maximum that a quantized row is scaled by: a row of zeros has none."""


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> torch.Tensor:
    """Write the RMS norm of ``hidden`` [tokens, width] to ``out``; return 1/RMS, [tokens]."""
    rstd = torch.rsqrt(hidden.float().square().mean(-1) + eps)
    recompute_rms_norm(hidden, weight, rstd, out)
    return rstd


def add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the RMS norm of ``hidden + update`` to ``out``; return the sum and its 1/RMS."""
    total = hidden + update
    return total, rms_norm(total, weight, eps, out)


def recompute_rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the RMS norm of ``hidden`` to ``out``, given the 1/RMS of the forward pass."""
    out.copy_(weight * (hidden.float() * rstd[:, None]).to(hidden.dtype))


def rms_norm_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    residual_gradient: torch.Tensor | None,
) -> torch.Tensor:
    """Return the gradient of the norm's input, plus that of the residual connection around it."""
    normed = hidden.float() * rstd[:, None]
    scaled = gradient.float() * weight.float()
    result = rstd[:, None] * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    if residual_gradient is not None:
        result = result + residual_gradient.float()
    return result.to(hidden.dtype)


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``silu(gate) * up`` of ``gate_up`` [tokens, 2 * width] to ``out`` [tokens, width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate.float()).to(gate.dtype) * up)


def swiglu_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of ``gate_up``, and SwiGLU's output, which is recomputed, not saved."""
    gate, up = (part.float() for part in gate_up.chunk(2, dim=-1))
    upstream = gradient.float()
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gate_gradient = upstream * up * sigmoid * (1 + gate * (1 - sigmoid))
    joined = torch.cat([gate_gradient, upstream * silu], dim=-1).to(gate_up.dtype)
    return joined, silu.to(gate_up.dtype) * up.to(gate_up.dtype)


def apply_rope_(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated_heads: int, head_dim: int
) -> None:
    """Rotate the first ``rotated_heads`` heads of ``qkv`` [tokens, heads * head_dim] in place.

    ``cos`` and ``sin`` are [tokens, head_dim] with equal halves, as transformers makes them.
    """
    heads = qkv[:, : rotated_heads * head_dim].unflatten(-1, (rotated_heads, head_dim))
    heads.copy_(_rotate(heads, cos, sin))


def norm_rope(
    qkv: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Normalize and rotate the first heads of ``qkv`` [tokens, all heads * head_dim].

    ``weight`` [heads, head_dim] holds the norm's weight of each of them. Returns [tokens, heads *
    head_dim]; ``qkv`` stays as it is, because the norm's backward pass needs it.
    """
    heads = qkv[:, : weight.numel()].unflatten(-1, weight.shape)
    normed = weight * (heads.float() * _head_rstd(heads, eps)).to(heads.dtype)
    return _rotate(normed, cos, sin).flatten(1)


def head_norm_backward_(
    gradient: torch.Tensor, qkv: torch.Tensor, weight: torch.Tensor, eps: float
) -> None:
    """Turn the ``gradient`` of normalized heads into that of ``qkv``, in place.

    Both are [tokens, all heads * head_dim]; those after the heads of ``weight`` have no norm.
    """
    heads, upstream = (x[:, : weight.numel()].unflatten(-1, weight.shape) for x in (qkv, gradient))
    rstd = _head_rstd(heads, eps)
    normed = heads.float() * rstd
    scaled = upstream.float() * weight.float()
    upstream.copy_(rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)))


def qkv_rope_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: PackedRows,
) -> torch.Tensor:
    """Return the gradient of the joined QKV projection: [tokens, (heads + 2 * kv heads) * dim].

    The arguments are gradients: of the queries [tokens, heads, dim], and of the keys and values of
    whole rows [keys, kv heads, dim]. Tokens of the shared prefix get the sum over all rows. The
    inverse of a rotation is its transpose.
    """
    keys, values = (_sum_over_rows(gradient, rows) for gradient in (keys, values))
    parts = (_rotate(queries, cos, -sin), _rotate(keys, cos, -sin), values)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _sum_over_rows(gradient: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """Reduce gradients of whole rows' keys [keys, ...] to stored tokens [tokens, ...]."""
    if rows.own_key_index is None:
        return gradient
    result = gradient.index_select(0, rows.own_key_index)
    parts = gradient.split(rows.key_lengths)
    shared = torch.stack([part[: rows.shared].float() for part in parts]).sum(0)
    result[: rows.shared] = shared.to(result.dtype)
    return result


def quantize_rows(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of ``x`` [rows, width] to e4m3 with a scale of its own.

    Returns [padded, width] in ``float8_e4m3fn`` and float32 scales [padded], which multiply the
    rows. The contents of the rows beyond ``x`` are undefined.
    """
    rows = torch.zeros(padded, x.shape[1], dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.ones(padded, dtype=torch.float32, device=x.device)
    x_fp32 = x.float()
    scales[: len(x)] = x_fp32.abs().amax(-1).clamp_(min=AMAX_FLOOR) / E4M3_MAX
    rows[: len(x)] = (x_fp32 / scales[: len(x), None]).to(rows.dtype)
    return rows, scales


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return each token's loss, float32 [tokens], and overwrite ``logits`` with their gradient.

    The gradient is that of the summed loss with respect to ``logits`` [tokens, vocab].
    """
    gradient = logits.float()
    log_sum_exp = torch.logsumexp(gradient, dim=-1)
    target_logits = gradient.gather(1, targets[:, None]).squeeze(1)
    gradient = gradient.sub_(log_sum_exp[:, None]).exp_()
    gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), -1.0))
    logits.copy_(gradient)
    return log_sum_exp - target_logits


def _head_rstd(heads: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.rsqrt(heads.float().square().mean(-1, keepdim=True) + eps)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x = heads.float()
    first, second = x.chunk(2, dim=-1)
    half_rotated = torch.cat([-second, first], dim=-1)
    return (x * cos[:, None].float() + half_rotated * sin[:, None].float()).to(heads.dtype)
