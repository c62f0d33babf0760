"""One decoder layer of a Llama-like model with LoRA, its backward pass written out.

Frozen weights need no gradient and adapters a thin one, so the backward pass is four products
back through the weights and little else. What it needs of the forward pass is kept, or, for layers
that memory cannot afford, computed again from the layer's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from medcot.engines.fused.lora_linear import Group
from medcot.engines.fused.nf4 import Scratch
from medcot.engines.fused.ops import choose_functions
from medcot.engines.fused.packing import PackedRows
from medcot.engines.fused.varlen_attention import Attention, Backward


@dataclass(frozen=True, slots=True)
class Packed:
    """What all layers of one forward pass share."""

    rows: PackedRows
    cos: torch.Tensor  # [tokens, head_dim]
    sin: torch.Tensor  # [tokens, head_dim]


@dataclass(slots=True)
class Kept:
    """What the backward pass needs of the forward pass, in the order it came about."""

    scale_in: torch.Tensor  # [tokens]
    inner_qkv: torch.Tensor  # [tokens, 3 * rank]
    mixed: torch.Tensor  # [tokens, heads, head_dim]
    back_through_attention: Backward | None
    inner_o: torch.Tensor
    middle: torch.Tensor  # [tokens, width]
    scale_middle: torch.Tensor
    inner_gate_up: torch.Tensor
    gate_up: torch.Tensor  # [tokens, 2 * intermediate]
    inner_down: torch.Tensor | None = None


class Layer:
    """The parts of one decoder layer, taken from transformers' and peft's modules."""

    def __init__(
        self, module: Any, attend: Attention, dtype: torch.dtype, scratch: Scratch, fp8: bool
    ) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.attend = attend
        self.head_dim = attention.head_dim
        self.norm_in = module.input_layernorm
        self.norm_middle = module.post_attention_layernorm
        self.does = does = choose_functions(self.norm_in.weight.device)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = Group(projections, dtype, scratch, does, beside=True, fp8=fp8)
        # What attention gives lies in a tensor of its own: copying it would cost what is saved.
        self.o = Group([attention.o_proj], dtype, scratch, does, beside=False, fp8=fp8)
        feed_forward = [mlp.gate_proj, mlp.up_proj]
        self.gate_up = Group(feed_forward, dtype, scratch, does, beside=True, fp8=fp8)
        self.down = Group([mlp.down_proj], dtype, scratch, does, beside=True, fp8=fp8)
        self.heads = [width // self.head_dim for width in self.qkv.widths]

    def use(self, does: Any) -> None:
        """Compute by the functions of ``does`` from now on."""
        self.does = does
        for group in self.groups:
            group.does = does

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    def run(self, hidden: torch.Tensor, packed: Packed, for_backward: bool) -> Kept:
        """Everything up to the feed-forward network's gate and up projections."""
        buffer, normed = self.qkv.input_buffer(len(hidden))
        scale_in = self.does.rms(hidden, self.norm_in.weight, _eps(self.norm_in), normed)
        qkv, inner_qkv = self.qkv.forward(buffer)
        turned = self.heads[0] + self.heads[1]
        self.does.rope_(qkv, packed.cos, packed.sin, turned, self.head_dim)
        query, key, value = qkv.unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=1)
        mixed, back = self.attend(query, key, value, packed.rows, for_backward)
        update, inner_o = self.o.forward(mixed.flatten(1))
        buffer, normed = self.gate_up.input_buffer(len(hidden))
        middle, scale_middle = self.does.add_rms(
            hidden, update, self.norm_middle.weight, _eps(self.norm_middle), normed
        )
        gate_up, inner_gate_up = self.gate_up.forward(buffer)
        return Kept(
            scale_in, inner_qkv, mixed, back, inner_o, middle, scale_middle, inner_gate_up, gate_up
        )  # fmt: skip

    def finish(self, kept: Kept) -> torch.Tensor:
        """The layer's output from what :meth:`run` gave."""
        buffer, active = self.down.input_buffer(len(kept.middle))
        self.does.swiglu(kept.gate_up, active)
        update, kept.inner_down = self.down.forward(buffer)
        return update.add_(kept.middle)

    def backward(
        self, gradient: torch.Tensor, hidden: torch.Tensor, kept: Kept, packed: Packed, first: bool
    ) -> torch.Tensor | None:
        """Gradient of the layer's input (none for the ``first`` layer); its adapters' are added to
        what they have."""
        to_middle = self._feed_forward_backward(gradient, kept)
        to_mixed, d_inner = self.o.input_gradient(to_middle)
        self.o.add_gradients(kept.mixed.flatten(1), kept.inner_o, to_middle, d_inner)
        assert kept.back_through_attention is not None
        to_heads = kept.back_through_attention(to_mixed.view_as(kept.mixed))
        to_qkv = self.does.join_rope_backward(*to_heads, packed.cos, packed.sin, packed.rows)
        del to_mixed, to_heads
        normed = torch.empty_like(hidden)
        self.does.renorm(hidden, self.norm_in.weight, kept.scale_in, normed)
        to_hidden = None
        if first:
            d_inner = self.qkv.inner_gradient(to_qkv)
        else:
            to_normed, d_inner = self.qkv.input_gradient(to_qkv)
            to_hidden = self.does.rms_backward(
                to_normed, hidden, self.norm_in.weight, kept.scale_in, to_middle
            )
        self.qkv.add_gradients(normed, kept.inner_qkv, to_qkv, d_inner)
        return to_hidden

    def _feed_forward_backward(self, gradient: torch.Tensor, kept: Kept) -> torch.Tensor:
        to_active, d_inner = self.down.input_gradient(gradient)
        to_gate_up, active = self.does.swiglu_backward(to_active, kept.gate_up)
        inner = kept.inner_down if kept.inner_down is not None else self.down.inner(active)
        self.down.add_gradients(active, inner, gradient, d_inner)
        del active, to_active, d_inner
        to_normed, d_inner = self.gate_up.input_gradient(to_gate_up)
        weight = self.norm_middle.weight
        normed = torch.empty_like(kept.middle)
        self.does.renorm(kept.middle, weight, kept.scale_middle, normed)
        self.gate_up.add_gradients(normed, kept.inner_gate_up, to_gate_up, d_inner)
        return self.does.rms_backward(to_normed, kept.middle, weight, kept.scale_middle, gradient)


def _eps(norm: Any) -> float:
    return norm.variance_epsilon
