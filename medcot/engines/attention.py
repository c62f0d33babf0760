"""Causal attention over rows that lie end to end: each row sees itself alone.

What it costs is what the rows cost, by the best kernel that the machine has: PyTorch's own
variable-length FlashAttention (compute capability 8.0 and later), elsewhere (T4, Mac, CPU) one
call of scaled_dot_product_attention per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class RowStarts:
    """Where rows begin in a packed sequence of ``lengths[0] + ... + lengths[n-1]`` tokens."""

    lengths: tuple[int, ...]
    starts: torch.Tensor  # [n + 1], int32, on the model's device
    longest: int


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RowStarts], torch.Tensor]
"""(query [tokens, heads, dim], key and value [tokens, kv heads, dim], rows) to [tokens, heads,
dim]; differentiable."""


def attend_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: RowStarts
) -> torch.Tensor:
    """One call per row: exact on every device, and no score outside a row is ever computed."""
    group = query.shape[1] // key.shape[1]
    outputs = [
        scaled_dot_product_attention(
            _as_batch(q), _as_batch(k, group), _as_batch(v, group), is_causal=True
        )
        for q, k, v in zip(
            query.split(rows.lengths),
            key.split(rows.lengths),
            value.split(rows.lengths),
            strict=True,
        )
    ]
    return torch.cat([output[0].transpose(0, 1) for output in outputs])


def attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: RowStarts
) -> torch.Tensor:
    """All rows in one call of PyTorch's variable-length FlashAttention."""
    varlen_attn, options = _varlen()
    return varlen_attn(
        query, key, value, rows.starts, rows.starts, rows.longest, rows.longest, **options
    )


def choose_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Attention:
    """The fastest kernel that gives the right answer here."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256
    if fits and torch.cuda.get_device_capability(device) >= (8, 0):
        return attend_varlen if _varlen_works(device, dtype, head_dim) else attend_by_row
    return attend_by_row


@cache
def _varlen_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Try it forward and backward on two short rows; torch before 2.10 has no such kernel."""
    torch.manual_seed(0)
    query = torch.randn(24, 4, head_dim, device=device, dtype=dtype)
    key, value = torch.randn(2, 24, 2, head_dim, device=device, dtype=dtype)
    starts = torch.tensor([0, 9, 24], dtype=torch.int32, device=device)
    rows = RowStarts((9, 15), starts, 15)
    q, k, v = (tensor.requires_grad_() for tensor in (query, key.clone(), value.clone()))
    try:
        results = [
            (output, *torch.autograd.grad(output.square().sum(), (q, k, v)))
            for output in (attend(q, k, v, rows) for attend in (attend_varlen, attend_by_row))
        ]
    except (ImportError, RuntimeError, TypeError, ValueError):
        return False
    worst = max((a - b).abs().max().item() for a, b in zip(*results, strict=True))
    return worst < 0.1


@cache
def _varlen() -> tuple[Callable[..., Any], dict[str, object]]:
    """The kernel and how this version of torch spells "causal" and "grouped heads"."""
    from inspect import signature

    from torch.nn.attention.varlen import varlen_attn

    known = signature(varlen_attn).parameters
    options: dict[str, object] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return varlen_attn, options


def _as_batch(tensor: torch.Tensor, group: int = 1) -> torch.Tensor:
    """[tokens, heads, dim] to [1, heads * group, tokens, dim]."""
    tensor = tensor.transpose(0, 1)[None]
    return tensor.repeat_interleave(group, dim=1) if group > 1 else tensor
