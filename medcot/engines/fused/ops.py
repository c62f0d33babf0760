"""Which functions a layer computes with between its matrix products: Triton's or the plain ones."""

from __future__ import annotations

from typing import Any

import torch

from medcot.engines.fused import reference_ops


def choose_functions(device: torch.device) -> Any:
    """The module of these functions that is the fastest on ``device``, if it works there."""
    if device.type == "cuda":
        try:
            from medcot.engines.fused import triton_ops
        except ImportError:
            pass
        else:
            return triton_ops
    return reference_ops
