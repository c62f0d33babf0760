"""Products of frozen weights in 8-bit floats (e4m3): twice the rate of 16 bits, and more.

Each row of the input and each output's weights have a scale of their own, so that the largest of
them just fits; what is learnt stays in 16 and 32 bits. Rounding is far finer than that of 4-bit
weights. Needs compute capability 8.9 (RTX 4090, L4, H100); on a CPU it is right and slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ROWS_AT_A_TIME = 16
"""Rows of the input are padded to a multiple of this, as the matrix units take them."""


class Fp8Weight:
    """[outputs, inputs] in 8 bits, twice: for the way there and, turned, for the way back.

    A product scales whole rows of what it reads along, and on the way back the weights' rows are
    their columns.
    """

    def __init__(self, parts: Sequence[torch.Tensor], does: Any) -> None:
        joined = torch.cat([part.detach() for part in parts])
        self.there = does.quantize_rows(joined, len(joined))
        turned = joined.T.contiguous()
        self.back = does.quantize_rows(turned, len(turned))

    def forward(self, x: torch.Tensor, does: Any) -> torch.Tensor:
        """``x`` [tokens, inputs] times the weights: [tokens, outputs] in the dtype of ``x``."""
        return _product(x, self.there, does)

    def backward(self, dy: torch.Tensor, does: Any) -> torch.Tensor:
        """Gradient of the input from ``dy`` [tokens, outputs]."""
        return _product(dy, self.back, does)


def _product(x: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor], does: Any) -> torch.Tensor:
    padded = -(-len(x) // ROWS_AT_A_TIME) * ROWS_AT_A_TIME
    rows, scales = does.quantize_rows(x, padded)
    product = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        rows, weight[0].T, scale_a=scales[:, None], scale_b=weight[1][None], out_dtype=x.dtype,
        use_fast_accum=True,
    )  # fmt: skip
    return product[: len(x)]


def fp8_works(weight: torch.Tensor, does: Any) -> bool:
    """Whether this torch multiplies 8-bit floats here: a few rows there and back tell."""
    side = min(64, weight.shape[1])
    sample = weight.detach()[:side, :side]
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(24, side, generator=chance).to(sample)
    try:
        coarse = Fp8Weight([sample], does)
        pairs = (
            (coarse.forward(x, does), x @ sample.T),
            (coarse.backward(x, does), x @ sample),
        )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever is missing, 16 bits do as well
        return False
    return all((got - wanted).norm() <= 0.1 * wanted.norm() for got, wanted in pairs)
