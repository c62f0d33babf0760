"""Computes frozen linear layers that read the same input, and their LoRA adapters, as one layer.

One wide matmul is cheaper than three narrow ones (query, key, value), and three adapters would read
their input three times. transformers' modules keep their weights: as views of the joined matrix, so
generation and saving work unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medcot.engines.fused.fp8 import Fp8Weight
from medcot.engines.fused.nf4 import Nf4Weight, is_4bit
from medcot.engines.fused.ops import Backend

ADAPTER = "default"
"""peft's name of the adapter that is trained."""


class LoraLinear:
    """One or more peft LoRA layers of equal input width and no dropout, as one linear layer.

    The output is ``x @ W.T + (x @ A.T) @ B.T + bias`` with A scaled by alpha / rank. With several
    modules A is stacked and B is block-diagonal; ``x @ A.T`` is called the low-rank activations.
    :class:`.flat_params.FlatParameters` refreshes ``compute_copies`` from the trained parameters
    and sets ``gradients``.

    Args:
        modules: peft's layers.
        backend: What to compute with. Its ``fp8`` makes a copy of the weights in 8-bit floats.
        fold_lora: Append B to the columns of 16-bit weights, and the low-rank activations to those
            of the input: one matmul then computes both terms. Adding them afterwards would read and
            write each output once more, and round it before. No effect on 4-bit and 8-bit weights.
    """

    def __init__(self, modules: Sequence[Any], backend: Backend, *, fold_lora: bool) -> None:
        self.backend = backend
        self.bases = [module.get_base_layer() for module in modules]
        self.parameters: list[torch.nn.Parameter] = [
            *(module.lora_A[ADAPTER].weight for module in modules),
            *(module.lora_B[ADAPTER].weight for module in modules),
        ]
        """All A, then all B, as the optimizer trains them (float32)."""
        self.scaling = float(modules[0].scaling[ADAPTER])
        self.out_features = [base.out_features for base in self.bases]
        self.in_features = self.bases[0].in_features
        self.rank = self.parameters[0].shape[0]
        self.low_rank_width = _align(len(modules) * self.rank)
        self.lora_a = self._zeros(self.low_rank_width, self.in_features)
        quantized = any(is_4bit(base) for base in self.bases)
        self.nf4 = Nf4Weight(self.bases, backend.dequant_buffer) if quantized else None
        self.fp8 = (
            Fp8Weight([base.weight for base in self.bases], backend.ops) if backend.fp8 else None
        )
        self.fold_lora = fold_lora and not quantized and not backend.fp8
        self.weight = self._join_weights() if not quantized and not backend.fp8 else None
        if self.weight is not None and self.fold_lora:
            self.lora_b = self.weight[:, self.in_features :]
        else:
            self.lora_b = self._zeros(sum(self.out_features), self.low_rank_width)
        self.bias = _join_biases(self.bases, self.out_features, backend.dtype)
        self.compute_copies = [
            self.lora_a[: len(modules) * self.rank], *self._diagonal_blocks(self.lora_b)
        ]  # fmt: skip
        """Views of ``lora_a`` (all A) and of ``lora_b`` (each B), in the compute dtype."""
        self.gradients: list[torch.Tensor] | None = None
        """Where the gradients of all A and of each B are accumulated, in float32."""

    def allocate_input(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Allocate the buffer that :meth:`forward` reads; return it, and its part for the input."""
        width = self.in_features + (self.low_rank_width if self.fold_lora else 0)
        buffer = torch.empty(tokens, width, dtype=self.backend.dtype, device=self.lora_a.device)
        return buffer, buffer[:, : self.in_features]

    def forward(self, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output [tokens, sum of out_features] and the low-rank activations."""
        if self.fold_lora:
            low_rank = buffer[:, self.in_features :]
            torch.mm(buffer[:, : self.in_features], self.lora_a.T, out=low_rank)
            y = buffer @ self._full_weight().T
            # A copy: the view would keep the whole buffer in memory.
            low_rank = low_rank.contiguous()
        else:
            low_rank = buffer @ self.lora_a.T
            y = self._base_forward(buffer).addmm_(low_rank, self.lora_b.T)
        return (y if self.bias is None else y.add_(self.bias)), low_rank

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the low-rank activations alone."""
        return x @ self.lora_a.T

    def backward_input(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the input and of the low-rank activations."""
        if self.fold_lora:
            widths = [self.in_features, self.low_rank_width]
            dx, d_low_rank = (dy @ self._full_weight()).split(widths, dim=1)
        else:
            dx, d_low_rank = self._base_backward(dy), dy @ self.lora_b
        return dx.addmm_(d_low_rank, self.lora_a), d_low_rank

    def backward_low_rank(self, dy: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the low-rank activations alone."""
        return dy @ self.lora_b

    def accumulate_gradients(
        self, x: torch.Tensor, low_rank: torch.Tensor, dy: torch.Tensor, d_low_rank: torch.Tensor
    ) -> None:
        """Add the gradients of A and B to ``gradients``, divided by the loss's scale.

        They are divided in float32, after the sum over tokens.
        """
        if self.gradients is None:
            return
        to_a, *to_each_b = self.gradients
        d_a, d_b = d_low_rank.T @ x, dy.T @ low_rank
        self._add(to_a, d_a[: len(to_a)], self.scaling)
        for to_b, block in zip(to_each_b, self._diagonal_blocks(d_b), strict=True):
            self._add(to_b, block, 1.0)

    def _add(self, total: torch.Tensor, gradient: torch.Tensor, factor: float) -> None:
        scale = self.backend.loss_scale
        if scale is None:
            total.add_(gradient, alpha=factor)
        else:
            total.addcmul_(gradient, scale.inverse, value=factor)

    def _base_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply ``x`` by the frozen weights alone."""
        if self.fp8:
            return self.fp8.forward(x, self.backend.ops)
        return x @ self._full_weight().T

    def _base_backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return the part of the input's gradient that passes through the frozen weights."""
        if self.fp8:
            return self.fp8.backward(dy, self.backend.ops)
        return dy @ self._full_weight()

    def _full_weight(self) -> torch.Tensor:
        """Return [outputs, inputs], with ``fold_lora`` followed by the columns of B."""
        if self.weight is not None:
            return self.weight
        assert self.nf4 is not None
        return self.nf4.dequantize()

    def _join_weights(self) -> torch.Tensor:
        """Copy the weights into one matrix and make each module's weight a view of it."""
        if len(self.bases) == 1 and not self.fold_lora:
            return self.bases[0].weight.data
        columns = self.in_features + (self.low_rank_width if self.fold_lora else 0)
        joined = torch.zeros(
            sum(self.out_features),
            columns,
            dtype=self.backend.dtype,
            device=self.bases[0].weight.device,
        )
        for base, rows in zip(self.bases, joined.split(self.out_features), strict=True):
            part = rows[:, : self.in_features]
            part.copy_(base.weight.data)
            base.weight.data = part
        return joined

    def _diagonal_blocks(self, lora_b: torch.Tensor) -> list[torch.Tensor]:
        """Return each module's own B: the blocks on the diagonal of ``lora_b``."""
        rows = lora_b.split(self.out_features)
        return [
            row[:, index * self.rank : (index + 1) * self.rank] for index, row in enumerate(rows)
        ]

    def _zeros(self, rows: int, columns: int) -> torch.Tensor:
        device = self.parameters[0].device
        return torch.zeros(rows, columns, dtype=self.backend.dtype, device=device)


def _align(width: int) -> int:
    """Round up to a multiple of 8: rows of a matmul's operands then start at 16-byte boundaries."""
    return -(-width // 8) * 8


def _join_biases(
    bases: Sequence[Any], out_features: Sequence[int], dtype: torch.dtype
) -> torch.Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    return torch.cat(
        [
            base.bias.data.to(dtype)
            if base.bias is not None
            else base.weight.new_zeros(width, dtype=dtype)
            for base, width in zip(bases, out_features, strict=True)
        ]
    )
