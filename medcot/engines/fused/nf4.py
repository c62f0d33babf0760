"""Dequantizes frozen weights that bitsandbytes keeps in 4 bits, when a matmul needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medcot.engines.fallbacks import report_fallback


class DequantBuffer:
    """One buffer into which the weights of every layer are dequantized, one after another."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffer: torch.Tensor | None = None

    def view(self, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Return the buffer as a matrix of ``shape``. Overwrites what earlier views hold."""
        size = shape[0] * shape[1]
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=self.dtype, device=device)
        return self._buffer[:size].view(shape)


class Nf4Weight:
    """Presents linear layers of equal input width, of which some have 4-bit weights, as one matrix.

    On CUDA the packed weights are concatenated, the layers' own become views of the result, and
    the block scales, which are quantized themselves, are dequantized once. One launch per pass then
    replaces dozens.

    Args:
        bases: bitsandbytes' ``Linear4bit`` layers; in repositories that quantize some layers only,
            16-bit ones too.
        buffer: Receives the dequantized weights.
    """

    def __init__(self, bases: Sequence[Any], buffer: DequantBuffer) -> None:
        self.bases, self.buffer = bases, buffer
        self.out_features = [base.out_features for base in bases]
        self.shape = (sum(self.out_features), bases[0].in_features)
        self._joined = self._join() if self._can_join() else None
        if self._joined is None and bases[0].weight.is_cuda:
            report_fallback(
                "nf4-by-layer",
                "4-bit weights of layers that share an input cannot be dequantized in one launch "
                "(other bitsandbytes or unlike layers): about 2,000 more launches per step of an "
                "8B model, 9,067 instead of under 7,000.",
            )

    def dequantize(self) -> torch.Tensor:
        """Return the weights [outputs, inputs]; valid until another layer's are dequantized."""
        device = self.bases[0].weight.device
        weight = self.buffer.view(self.shape, device)
        if self._joined is not None:
            packed, scales, state = self._joined
            torch.ops.bitsandbytes.dequantize_4bit.out(
                packed, scales, state.blocksize, state.quant_type, self.shape, weight.dtype,
                out=weight,
            )  # fmt: skip
            return weight
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            dequantize_4bit,
        )

        for base, part in zip(self.bases, weight.split(self.out_features), strict=True):
            data = base.weight.data
            part.copy_(dequantize_4bit(data, base.weight.quant_state) if is_4bit(base) else data)
        return weight

    def _can_join(self) -> bool:
        """Whether all layers are quantized alike, in whole blocks, for the buffer's dtype."""
        if not all(is_4bit(base) for base in self.bases):
            return False
        states = [base.weight.quant_state for base in self.bases]
        first = states[0]
        operators = torch.ops.bitsandbytes
        return (
            hasattr(operators, "dequantize_4bit")
            and hasattr(operators.dequantize_4bit, "out")
            and all(base.weight.is_cuda for base in self.bases)
            and all(
                (state.blocksize, state.quant_type, state.dtype)
                == (first.blocksize, first.quant_type, self.buffer.dtype)
                for state in states
            )
            and all(width * self.shape[1] % first.blocksize == 0 for width in self.out_features)
        )

    def _join(self) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return packed weights, block scales in float32, and the common quantization state."""
        weights = [base.weight for base in self.bases]
        packed = torch.cat([weight.data.reshape(-1) for weight in weights])
        sizes = [weight.numel() for weight in weights]
        for weight, part in zip(weights, packed.split(sizes), strict=True):
            weight.data = part.view(weight.shape)
        scales = torch.cat([_block_scales(weight.quant_state) for weight in weights])
        return packed, scales, weights[0].quant_state


def _block_scales(state: Any) -> torch.Tensor:
    """Return the absolute maximum of each block, in float32."""
    if not state.nested:
        return state.absmax.float().reshape(-1)
    from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
        dequantize_blockwise,
    )

    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float().reshape(-1)


def is_4bit(base: Any) -> bool:
    """Whether a linear layer holds 4-bit weights of bitsandbytes."""
    return type(base).__name__ == "Linear4bit"
