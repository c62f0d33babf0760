"""Frozen linear layers that read the same input, as one, with their LoRA adapters beside them.

Three thin products (query, key, value) cost more than one wide one, and three adapters read
their input three times. The weights stay where transformers keeps them: the modules' own
parameters become views of the joined matrix, so generation and saving notice nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from medcot.engines.fused.fp8 import Fp8Weight
from medcot.engines.fused.nf4 import FourBitWeight, Scratch, is_quantized

ADAPTER = "default"
LOSS_SCALE = 4096.0
"""What losses are multiplied with on the way back in fp16, whose smallest number is 6e-8. A step's
loss is a mean over thousands of tokens, so that each one's share is of the order of 1 again; sums
over tokens are divided by it in float32. Nothing here comes near the largest, 65504."""


class Group:
    """``modules`` are peft LoRA layers of equal input width, without dropout.

    ``parameters`` are all their A, then all their B; :class:`.flat_params.Adapters`
    refreshes the ``copies`` that products use and says where ``gradients`` are added up. With
    ``beside``, 16-bit weights carry the adapters' B in extra columns and the input their inner
    states, so that one product does both: adding them up afterwards would read and write every
    output once more, and round it before. With ``fp8`` the frozen weights' products are those of
    8-bit floats, by ``does`` (:mod:`pointwise` or its Triton twin); the modules' own weights stay
    as they are.
    """

    def __init__(
        self,
        modules: Sequence[Any],
        dtype: torch.dtype,
        scratch: Scratch,
        does: Any,
        beside: bool,
        fp8: bool,
    ) -> None:
        self.dtype, self.does = dtype, does
        self.bases = [module.get_base_layer() for module in modules]
        self.parameters: list[torch.nn.Parameter] = [
            *(module.lora_A[ADAPTER].weight for module in modules),
            *(module.lora_B[ADAPTER].weight for module in modules),
        ]
        self.scaling = float(modules[0].scaling[ADAPTER])
        self.loss_scale = LOSS_SCALE if dtype == torch.float16 else 1.0
        self.widths = [base.out_features for base in self.bases]
        self.width = self.bases[0].in_features
        self.rank = self.parameters[0].shape[0]
        self.inner_width = _padded(len(modules) * self.rank)
        device = self.parameters[0].device
        self.down = torch.zeros(self.inner_width, self.width, dtype=dtype, device=device)
        self.quantized = any(is_quantized(base) for base in self.bases)
        self.four_bit = FourBitWeight(self.bases, scratch) if self.quantized else None
        self.fp8 = Fp8Weight([base.weight for base in self.bases], does) if fp8 else None
        self.beside = beside and not self.quantized and not fp8
        self.joined = self._join_weights() if not self.quantized and not fp8 else None
        if self.joined is not None and self.beside:
            self.up = self.joined[:, self.width :]
        else:
            self.up = torch.zeros(sum(self.widths), self.inner_width, dtype=dtype, device=device)
        self.bias = _join_biases(self.bases, self.widths, dtype)
        # Where the products read all A and each B, as ``gradients`` has theirs.
        self.copies = [self.down[: len(modules) * self.rank], *self._blocks(self.up)]
        self.gradients: list[torch.Tensor] | None = None

    def input_buffer(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`forward` reads, and the part of it that the input is to be written to."""
        width = self.width + (self.inner_width if self.beside else 0)
        buffer = torch.empty(tokens, width, dtype=self.dtype, device=self.down.device)
        return buffer, buffer[:, : self.width]

    def forward(self, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [tokens, sum of widths], and the adapters' inner states for the backward pass."""
        if self.beside:
            inner = buffer[:, self.width :]
            torch.mm(buffer[:, : self.width], self.down.T, out=inner)
            y = buffer @ self._weight().T
            # A copy, because the view would keep the whole buffer.
            inner = inner.contiguous()
        else:
            inner = buffer @ self.down.T
            y = self._product(buffer).addmm_(inner, self.up.T)
        return (y if self.bias is None else y.add_(self.bias)), inner

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """The adapters' inner states alone."""
        return x @ self.down.T

    def input_gradient(self, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of the input and of the inner states."""
        if self.beside:
            dx, d_inner = (dy @ self._weight()).split([self.width, self.inner_width], dim=1)
        else:
            dx, d_inner = self._product_back(dy), dy @ self.up
        return dx.addmm_(d_inner, self.down), d_inner

    def inner_gradient(self, dy: torch.Tensor) -> torch.Tensor:
        """Gradient of the inner states alone."""
        return dy @ self.up

    def add_gradients(
        self, x: torch.Tensor, inner: torch.Tensor, dy: torch.Tensor, d_inner: torch.Tensor
    ) -> None:
        """Add the gradients of A and B to ``gradients``; ``dy`` is too large by ``loss_scale``."""
        if self.gradients is None:
            return
        to_down, *to_ups = self.gradients
        down, up = d_inner.T @ x, dy.T @ inner
        to_down.add_(down[: len(to_down)], alpha=self.scaling / self.loss_scale)
        for to_up, block in zip(to_ups, self._blocks(up), strict=True):
            to_up.add_(block, alpha=1 / self.loss_scale)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` times the frozen weights alone."""
        return self.fp8.forward(x, self.does) if self.fp8 else x @ self._weight().T

    def _product_back(self, dy: torch.Tensor) -> torch.Tensor:
        """The frozen weights' part of the input's gradient."""
        return self.fp8.backward(dy, self.does) if self.fp8 else dy @ self._weight()

    def _weight(self) -> torch.Tensor:
        """[output, input] and, where they stand beside it, the adapters' columns."""
        if self.joined is not None:
            return self.joined
        assert self.four_bit is not None
        return self.four_bit.unpack()

    def _join_weights(self) -> torch.Tensor:
        """One matrix of which each module's weight becomes a view."""
        if len(self.bases) == 1 and not self.beside:
            return self.bases[0].weight.data
        columns = self.width + (self.inner_width if self.beside else 0)
        joined = torch.zeros(
            sum(self.widths), columns, dtype=self.dtype, device=self.bases[0].weight.device
        )
        for base, rows in zip(self.bases, joined.split(self.widths), strict=True):
            part = rows[:, : self.width]
            part.copy_(base.weight.data)
            base.weight.data = part
        return joined

    def _blocks(self, up: torch.Tensor) -> list[torch.Tensor]:
        """Each module's own B in ``up``: the blocks on its diagonal."""
        rows = up.split(self.widths)
        return [
            row[:, index * self.rank : (index + 1) * self.rank] for index, row in enumerate(rows)
        ]


def _padded(rank: int) -> int:
    """Columns for ``rank``: rows of a product's operands begin at multiples of 16 bytes."""
    return -(-rank // 8) * 8


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
