"""Causal attention over packed rows: each row attends to itself alone.

:func:`choose_attention` picks PyTorch's variable-length FlashAttention (compute capability 8.0 and
later) or, elsewhere (T4, Mac, CPU), one call of ``scaled_dot_product_attention`` per row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from medcot.engines.fallbacks import report_fallback
from medcot.engines.fused.packing import PackedRows, pack
from medcot.engines.private_apis import flash_attention_backward, flash_attention_forward

logger = logging.getLogger(__name__)

AttentionBackward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Maps the gradient of attention's output to those of the query [tokens, heads, dim] and of the
whole rows' keys and values [keys, kv heads, dim]."""


class Attention(Protocol):
    """Causal attention over packed rows."""

    __name__: str

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: PackedRows,
        *,
        window: int | None = None,
        for_backward: bool,
    ) -> tuple[torch.Tensor, AttentionBackward | None]:
        """Return the output [tokens, heads, dim] and, if ``for_backward``, its backward pass.

        ``query`` is [tokens, heads, dim]; ``key`` and ``value`` are [tokens, kv heads, dim]. With
        a ``window`` a token sees that many tokens of its row at most, itself included.
        """
        ...


def attend_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    window: int | None = None,
    for_backward: bool,
) -> tuple[torch.Tensor, AttentionBackward | None]:
    """Attend with one call per row: works on every device, computes no score between rows."""
    query, key, value = leaves = tuple(
        tensor.detach().requires_grad_(for_backward)
        for tensor in (query, rows.expand(key), rows.expand(value))
    )
    with torch.set_grad_enabled(for_backward):
        output = _attend_each_row(query, key, value, rows, window)

    def backward(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        to_query, to_key, to_value = torch.autograd.grad(output, leaves, gradient)
        return to_query, to_key, to_value

    return output.detach(), backward if for_backward else None


def _attend_each_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    window: int | None,
) -> torch.Tensor:
    queries_per_key = query.shape[1] // key.shape[1]
    outputs: list[torch.Tensor] = []
    for index, (q, k, v) in enumerate(
        zip(
            query.split(rows.query_lengths),
            key.split(rows.key_lengths),
            value.split(rows.key_lengths),
            strict=True,
        )
    ):
        prefix = rows.shared if index else 0
        if prefix:
            # is_causal needs as many queries as keys; the extra queries cost less than a mask.
            q = torch.cat([query[:prefix], q])
        mask = None if window is None or len(k) <= window else _window_mask(len(k), window, k)
        output = scaled_dot_product_attention(
            _as_batch(q),
            _as_batch(k, queries_per_key),
            _as_batch(v, queries_per_key),
            attn_mask=mask,
            is_causal=mask is None,
        )
        outputs.append(output[0].transpose(0, 1)[prefix:])
    return torch.cat(outputs)


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    *,
    window: int | None = None,
    for_backward: bool,
) -> tuple[torch.Tensor, AttentionBackward | None]:
    """Attend to all rows in one call of PyTorch's variable-length FlashAttention.

    Its causal mask aligns the last query with the last key, as the shared prefix's keys require.
    """
    layout = (rows.cu_seqlens_q, rows.cu_seqlens_k, rows.max_seqlen_q, rows.max_seqlen_k)
    # Rows no longer than the window need no other kernel than causal attention has.
    seen: dict[str, int] = {}
    if window is not None and rows.max_seqlen_k > window:
        seen = {"window_size_left": window - 1, "window_size_right": 0}
    output, logsumexp, rng_state, unused, _ = flash_attention_forward(
        query, rows.expand(key), rows.expand(value), *layout,
        dropout_p=0.0, is_causal=True, return_debug_mask=False, **seen,
    )  # fmt: skip

    def backward(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Expanded keys and values are computed again: saving them would store them twice.
        return flash_attention_backward(
            gradient, query, rows.expand(key), rows.expand(value), output, logsumexp, *layout,
            dropout_p=0.0, is_causal=True, rng_state=rng_state, unused=unused, **seen,
        )  # fmt: skip

    return output, backward if for_backward else None


def choose_attention(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, windows: bool = False
) -> Attention:
    """Return the fastest attention that gives the right result on ``device``.

    ``windows`` tells that some layers have sliding windows, which are then tried too. On a GPU
    without FlashAttention this reports the fallback ``no-varlen-attention``.
    """
    if device.type != "cuda":
        return attend_by_row
    fault = _find_varlen_fault(device, dtype, head_dim, windows=windows)
    if fault is None:
        return attend_varlen
    report_fallback(
        "no-varlen-attention",
        f"Variable-length FlashAttention is not used ({fault}): attention takes one call per row "
        "instead of one per micro-batch, and keeps expanded keys and values for the backward pass "
        "(3 x heads x head size more numbers per token and layer).",
    )
    return attend_by_row


def _find_varlen_fault(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, windows: bool
) -> str | None:
    if dtype not in (torch.bfloat16, torch.float16):
        return f"no kernel for {str(dtype).removeprefix('torch.')}"
    if head_dim > 256:
        return f"head size {head_dim} is above 256"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return _try_varlen(device, dtype, head_dim, windows=windows)


@cache
def _try_varlen(
    device: torch.device, dtype: torch.dtype, head_dim: int, *, windows: bool
) -> str | None:
    """Compare with :func:`attend_by_row` on three short rows; return what is wrong, or None.

    Raises:
        torch.OutOfMemoryError: Memory ran out, which says nothing about the kernels.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows = pack((9, 15, 12), shared=4).to(device)
    tokens = sum(rows.query_lengths)
    query, gradient = torch.randn(
        2, tokens, 4, head_dim, device=device, dtype=dtype, generator=generator
    )
    key, value = torch.randn(
        2, tokens, 2, head_dim, device=device, dtype=dtype, generator=generator
    )
    results: list[tuple[torch.Tensor, ...]] = []
    try:
        for attend in (attend_varlen, attend_by_row):
            tried: list[torch.Tensor] = []
            for window in (None, 6) if windows else (None,):
                output, backward = attend(query, key, value, rows, window=window, for_backward=True)
                assert backward is not None
                tried += [output, *backward(gradient)]
            results.append(tuple(tried))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        logger.info("Variable-length FlashAttention failed in its trial", exc_info=True)
        return type(error).__name__
    worst = max((a - b).abs().max().item() for a, b in zip(*results, strict=True))
    return None if worst < 0.1 else "wrong results"


def _window_mask(tokens: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """Return which key (column) each query (row) sees: [tokens, tokens]."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=like.device)
    return seen.tril_().triu_(1 - window)


def _as_batch(tensor: torch.Tensor, repeats: int = 1) -> torch.Tensor:
    """Reshape [tokens, heads, dim] to [1, heads * repeats, tokens, dim]."""
    tensor = tensor.transpose(0, 1)[None]
    return tensor.repeat_interleave(repeats, dim=1) if repeats > 1 else tensor
