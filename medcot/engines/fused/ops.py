"""What layers compute with: the operations between their matmuls, attention, dtype and buffers.

:class:`Ops` is implemented by :mod:`.reference_ops` (plain PyTorch) and :mod:`.triton_ops`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from medcot.engines.fallbacks import report_fallback
from medcot.engines.fused import reference_ops
from medcot.engines.fused.loss_scale import LossScale
from medcot.engines.fused.nf4 import DequantBuffer
from medcot.engines.fused.packing import PackedRows
from medcot.engines.fused.varlen_attention import Attention


class Ops(Protocol):
    """Operations of a decoder layer other than matmuls and attention, forward and backward.

    :mod:`.reference_ops` documents each of them.
    """

    def rms_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        """Write the RMS norm to ``out``; return 1/RMS."""
        ...

    def add_rms_norm(
        self,
        hidden: torch.Tensor,
        update: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the RMS norm of a sum to ``out``; return the sum and its 1/RMS."""
        ...

    def recompute_rms_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Write the RMS norm to ``out``, given 1/RMS."""
        ...

    def rms_norm_backward(
        self,
        gradient: torch.Tensor,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        rstd: torch.Tensor,
        residual_gradient: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the gradient of the norm's input, plus the residual's."""
        ...

    def swiglu(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``silu(gate) * up`` to ``out``."""
        ...

    def swiglu_backward(
        self, gradient: torch.Tensor, gate_up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of ``gate_up``, and SwiGLU's output."""
        ...

    def apply_rope_(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        rotated_heads: int,
        head_dim: int,
    ) -> None:
        """Rotate the first heads of ``qkv`` in place."""
        ...

    def norm_rope(
        self,
        qkv: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Return the first heads of ``qkv``, each normalized and rotated."""
        ...

    def head_norm_backward_(
        self, gradient: torch.Tensor, qkv: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> None:
        """Turn the gradient of normalized heads into that of ``qkv``, in place."""
        ...

    def qkv_rope_backward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        rows: PackedRows,
    ) -> torch.Tensor:
        """Return the gradient of the joined QKV projection."""
        ...

    def quantize_rows(self, x: torch.Tensor, padded: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize rows to e4m3; return them and their scales."""
        ...

    def cross_entropy_(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return losses; overwrite ``logits`` with their gradient."""
        ...


@dataclass(slots=True)
class Backend:
    """What all layers of one model share. Setting ``ops`` changes it for all of them."""

    dtype: torch.dtype
    """Dtype of activations and of 16-bit weights."""
    ops: Ops
    attention: Attention
    dequant_buffer: DequantBuffer
    fp8: bool
    """Whether frozen weights are multiplied in 8-bit floats."""
    loss_scale: LossScale | None
    """The factor of the loss in fp16; None where the dtype needs none."""


def choose_ops(device: torch.device) -> Ops:
    """Return the fastest operations that can be imported for ``device``.

    On a GPU without Triton this reports the fallback ``no-triton``.
    """
    if device.type != "cuda":
        return reference_ops
    try:
        from medcot.engines.fused import triton_ops
    except ImportError as error:
        report_ops_fallback("no-triton", f"Triton cannot be imported ({type(error).__name__})")
        return reference_ops
    return triton_ops


def report_ops_fallback(code: str, cause: str) -> None:
    """Report that plain PyTorch replaces the Triton kernels, and what that costs."""
    report_fallback(
        code,
        f"{cause}: norms, RoPE, SwiGLU and cross-entropy run in plain PyTorch. On an H100 with an "
        "8B model torch.compile took 55 ms of a 365 ms pass for them, Triton 32 ms; plain PyTorch "
        "is slower than both.",
    )
