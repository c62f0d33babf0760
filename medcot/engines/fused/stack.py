"""The fused training pass over all layers: packed rows in, the summed loss out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from medcot.engines.fused import reference_ops
from medcot.engines.fused.cross_entropy import head_loss
from medcot.engines.fused.decoder_layer import Kept, Layer, Packed
from medcot.engines.fused.flat_params import Adapters
from medcot.engines.fused.fp8 import fp8_works
from medcot.engines.fused.nf4 import Scratch
from medcot.engines.fused.ops import choose_functions
from medcot.engines.fused.packing import PackedRows, pack
from medcot.engines.fused.varlen_attention import choose_attention


@contextmanager
def fused_forward(model: Any, recomputed_layers: int, fp8: bool = False) -> Iterator[Stack]:
    """Within, calling the peft ``model`` with a batch of :class:`PackedCollator` gives the sum of
    the losses of its labelled tokens, differentiable by the adapters.

    The first ``recomputed_layers`` keep their input alone and are computed again on the way back.
    With ``fp8`` the frozen weights' products are computed in 8-bit floats, from copies beside the
    weights.
    """
    stack = Stack(model, recomputed_layers, fp8)

    # No bound method: accelerate would bind what is beneath it to the model.
    def forward(**batch: Any) -> torch.Tensor:
        return stack.total_loss(**batch)

    model.forward = forward
    try:
        yield stack
    finally:
        stack.close()
        # accelerate may have wrapped it meanwhile; what lies beneath is the class's own.
        model.__dict__.pop("forward", None)
        model.__dict__.pop("_original_forward", None)


class Stack:
    """The layers of a peft model, ready for packed training."""

    def __init__(self, model: Any, recomputed_layers: int, fp8: bool = False) -> None:
        causal = model.get_base_model()
        backbone = causal.model
        self.embed, self.rotary, self.norm = (
            backbone.embed_tokens, backbone.rotary_emb, backbone.norm,
        )  # fmt: skip
        self.head = causal.get_output_embeddings().weight
        dtype, device = self.head.dtype, self.head.device
        self.recomputed_layers = recomputed_layers
        head_dim = backbone.layers[0].self_attn.head_dim
        attend, scratch = choose_attention(device, dtype, head_dim), Scratch(dtype)
        if fp8 and not fp8_works(self.head, choose_functions(device)):
            warnings.warn("8-bit products fail here: training goes on in 16 bits", stacklevel=3)
            fp8 = False
        self.layers = [Layer(module, attend, dtype, scratch, fp8) for module in backbone.layers]
        self.adapters = Adapters([group for layer in self.layers for group in layer.groups])
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        if not fast_functions_agree(self.layers[0], self.rotary):
            warnings.warn("Triton's kernels fail here: training goes on without them", stacklevel=2)
            for layer in self.layers:
                layer.use(reference_ops)

    def close(self) -> None:
        """Give the adapters back and let go of all copies of weights.

        However long the trainer that knows this stack may live: what answers next needs the memory.
        """
        self.adapters.release()
        self.layers = []

    def total_loss(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        rows: PackedRows,
        label_positions: torch.Tensor,
        targets: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """Summed loss of ``targets`` [labelled], each after its place in ``label_positions``."""
        for_backward = torch.is_grad_enabled()
        self.adapters.open(for_backward)
        with torch.autocast(input_ids.device.type, enabled=False):
            hidden = self.embed(input_ids[0])
            cos, sin = self.rotary(hidden[None], position_ids)
            packed = Packed(rows, cos[0], sin[0])
            return TotalLoss.apply(
                self.anchor, hidden, self, packed, label_positions, targets, for_backward
            )


class TotalLoss(torch.autograd.Function):
    """All layers and the loss as autograd sees them: one step there, one step back.

    What it differentiates by are the adapters, whose gradients it adds up itself; the ``anchor``
    only makes autograd call the way back.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        _anchor: torch.Tensor,
        hidden: torch.Tensor,
        stack: Stack,
        packed: Packed,
        positions: torch.Tensor,
        targets: torch.Tensor,
        for_backward: bool,
    ) -> torch.Tensor:
        passed: list[tuple[torch.Tensor, Kept | None]] = []
        for index, layer in enumerate(stack.layers):
            keep = for_backward and index >= stack.recomputed_layers
            hidden = _go_through(layer, hidden, packed, keep, passed if for_backward else None)
        chosen = hidden.index_select(0, positions)
        does = stack.layers[0].does
        total, slope = head_loss(chosen, stack.norm, stack.head, targets, does, for_backward)
        ctx.stack, ctx.packed, ctx.passed = stack, packed, passed
        ctx.positions, ctx.slope = positions, slope
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        stack, packed, passed = ctx.stack, ctx.packed, ctx.passed
        scale = stack.adapters.groups[0].loss_scale
        scaled = (ctx.slope.float() * (gradient * scale)).to(ctx.slope.dtype)
        to_hidden = scaled.new_zeros(len(passed[-1][0]), scaled.shape[1])
        to_hidden.index_copy_(0, ctx.positions, scaled)
        ctx.slope = None
        for layer in reversed(stack.layers):
            hidden, kept = passed.pop()
            if kept is None:
                kept = layer.run(hidden, packed, for_backward=True)
            to_hidden = layer.backward(to_hidden, hidden, kept, packed, first=not passed)
        return (None,) * 7


def _go_through(
    layer: Layer,
    hidden: torch.Tensor,
    packed: Packed,
    keep: bool,
    passed: list[tuple[torch.Tensor, Kept | None]] | None,
) -> torch.Tensor:
    """The layer's output; what is not kept is gone before the next layer needs memory."""
    kept = layer.run(hidden, packed, for_backward=keep)
    if passed is not None:
        passed.append((hidden, kept if keep else None))
    return layer.finish(kept)


def fast_functions_agree(layer: Layer, rotary: Any) -> bool:
    """Whether ``layer`` with its own functions does what it does with the plain ones.

    Triton compiles for GPUs that this project never saw. A few tokens there and back tell, by the
    very kernels that the training will use.
    """
    if layer.does is reference_ops:
        return True
    weight = layer.norm_in.weight
    chance = torch.Generator().manual_seed(0)
    rows = pack((5, 6), shared=3).to(weight.device)
    hidden = torch.randn(8, len(weight), generator=chance).to(weight)
    positions = torch.tensor([[*range(5), *range(3, 6)]], device=weight.device)
    cos, sin = rotary(hidden[None], positions)
    fast, results = layer.does, []
    try:
        with torch.no_grad():
            for does in (fast, reference_ops):
                layer.use(does)
                kept = layer.run(hidden, packed := Packed(rows, cos[0], sin[0]), for_backward=True)
                output = layer.finish(kept)
                results.append((output, layer.backward(hidden, hidden, kept, packed, False)))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever a compiler raises, the plain functions work
        return False
    finally:
        layer.use(fast)
    return all(
        (one - other).norm() <= 0.05 * other.norm() for one, other in zip(*results, strict=True)
    )
