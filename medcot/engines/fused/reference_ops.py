"""What a decoder layer does between its matrix products, forward and backward, in plain PyTorch.

The reference for :mod:`.triton_ops`, which does the same in one pass over memory
each, and what runs where Triton is not. Arithmetic is float32 inside, results have the dtype of
the input, as in transformers' own layers. Shapes: tokens first; ``out`` is written to and may be
a strided part of a wider buffer.
"""

from __future__ import annotations

import torch

from medcot.engines.fused.packing import PackedRows

LARGEST = 448.0
"""The largest number of the 8-bit float format e4m3."""
SMALLEST = 1e-12
"""Stands in for the largest of a row of zeros."""


def rms(hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
    """RMS norm of [tokens, width] into ``out``; gives 1/rms in float32 [tokens]."""
    scale = torch.rsqrt(hidden.float().square().mean(-1) + eps)
    renorm(hidden, weight, scale, out)
    return scale


def add_rms(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``hidden + update``, with its norm into ``out``; gives the sum and its 1/rms."""
    total = hidden + update
    return total, rms(total, weight, eps, out)


def renorm(
    hidden: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
) -> None:
    """The normed states again, from the 1/rms that was kept."""
    out.copy_(weight * (hidden.float() * scale[:, None]).to(hidden.dtype))


def rms_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    passing: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of the norm's input, plus what is ``passing`` by on the residual stream."""
    normed = hidden.float() * scale[:, None]
    slope = gradient.float() * weight.float()
    inward = scale[:, None] * (slope - normed * (slope * normed).mean(-1, keepdim=True))
    return (inward if passing is None else inward + passing.float()).to(hidden.dtype)


def swiglu(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """silu(gate) * up of [tokens, 2 * width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate.float()).to(gate.dtype) * up)


def swiglu_backward(
    gradient: torch.Tensor, gate_up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of ``gate_up``, and the layer's output again, which was not kept."""
    gate, up = (part.float() for part in gate_up.chunk(2, dim=-1))
    slope = gradient.float()
    share = torch.sigmoid(gate)
    silu = gate * share
    to_gate = slope * up * share * (1 + gate * (1 - share))
    both = torch.cat([to_gate, slope * silu], dim=-1).to(gate_up.dtype)
    return both, silu.to(gate_up.dtype) * up.to(gate_up.dtype)


def rope_(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, head_dim: int
) -> None:
    """Turn the first ``turned`` heads of [tokens, heads * head_dim] by their positions."""
    heads = qkv[:, : turned * head_dim].unflatten(-1, (turned, head_dim))
    heads.copy_(_turned(heads, cos, sin))


def join_rope_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: PackedRows,
) -> torch.Tensor:
    """Gradients of queries [tokens, heads, dim] and of keys and values [keys, kv heads, dim],
    turned back and side by side: the inverse of a rotation is its transpose. Keys that rows share
    have a gradient from each of them."""
    keys, values = (_of_tokens(gradient, rows) for gradient in (keys, values))
    parts = (_turned(queries, cos, -sin), _turned(keys, cos, -sin), values)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _of_tokens(gradient: torch.Tensor, rows: PackedRows) -> torch.Tensor:
    """Gradients of keys as whole rows have them [keys, ...], summed to [tokens, ...]."""
    if rows.own_keys is None:
        return gradient
    result = gradient.index_select(0, rows.own_keys)
    parts = gradient.split(rows.key_lengths)
    shared = torch.stack([part[: rows.shared].float() for part in parts]).sum(0)
    result[: rows.shared] = shared.to(result.dtype)
    return result


def quantize_rows(x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of [rows, width] as 8-bit floats (e4m3), and what to multiply each with: float32 [rows].

    ``padded`` rows are given; what lies in those beyond ``x`` means nothing.
    """
    rows = torch.zeros(padded, x.shape[1], dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.ones(padded, dtype=torch.float32, device=x.device)
    wide = x.float()
    scales[: len(x)] = wide.abs().amax(-1).clamp_(min=SMALLEST) / LARGEST
    rows[: len(x)] = (wide / scales[: len(x), None]).to(rows.dtype)
    return rows, scales


def token_losses_(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of each of [tokens]; ``logits`` become the gradient of the losses' sum by them."""
    wide = logits.float()
    log_total = torch.logsumexp(wide, dim=-1)
    chosen = wide.gather(1, targets[:, None]).squeeze(1)
    slope = wide.sub_(log_total[:, None]).exp_()
    slope.scatter_add_(1, targets[:, None], slope.new_full((len(targets), 1), -1.0))
    logits.copy_(slope)
    return log_total - chosen


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    return (wide * cos[:, None].float() + half * sin[:, None].float()).to(heads.dtype)
