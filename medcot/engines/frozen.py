"""Frozen linear layers that read the same input, as one, with their LoRA adapters beside them.

Three thin products (query, key, value) cost more than one wide one, and three adapters read
their input three times. The weights stay where transformers keeps them: the modules' own
parameters become views of the joined matrix, so generation and saving notice nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ADAPTER = "default"


class Group:
    """``modules`` are peft LoRA layers of equal input width, without dropout.

    ``parameters`` are their A and B in turn (float32 masters); ``load_adapters`` refreshes the
    copies that the products use.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype, scratch: Scratch) -> None:
        self.dtype, self.scratch = dtype, scratch
        self.bases = [module.get_base_layer() for module in modules]
        self.parameters: list[torch.nn.Parameter] = []
        for module in modules:
            self.parameters += [module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight]
        self.scaling = float(modules[0].scaling[ADAPTER])
        self.widths = [base.out_features for base in self.bases]
        self.rank = self.parameters[0].shape[0]
        device = self.parameters[0].device
        count, width = len(modules), self.bases[0].in_features
        self.down = torch.zeros(count * self.rank, width, dtype=dtype, device=device)
        self.up = torch.zeros(sum(self.widths), count * self.rank, dtype=dtype, device=device)
        self.weight_in_place = _join_weights(self.bases)
        self.bias = _join_biases(self.bases, self.widths, dtype)

    def load_adapters(self) -> None:
        """Copy the masters; alpha/rank goes into A."""
        with torch.no_grad():
            for copy, master in zip(self._copies(), self.parameters, strict=True):
                copy.copy_(master)
            if self.scaling != 1.0:
                self.down.mul_(self.scaling)

    def weight(self) -> torch.Tensor:
        """[output, input] in the dtype of the arithmetic; de-quantised into shared scratch."""
        if self.weight_in_place is not None:
            return self.weight_in_place
        return self.scratch.dequantize(self.bases, self.widths)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [tokens, sum of widths], and the adapters' inner states for the backward pass."""
        inner = x @ self.down.T
        y = x @ self.weight().T
        if self.bias is not None:
            y += self.bias
        return y.addmm_(inner, self.up.T), inner

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """The adapters' inner states alone."""
        return x @ self.down.T

    def input_gradient(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the input and of the inner states."""
        d_inner = dy @ self.up
        return (dy @ self.weight()).addmm_(d_inner, self.down), d_inner

    def adapter_gradients(
        self, x: torch.Tensor, inner: torch.Tensor, dy: torch.Tensor, d_inner: torch.Tensor
    ) -> list[torch.Tensor]:
        """Gradients of A and B in turn, in float32."""
        down = (d_inner.T @ x).float()
        if self.scaling != 1.0:
            down *= self.scaling
        up = dy.T @ inner
        gradients: list[torch.Tensor] = []
        for a, b in zip(down.split(self.rank), self._blocks(up), strict=True):
            gradients += [a.contiguous(), b.float().contiguous()]
        return gradients

    def _copies(self) -> list[torch.Tensor]:
        pairs = zip(self.down.split(self.rank), self._blocks(self.up), strict=True)
        return [copy for pair in pairs for copy in pair]

    def _blocks(self, up: torch.Tensor) -> list[torch.Tensor]:
        """Each module's own part of ``up``: the blocks on its diagonal."""
        rows = up.split(self.widths)
        return [
            row[:, index * self.rank : (index + 1) * self.rank] for index, row in enumerate(rows)
        ]


class Scratch:
    """One buffer that every group's weights are de-quantised into, one group at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._buffer: torch.Tensor | None = None

    def dequantize(self, bases: Sequence[Any], widths: Sequence[int]) -> torch.Tensor:
        from bitsandbytes.functional import (  # pyright: ignore[reportMissingImports]
            dequantize_4bit,
        )

        width = bases[0].in_features
        size = sum(widths) * width
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=self.dtype, device=bases[0].weight.device)
        joined = self._buffer[:size].view(sum(widths), width)
        for base, part in zip(bases, joined.split(list(widths)), strict=True):
            if part.is_cuda:
                dequantize_4bit(base.weight.data, base.weight.quant_state, out=part)
            else:
                part.copy_(dequantize_4bit(base.weight.data, base.weight.quant_state))
        return joined


def is_quantized(base: Any) -> bool:
    """Whether a linear layer holds 4-bit weights of bitsandbytes."""
    return type(base).__name__ == "Linear4bit"


def _join_weights(bases: Sequence[Any]) -> torch.Tensor | None:
    """One matrix of which each module's weight becomes a view; None where they are quantised."""
    if any(is_quantized(base) for base in bases):
        return None
    if len(bases) == 1:
        return bases[0].weight.data
    joined = torch.cat([base.weight.data for base in bases])
    for base, part in zip(bases, joined.split([base.out_features for base in bases]), strict=True):
        base.weight.data = part
    return joined


def _join_biases(
    bases: Sequence[Any], widths: Sequence[int], dtype: torch.dtype
) -> torch.Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    return torch.cat(
        [
            base.bias.data.to(dtype)
            if base.bias is not None
            else base.weight.new_zeros(width, dtype=dtype)
            for base, width in zip(bases, widths, strict=True)
        ]
    )
