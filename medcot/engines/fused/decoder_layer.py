"""Computes a decoder layer of a Llama-like model with LoRA; its backward pass is written by hand.

Frozen weights need no gradient, and those of adapters are thin, so the backward pass is four
matmuls with the weights and little else. What it needs of the forward pass is saved or, for layers
that do not fit into memory, recomputed from the layer's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medcot.engines.fused.lora_linear import LoraLinear
from medcot.engines.fused.ops import Backend
from medcot.engines.fused.packing import PackedRows
from medcot.engines.fused.varlen_attention import AttentionBackward


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of a pass are: their layout and RoPE tables, the same for all layers."""

    rows: PackedRows
    cos: torch.Tensor
    """[tokens, head_dim]"""
    sin: torch.Tensor
    """[tokens, head_dim]"""


@dataclass(slots=True)
class SavedActivations:
    """What a layer's backward pass needs of its forward pass, in the order of computation.

    ``*_rstd`` are 1/RMS of the norms' inputs, float32 [tokens]; ``*_low_rank`` the low-rank
    activations of a :class:`.lora_linear.LoraLinear`.
    """

    input_rstd: torch.Tensor
    qkv_low_rank: torch.Tensor
    qkv_before_norm: torch.Tensor | None
    """Queries, keys and values where heads are normalized: [tokens, all heads * head_dim]"""
    attention_output: torch.Tensor
    """[tokens, heads, head_dim]"""
    attention_backward: AttentionBackward | None
    o_low_rank: torch.Tensor
    residual: torch.Tensor
    """The residual stream after attention: [tokens, width]"""
    residual_rstd: torch.Tensor
    gate_up_low_rank: torch.Tensor
    gate_up: torch.Tensor
    """[tokens, 2 * intermediate]"""
    down_low_rank: torch.Tensor | None = None
    """None until :meth:`DecoderLayer.forward_down` has run."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms of queries and keys over each head (Qwen3)."""

    weight: torch.Tensor
    """Of each query and key head: [heads + kv heads, head_dim]"""
    eps: float


class DecoderLayer:
    """One decoder layer, made of the parts of transformers' and peft's ``module``."""

    def __init__(self, module: Any, backend: Backend) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.backend = backend
        self.head_dim = attention.head_dim
        self.input_norm = module.input_layernorm
        self.post_attention_norm = module.post_attention_layernorm
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = LoraLinear(projections, backend, fold_lora=True)
        # Attention allocates its output; copying it into a wider buffer would cost what folding
        # saves.
        self.o = LoraLinear([attention.o_proj], backend, fold_lora=False)
        self.gate_up = LoraLinear([mlp.gate_proj, mlp.up_proj], backend, fold_lora=True)
        self.down = LoraLinear([mlp.down_proj], backend, fold_lora=True)
        self.heads = [width // self.head_dim for width in self.qkv.out_features]
        self.head_norms = _join_head_norms(attention, self.heads, backend.dtype)
        self.window = find_window(attention)

    @property
    def linears(self) -> tuple[LoraLinear, ...]:
        """The layer's linear layers, in the order of computation."""
        return self.qkv, self.o, self.gate_up, self.down

    def forward_to_gate_up(
        self, hidden: torch.Tensor, positions: Positions, *, for_backward: bool
    ) -> SavedActivations:
        """Compute the layer up to the gate and up projections.

        Args:
            hidden: The layer's input, [tokens, width].
            positions: Where the tokens are.
            for_backward: Whether attention saves what its backward pass needs.
        """
        ops = self.backend.ops
        buffer, normed = self.qkv.allocate_input(len(hidden))
        norm = self.input_norm
        input_rstd = ops.rms_norm(hidden, norm.weight, norm.variance_epsilon, normed)
        qkv, qkv_low_rank = self.qkv.forward(buffer)
        query, key, value = self._rotate(qkv, positions)
        attention_output, attention_backward = self.backend.attention(
            query, key, value, positions.rows, window=self.window, for_backward=for_backward
        )
        update, o_low_rank = self.o.forward(attention_output.flatten(1))
        buffer, normed = self.gate_up.allocate_input(len(hidden))
        norm = self.post_attention_norm
        residual, residual_rstd = ops.add_rms_norm(
            hidden, update, norm.weight, norm.variance_epsilon, normed
        )
        gate_up, gate_up_low_rank = self.gate_up.forward(buffer)
        return SavedActivations(
            input_rstd=input_rstd,
            qkv_low_rank=qkv_low_rank,
            qkv_before_norm=None if self.head_norms is None else qkv,
            attention_output=attention_output,
            attention_backward=attention_backward,
            o_low_rank=o_low_rank,
            residual=residual,
            residual_rstd=residual_rstd,
            gate_up_low_rank=gate_up_low_rank,
            gate_up=gate_up,
        )

    def forward_down(self, saved: SavedActivations) -> torch.Tensor:
        """Return the layer's output [tokens, width] from :meth:`forward_to_gate_up`'s result."""
        buffer, activation = self.down.allocate_input(len(saved.residual))
        self.backend.ops.swiglu(saved.gate_up, activation)
        update, saved.down_low_rank = self.down.forward(buffer)
        return update.add_(saved.residual)

    def backward(
        self,
        gradient: torch.Tensor,
        hidden: torch.Tensor,
        saved: SavedActivations,
        positions: Positions,
        *,
        is_first: bool,
    ) -> torch.Tensor | None:
        """Accumulate the adapters' gradients and return that of the layer's input.

        Args:
            gradient: Gradient of the layer's output, [tokens, width].
            hidden: The layer's input, [tokens, width].
            saved: Activations of the forward pass, computed ``for_backward``.
            positions: Where the tokens are.
            is_first: Whether nothing before this layer is trained: the result is None then.
        """
        ops = self.backend.ops
        to_residual = self._feed_forward_backward(gradient, saved)
        to_attention, d_low_rank = self.o.backward_input(to_residual)
        self.o.accumulate_gradients(
            saved.attention_output.flatten(1), saved.o_low_rank, to_residual, d_low_rank
        )
        assert saved.attention_backward is not None
        to_heads = saved.attention_backward(to_attention.view_as(saved.attention_output))
        to_qkv = ops.qkv_rope_backward(*to_heads, positions.cos, positions.sin, positions.rows)
        del to_attention, to_heads
        if self.head_norms is not None:
            assert saved.qkv_before_norm is not None
            norms = self.head_norms
            ops.head_norm_backward_(to_qkv, saved.qkv_before_norm, norms.weight, norms.eps)
        weight = self.input_norm.weight
        normed = torch.empty_like(hidden)
        ops.recompute_rms_norm(hidden, weight, saved.input_rstd, normed)
        to_hidden = None
        if is_first:
            d_low_rank = self.qkv.backward_low_rank(to_qkv)
        else:
            to_normed, d_low_rank = self.qkv.backward_input(to_qkv)
            to_hidden = ops.rms_norm_backward(
                to_normed, hidden, weight, saved.input_rstd, to_residual
            )
        self.qkv.accumulate_gradients(normed, saved.qkv_low_rank, to_qkv, d_low_rank)
        return to_hidden

    def _rotate(
        self, qkv: torch.Tensor, positions: Positions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values [tokens, heads of each, head_dim] for attention.

        Without norms of heads they are views of ``qkv``, rotated in place.
        """
        ops, cos, sin = self.backend.ops, positions.cos, positions.sin
        query, key, value = qkv.unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=1)
        if self.head_norms is None:
            ops.apply_rope_(qkv, cos, sin, sum(self.heads[:2]), self.head_dim)
            return query, key, value
        rotated = ops.norm_rope(qkv, self.head_norms.weight, self.head_norms.eps, cos, sin)
        query, key = rotated.unflatten(-1, (-1, self.head_dim)).split(self.heads[:2], dim=1)
        return query, key, value

    def _feed_forward_backward(
        self, gradient: torch.Tensor, saved: SavedActivations
    ) -> torch.Tensor:
        """Return the gradient of the residual stream before the feed-forward network."""
        ops = self.backend.ops
        to_activation, d_low_rank = self.down.backward_input(gradient)
        to_gate_up, activation = ops.swiglu_backward(to_activation, saved.gate_up)
        low_rank = saved.down_low_rank
        if low_rank is None:  # A recomputed layer stops before the down projection.
            low_rank = self.down.project(activation)
        self.down.accumulate_gradients(activation, low_rank, gradient, d_low_rank)
        del activation, to_activation, d_low_rank
        to_normed, d_low_rank = self.gate_up.backward_input(to_gate_up)
        weight = self.post_attention_norm.weight
        normed = torch.empty_like(saved.residual)
        ops.recompute_rms_norm(saved.residual, weight, saved.residual_rstd, normed)
        self.gate_up.accumulate_gradients(normed, saved.gate_up_low_rank, to_gate_up, d_low_rank)
        return ops.rms_norm_backward(
            to_normed, saved.residual, weight, saved.residual_rstd, gradient
        )


def _join_head_norms(attention: Any, heads: Sequence[int], dtype: torch.dtype) -> HeadNorms | None:
    norm = getattr(attention, "q_norm", None)
    if norm is None:
        return None
    weights = norm.weight.expand(heads[0], -1), attention.k_norm.weight.expand(heads[1], -1)
    return HeadNorms(torch.cat(weights).detach().to(dtype), norm.variance_epsilon)


def find_window(attention: Any) -> int | None:
    """Return how many tokens, itself included, a token sees; None for all before it."""
    if attention.config.model_type == "mistral":
        return attention.config.sliding_window
    return getattr(attention, "sliding_window", None)
