"""Frozen weights that bitsandbytes keeps in 4 bits, unpacked where a product needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Scratch:
    """One buffer that every group's weights are unpacked into, one group at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffer: torch.Tensor | None = None

    def room(self, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
        """The buffer as a matrix of ``shape``; what was in it is lost."""
        size = shape[0] * shape[1]
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=self.dtype, device=device)
        return self._buffer[:size].view(shape)


class FourBitWeight:
    """The weights of ``bases`` (layers of bitsandbytes with equal input width) as one matrix.

    On CUDA their packed numbers are laid end to end, the layers' own become views of them, and the
    scales of their blocks, which are packed themselves, are unpacked once: what took dozens of
    launches per layer and pass is one.
    """

    def __init__(self, bases: Sequence[Any], scratch: Scratch) -> None:
        self.bases, self.scratch = bases, scratch
        self.widths = [base.out_features for base in bases]
        self.shape = (sum(self.widths), bases[0].in_features)
        self._together = self._lay_together() if self._alike() else None

    def unpack(self) -> torch.Tensor:
        """[outputs, inputs], there until the next group's are unpacked."""
        device = self.bases[0].weight.device
        joined = self.scratch.room(self.shape, device)
        if self._together is not None:
            packed, scales, state = self._together
            torch.ops.bitsandbytes.dequantize_4bit.out(
                packed, scales, state.blocksize, state.quant_type, self.shape, joined.dtype,
                out=joined,
            )  # fmt: skip
            return joined
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            dequantize_4bit,
        )

        for base, part in zip(self.bases, joined.split(self.widths), strict=True):
            part.copy_(dequantize_4bit(base.weight.data, base.weight.quant_state))
        return joined

    def _alike(self) -> bool:
        """Whether the layers are packed in one way, in whole blocks, for the dtype at hand."""
        states = [base.weight.quant_state for base in self.bases]
        first = states[0]
        kernels = torch.ops.bitsandbytes
        return (
            hasattr(kernels, "dequantize_4bit")
            and hasattr(kernels.dequantize_4bit, "out")
            and all(base.weight.is_cuda for base in self.bases)
            and all(
                (one.blocksize, one.quant_type, one.dtype)
                == (first.blocksize, first.quant_type, self.scratch.dtype)
                for one in states
            )
            and all(width * self.shape[1] % first.blocksize == 0 for width in self.widths)
        )

    def _lay_together(self) -> tuple[torch.Tensor, torch.Tensor, Any]:
        weights = [base.weight for base in self.bases]
        packed = torch.cat([weight.data.reshape(-1) for weight in weights])
        sizes = [weight.numel() for weight in weights]
        for weight, part in zip(weights, packed.split(sizes), strict=True):
            weight.data = part.view(weight.shape)
        scales = torch.cat([_block_scales(weight.quant_state) for weight in weights])
        return packed, scales, weights[0].quant_state


def _block_scales(state: Any) -> torch.Tensor:
    """The largest number of each block, in float32."""
    if not state.nested:
        return state.absmax.float().reshape(-1)
    from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
        dequantize_blockwise,
    )

    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float().reshape(-1)


def is_quantized(base: Any) -> bool:
    """Whether a linear layer holds 4-bit weights of bitsandbytes."""
    return type(base).__name__ == "Linear4bit"
