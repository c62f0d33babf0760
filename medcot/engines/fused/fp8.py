"""Multiplies frozen weights in 8-bit floats (e4m3): twice the rate of 16-bit matmuls, and more.

Each row of the input and each output's weights have a scale of their own. Trained parameters stay
in 16 and 32 bits. The rounding error is far below that of 4-bit weights. Needs compute capability
8.9 (RTX 4090, L4, H100); on a CPU the results are right and slow.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from medcot.engines.fused.ops import Ops
from medcot.engines.private_apis import scaled_mm

logger = logging.getLogger(__name__)

ROW_MULTIPLE = 16
"""The matmul's input is padded to a multiple of this many rows, as the hardware requires."""


class Fp8Weight:
    """Holds frozen weights [outputs, inputs] in 8 bits twice: as they are, and transposed.

    Scales apply to whole rows of what a matmul sums over, and the backward pass sums over the
    weights' other dimension.

    Args:
        weights: Weights of equal input width, concatenated along the outputs.
        ops: Operations to quantize with.
    """

    def __init__(self, weights: Sequence[torch.Tensor], ops: Ops) -> None:
        joined = torch.cat([weight.detach() for weight in weights])
        self._weight = ops.quantize_rows(joined, len(joined))
        transposed = joined.T.contiguous()
        self._transposed = ops.quantize_rows(transposed, len(transposed))

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        """Multiply ``x`` [tokens, inputs]: [tokens, outputs] in the dtype of ``x``."""
        return _multiply(x, self._weight, ops)

    def backward(self, gradient: torch.Tensor, ops: Ops) -> torch.Tensor:
        """Return the input's gradient from that of the output, [tokens, outputs]."""
        return _multiply(gradient, self._transposed, ops)


def _multiply(x: torch.Tensor, weight: tuple[torch.Tensor, torch.Tensor], ops: Ops) -> torch.Tensor:
    padded = -(-len(x) // ROW_MULTIPLE) * ROW_MULTIPLE
    rows, scales = ops.quantize_rows(x, padded)
    product = scaled_mm(rows, weight[0].T, scales[:, None], weight[1][None], x.dtype)
    return product[: len(x)]


def find_fp8_fault(weight: torch.Tensor, ops: Ops) -> str | None:
    """Say why 8-bit matmuls cannot be used for ``weight`` on its device, or return None.

    Compares a few rows, forward and backward, with matmuls in the weights' dtype.

    Raises:
        torch.OutOfMemoryError: Memory ran out, which says nothing about the matmuls.
    """
    side = min(64, weight.shape[1])
    sample = weight.detach()[:side, :side]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, side, generator=generator).to(sample)
    try:
        quantized = Fp8Weight([sample], ops)
        pairs = (
            (quantized.forward(x, ops), x @ sample.T),
            (quantized.backward(x, ops), x @ sample),
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Drivers and compilers raise anything.
        logger.info("8-bit matmuls failed in their trial", exc_info=True)
        return type(error).__name__
    if all((result - exact).norm() <= 0.1 * exact.norm() for result, exact in pairs):
        return None
    return "wrong results"
