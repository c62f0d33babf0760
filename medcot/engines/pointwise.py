"""What a decoder layer does between its matrix products, forward and backward.

Every function reads and writes each tensor once when it is compiled, which is what makes it
fast; on a device without Triton they run as they stand. Arithmetic is float32 inside, results
have the dtype of the input, as in transformers' own layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def rms(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    """RMS norm of [tokens, width]: the normed states, and 1/rms in float32 [tokens, 1]."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(hidden.dtype), scale


def add_rms(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, ...]:
    """``hidden + update``, its norm and its 1/rms."""
    total = hidden + update
    return (total, *rms(total, weight, eps))


def renorm(hidden: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The normed states again, from the ``scale`` that was kept."""
    return weight * (hidden.float() * scale).to(hidden.dtype)


def rms_backward(
    gradient: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    passing: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the norm's input, plus what is ``passing`` by on the residual stream."""
    normed = hidden.float() * scale
    slope = gradient.float() * weight.float()
    inward = scale * (slope - normed * (slope * normed).mean(-1, keepdim=True))
    return (passing.float() + inward).to(hidden.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of [tokens, 2 * width]."""
    gate, up = gate_up.chunk(2, dim=-1)
    wide = gate.float()
    return ((wide * torch.sigmoid(wide)).to(gate.dtype).float() * up.float()).to(gate.dtype)


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
    return both, (silu.to(gate_up.dtype).float() * up).to(gate_up.dtype)


def rope(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, head_dim: int
) -> torch.Tensor:
    """Turn the first ``turned`` heads of [tokens, heads * head_dim] by their positions."""
    return _turn(qkv, cos.float(), sin.float(), turned, head_dim)


def rope_backward(
    gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, head_dim: int
) -> torch.Tensor:
    """Turn gradients back: the inverse of a rotation is its transpose."""
    return _turn(gradient, cos.float(), -sin.float(), turned, head_dim)


def _turn(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int, head_dim: int
) -> torch.Tensor:
    border = turned * head_dim
    before = heads[:, :border].float().unflatten(-1, (turned, head_dim))
    first, second = before.chunk(2, dim=-1)
    half = torch.cat([-second, first], dim=-1)
    after = before * cos[:, None] + half * sin[:, None]
    return torch.cat([after.flatten(1).to(heads.dtype), heads[:, border:]], dim=-1)


def join_rope_backward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """Gradients of queries, keys and values [tokens, heads, dim], turned back and side by side."""
    turned, head_dim = queries.shape[1] + keys.shape[1], queries.shape[2]
    joined = torch.cat([queries, keys, values], dim=1).flatten(1)
    return rope_backward(joined, cos, sin, turned, head_dim)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each of [tokens], and the gradient of their sum by ``logits`` [tokens, words]."""
    wide = logits.float()
    log_total = torch.logsumexp(wide, dim=-1, keepdim=True)
    chosen = wide.gather(1, targets[:, None])
    words = torch.arange(logits.shape[1], device=logits.device)
    slope = torch.exp(wide - log_total) - (words[None] == targets[:, None]).float()
    return (log_total - chosen).squeeze(1), slope.to(logits.dtype)


@cache
def compiled(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """``function`` compiled once for any number of tokens, where that works; else as it stands."""
    if device_type != "cuda" or not _compiles():
        return function
    return torch.compile(function, dynamic=True)


@cache
def _compiles() -> bool:
    """Whether Triton and a C compiler are here: a Windows or a slim container may lack either."""
    try:
        probe = torch.compile(swiglu, dynamic=True)
        probe(torch.zeros(4, 8, device="cuda"))
    except Exception:  # noqa: BLE001 - whatever the compiler raises, the plain functions work
        return False
    return True
