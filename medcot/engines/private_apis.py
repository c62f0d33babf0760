"""PyTorch's private functions that this project calls, and the versions they were checked with.

PyTorch may change or drop them in any release. All calls pass through this module, and a test
compares each function with :data:`PRIVATE_APIS`, so that an upgrade that breaks one fails in the
test suite.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

OLDEST_CHECKED, NEWEST_CHECKED = (2, 10), (2, 13)
"""First and last minor release of PyTorch that all functions below were run with: 2.11 on H100
GPUs, 2.10 and 2.13 on CPUs, where their signatures were compared."""


@dataclass(frozen=True, slots=True)
class PrivateApi:
    """An operator's signature as far as this project relies on it."""

    operator: str
    """Qualified name in ``torch.ops``, with the overload."""
    positional: tuple[str, ...]
    """Names of the first parameters, in order: they are passed by position."""
    keywords: tuple[str, ...] = ()
    """Names of parameters that are passed by keyword."""
    returns: int = 1
    """Number of results."""


PRIVATE_APIS = (
    PrivateApi(
        "aten._flash_attention_forward.default",
        ("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
        ("dropout_p", "is_causal", "return_debug_mask", "scale", "seqused_k",
         "window_size_left", "window_size_right"),
        returns=5,
    ),
    PrivateApi(
        "aten._flash_attention_backward.default",
        ("grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k",
         "max_q", "max_k"),
        ("dropout_p", "is_causal", "rng_state", "unused", "window_size_left", "window_size_right"),
        returns=3,
    ),
    PrivateApi(
        "aten._scaled_mm.default",
        ("self", "mat2"),
        ("scale_a", "scale_b", "out_dtype", "use_fast_accum"),
    ),
    PrivateApi("aten._foreach_copy_.default", ("self", "src"), returns=0),
    PrivateApi("aten._foreach_mul_.Scalar", ("self", "scalar"), returns=0),
)  # fmt: skip


def flash_attention_forward(*arguments: Any, **options: Any) -> Any:
    """Run variable-length FlashAttention: ``aten._flash_attention_forward``.

    Returns (output, logsumexp, rng_state, unused, debug_mask). ``torch.nn.attention.varlen`` is the
    public way; its Python layers take longer than the kernels do on a few rows.
    """
    return torch.ops.aten._flash_attention_forward(*arguments, **options)


def flash_attention_backward(*arguments: Any, **options: Any) -> Any:
    """Differentiate variable-length FlashAttention: ``aten._flash_attention_backward``.

    Returns the gradients of query, key and value.
    """
    return torch.ops.aten._flash_attention_backward(*arguments, **options)


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Multiply 8-bit floats: ``torch._scaled_mm`` with fast accumulation.

    Args:
        a: [rows, inner] in ``float8_e4m3fn``.
        b: [inner, columns] in ``float8_e4m3fn``, column-major.
        scale_a: float32 [rows, 1], multiplies the rows of ``a``.
        scale_b: float32 [1, columns], multiplies the columns of ``b``.
        out_dtype: Dtype of the product [rows, columns].
    """
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=out_dtype, use_fast_accum=True
    )


def foreach_copy_(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy many tensors with few launches: ``torch._foreach_copy_``."""
    torch._foreach_copy_(targets, sources)


def foreach_mul_(tensors: list[torch.Tensor], factor: float) -> None:
    """Multiply many tensors in place with few launches: ``torch._foreach_mul_``."""
    torch._foreach_mul_(tensors, factor)
