"""Runs the fused training pass over all layers: a packed batch in, its summed loss out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from medcot.engines.fallbacks import report_fallback
from medcot.engines.fused import reference_ops
from medcot.engines.fused.cross_entropy import compute_head_loss
from medcot.engines.fused.decoder_layer import (
    DecoderLayer,
    Positions,
    SavedActivations,
    find_window,
)
from medcot.engines.fused.flat_params import FlatParameters
from medcot.engines.fused.fp8 import find_fp8_fault
from medcot.engines.fused.loss_scale import LossScale
from medcot.engines.fused.nf4 import DequantBuffer
from medcot.engines.fused.ops import Backend, choose_ops, report_ops_fallback
from medcot.engines.fused.packing import PackedRows, pack
from medcot.engines.fused.varlen_attention import choose_attention

logger = logging.getLogger(__name__)

CALLER = 4
"""Stack level of the caller of :func:`fused_forward` for a warning in :class:`DecoderStack`: its
constructor, the context manager's function and ``__enter__`` are between."""


@contextmanager
def fused_forward(
    model: Any, recomputed_layers: int, *, fp8: bool = False
) -> Iterator[DecoderStack]:
    """Replace the forward pass of a peft ``model`` by the fused one, within the context.

    The model then takes a batch of :class:`.packing.PackedCollator` and returns the summed loss of
    its labelled tokens, differentiable by the adapter.

    Args:
        model: peft model around a Llama-like one.
        recomputed_layers: How many of the first layers save their input only, and are recomputed in
            the backward pass.
        fp8: Multiply frozen weights in 8-bit floats, from copies of the weights. Where that fails
            the pass warns and computes in 16 bits.
    """
    stack = DecoderStack(model, recomputed_layers, fp8=fp8)

    # A function, not the bound method: accelerate would bind its __func__ to the model.
    def forward(**batch: Any) -> torch.Tensor:
        return stack.compute_loss(**batch)

    model.forward = forward
    try:
        yield stack
    finally:
        stack.close()
        # accelerate may have wrapped the replacement; the class's own method is underneath.
        model.__dict__.pop("forward", None)
        model.__dict__.pop("_original_forward", None)


class DecoderStack:
    """All layers of a peft model, prepared for packed training."""

    def __init__(self, model: Any, recomputed_layers: int, *, fp8: bool = False) -> None:
        causal = model.get_base_model()
        backbone = causal.model
        self.embed, self.rotary, self.norm = (
            backbone.embed_tokens, backbone.rotary_emb, backbone.norm,
        )  # fmt: skip
        self.head = causal.get_output_embeddings().weight
        self.recomputed_layers = recomputed_layers
        attention = [layer.self_attn for layer in backbone.layers]
        windows = any(find_window(one) is not None for one in attention)
        self.backend = _choose_backend(self.head, attention[0].head_dim, windows=windows, fp8=fp8)
        self.layers = [DecoderLayer(module, self.backend) for module in backbone.layers]
        self.adapters = FlatParameters(
            [linear for layer in self.layers for linear in layer.linears], self.backend.loss_scale
        )
        self.anchor = torch.zeros((), device=self.head.device, requires_grad=True)
        fault = find_ops_fault(self.layers[0], self.rotary)
        if fault is not None:
            warnings.warn(
                "Triton's kernels fail here: training continues without them", stacklevel=CALLER
            )
            report_ops_fallback("triton-failed", f"Triton's kernels fail here ({fault})")
            self.backend.ops = reference_ops

    def close(self) -> None:
        """Release the adapters and all copies of weights.

        The trainer may keep this stack alive, and generation needs the memory.
        """
        self.adapters.release()
        self.layers = []

    def compute_loss(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        rows: PackedRows,
        label_positions: torch.Tensor,
        targets: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """Return the summed loss of a packed batch (see :class:`.packing.PackedCollator`)."""
        for_backward = torch.is_grad_enabled()
        self.adapters.begin_pass(for_backward=for_backward)
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self.embed(input_ids[0])
            cos, sin = self.rotary(hidden[None], position_ids)
            positions = Positions(rows, cos[0], sin[0])
            inputs = LossInputs(positions, label_positions, targets, for_backward)
            return SummedLoss.apply(self.anchor, hidden, self, inputs)


def _choose_backend(head: torch.Tensor, head_dim: int, *, windows: bool, fp8: bool) -> Backend:
    """Choose what to compute with for the dtype and device of the output head."""
    attention = choose_attention(head.device, head.dtype, head_dim, windows=windows)
    ops = choose_ops(head.device)
    fault = find_fp8_fault(head, ops) if fp8 else None
    if fault is not None:
        warnings.warn(
            "8-bit matmuls fail here: training continues in 16 bits", stacklevel=CALLER + 1
        )
        report_fallback(
            "no-fp8",
            f"8-bit matmuls fail here ({fault}): frozen weights are multiplied in 16 bits, at "
            "17,319 instead of 23,336 tokens/s for an 8B model on an H100.",
        )
    return Backend(
        dtype=head.dtype,
        ops=ops,
        attention=attention,
        dequant_buffer=DequantBuffer(head.dtype),
        fp8=fp8 and fault is None,
        loss_scale=LossScale(head.device) if head.dtype == torch.float16 else None,
    )


@dataclass(frozen=True, slots=True)
class LossInputs:
    """A packed batch after the embedding, as :class:`SummedLoss` takes it."""

    positions: Positions
    label_positions: torch.Tensor
    """[labelled]"""
    targets: torch.Tensor
    """[labelled]"""
    for_backward: bool
    """Whether a backward pass follows."""


class SummedLoss(torch.autograd.Function):
    """Presents all layers and the loss to autograd as one operation.

    Its backward pass accumulates the adapters' gradients itself. Autograd only sees the ``anchor``,
    a scalar that requires a gradient and so makes autograd call the backward pass.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        _anchor: torch.Tensor,
        hidden: torch.Tensor,
        stack: DecoderStack,
        inputs: LossInputs,
    ) -> torch.Tensor:
        """Return the summed loss from the embeddings ``hidden`` [tokens, width]."""
        saved: list[tuple[torch.Tensor, SavedActivations | None]] = []
        for index, layer in enumerate(stack.layers):
            layer_input = hidden
            keep = inputs.for_backward and index >= stack.recomputed_layers
            hidden, activations = _run_layer(layer, hidden, inputs.positions, keep=keep)
            if inputs.for_backward:
                saved.append((layer_input, activations))
            del layer_input, activations
        labelled = hidden.index_select(0, inputs.label_positions)
        total, to_labelled = compute_head_loss(
            labelled, stack.norm, stack.head, inputs.targets, stack.backend.ops,
            for_backward=inputs.for_backward,
        )  # fmt: skip
        ctx.stack, ctx.inputs, ctx.saved, ctx.to_labelled = stack, inputs, saved, to_labelled
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Accumulate the adapters' gradients, scaled by the loss's ``gradient``."""
        stack, positions, saved = ctx.stack, ctx.inputs.positions, ctx.saved
        if stack.backend.loss_scale is not None:
            gradient = gradient * stack.backend.loss_scale.value
        scaled = (ctx.to_labelled.float() * gradient).to(ctx.to_labelled.dtype)
        to_hidden = scaled.new_zeros(len(saved[-1][0]), scaled.shape[1])
        to_hidden.index_copy_(0, ctx.inputs.label_positions, scaled)
        ctx.to_labelled = None
        for layer in reversed(stack.layers):
            hidden, activations = saved.pop()
            if activations is None:
                activations = layer.forward_to_gate_up(hidden, positions, for_backward=True)
            to_hidden = layer.backward(
                to_hidden, hidden, activations, positions, is_first=not saved
            )
        return (None,) * 4


def _run_layer(
    layer: DecoderLayer, hidden: torch.Tensor, positions: Positions, *, keep: bool
) -> tuple[torch.Tensor, SavedActivations | None]:
    """Return the layer's output and, with ``keep``, its activations.

    Activations that are not kept are freed on return, before the next layer needs memory.
    """
    activations = layer.forward_to_gate_up(hidden, positions, for_backward=keep)
    output = layer.forward_down(activations)
    return output, activations if keep else None


def find_ops_fault(layer: DecoderLayer, rotary: Any) -> str | None:
    """Say why the backend's operations cannot be used for ``layer``, or return None.

    Triton compiles for GPUs that this project was never run on. A few tokens pass through the layer
    forward and backward, with the kernels that training will use and with the reference.

    Raises:
        torch.OutOfMemoryError: Memory ran out, which says nothing about the kernels.
    """
    backend, ops = layer.backend, layer.backend.ops
    if ops is reference_ops:
        return None
    weight = layer.input_norm.weight
    generator = torch.Generator().manual_seed(0)
    rows = pack((5, 6), shared=3).to(weight.device)
    hidden = torch.randn(8, len(weight), generator=generator).to(weight)
    position_ids = torch.tensor([[*range(5), *range(3, 6)]], device=weight.device)
    cos, sin = rotary(hidden[None], position_ids)
    positions = Positions(rows, cos[0], sin[0])
    try:
        results = _forward_and_backward(layer, hidden, positions)
        backend.ops = reference_ops
        expected = _forward_and_backward(layer, hidden, positions)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Compilers and drivers raise anything.
        logger.info("Triton's kernels failed in their trial", exc_info=True)
        return type(error).__name__
    finally:
        backend.ops = ops
    for result, reference in zip(results, expected, strict=True):
        if not (result - reference).norm() <= 0.05 * reference.norm():
            return "wrong results"
    return None


def _forward_and_backward(
    layer: DecoderLayer, hidden: torch.Tensor, positions: Positions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's output, and its input's gradient for an output gradient of ``hidden``."""
    with torch.no_grad():
        activations = layer.forward_to_gate_up(hidden, positions, for_backward=True)
        output = layer.forward_down(activations)
        to_hidden = layer.backward(hidden, hidden, activations, positions, is_first=False)
    assert to_hidden is not None
    return output, to_hidden
