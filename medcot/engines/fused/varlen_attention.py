"""Causal attention over rows that lie end to end: each row sees itself alone.

What it costs is what the rows cost, by the best kernel that the machine has: PyTorch's own
variable-length FlashAttention (compute capability 8.0 and later), elsewhere (T4, Mac, CPU) one
call of scaled_dot_product_attention per row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention

from medcot.engines.fused.packing import PackedRows, pack

Backward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Gradient of attention's output to those of the query [tokens, heads, dim], and of key and value
as the whole rows have them [keys, kv heads, dim]."""

Attention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, PackedRows, bool],
    tuple[torch.Tensor, Backward | None],
]
"""(query [tokens, heads, dim], key and value [tokens, kv heads, dim], rows, whether a backward pass
follows) to the output [tokens, heads, dim] and its backward pass."""


def attend_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    for_backward: bool,
) -> tuple[torch.Tensor, Backward | None]:
    """One call per row: exact on every device, and no score outside a row is ever computed."""
    query, key, value = leaves = tuple(
        tensor.detach().requires_grad_(for_backward)
        for tensor in (query, rows.spread(key), rows.spread(value))
    )
    with torch.set_grad_enabled(for_backward):
        output = _each_row(query, key, value, rows)

    def backward(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        to_query, to_key, to_value = torch.autograd.grad(output, leaves, gradient)
        return to_query, to_key, to_value

    return output.detach(), backward if for_backward else None


def _each_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: PackedRows
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    outputs: list[torch.Tensor] = []
    for index, (q, k, v) in enumerate(
        zip(
            query.split(rows.query_lengths),
            key.split(rows.key_lengths),
            value.split(rows.key_lengths),
            strict=True,
        )
    ):
        before = rows.shared if index else 0
        if before:
            # The kernels know a causal mask of as many queries as keys; a few queries too many
            # cost less than a mask.
            q = torch.cat([query[:before], q])
        output = scaled_dot_product_attention(
            _as_batch(q), _as_batch(k, group), _as_batch(v, group), is_causal=True
        )
        outputs.append(output[0].transpose(0, 1)[before:])
    return torch.cat(outputs)


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: PackedRows,
    for_backward: bool,
) -> tuple[torch.Tensor, Backward | None]:
    """All rows in one call of PyTorch's variable-length FlashAttention.

    The kernels themselves, without ``torch.nn.attention.varlen``: its layers of Python take longer
    than the kernels where rows are few. Queries stand at the end of their keys, so the keys of
    shared tokens come first.
    """
    sizes = (rows.query_starts, rows.key_starts, rows.longest_query, rows.longest_key)
    output, log_sums, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
        query, rows.spread(key), rows.spread(value), *sizes, 0.0, True, False
    )

    def backward(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Keys of whole rows are put together anew: kept, they would be there twice.
        return torch.ops.aten._flash_attention_backward(
            gradient, query, rows.spread(key), rows.spread(value), output, log_sums, *sizes,
            0.0, True, random_state, unused,
        )  # fmt: skip

    return output, backward if for_backward else None


def choose_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> Attention:
    """The fastest kernel that gives the right answer here."""
    fits = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim <= 256
    if fits and torch.cuda.get_device_capability(device) >= (8, 0):
        return attend_varlen if _varlen_works(device, dtype, head_dim) else attend_by_row
    return attend_by_row


@cache
def _varlen_works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Try it forward and backward on three short rows that begin alike."""
    chance = torch.Generator(device).manual_seed(0)
    rows = pack((9, 15, 12), shared=4).to(device)
    tokens = sum(rows.query_lengths)
    query, gradient = torch.randn(
        2, tokens, 4, head_dim, device=device, dtype=dtype, generator=chance
    )
    key, value = torch.randn(2, tokens, 2, head_dim, device=device, dtype=dtype, generator=chance)
    results: list[tuple[torch.Tensor, ...]] = []
    try:
        for attend in (attend_varlen, attend_by_row):
            output, backward = attend(query, key, value, rows, True)
            assert backward is not None
            results.append((output, *backward(gradient)))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    worst = max((a - b).abs().max().item() for a, b in zip(*results, strict=True))
    return worst < 0.1


def _as_batch(tensor: torch.Tensor, group: int = 1) -> torch.Tensor:
    """[tokens, heads, dim] to [1, heads * group, tokens, dim]."""
    tensor = tensor.transpose(0, 1)[None]
    return tensor.repeat_interleave(group, dim=1) if group > 1 else tensor
