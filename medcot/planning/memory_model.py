"""Predicts the peak memory of a training step, by part: the memory model.

The coefficients count the tensors that each engine saves for the backward pass. A test counts those
of ``transformers`` on a real model. Those of unsloth are fitted to the measured runs in
``measured_runs.json`` and predict them within 2 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from medcot.config.schema import EngineName
from medcot.planning.engine_traits import TRAITS, Traits
from medcot.planning.model_specs import CountedSpec, ModelSpec

Quantization = Literal["4bit", "8bit", "fp8", "none"]
Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cuda", "cpu", "mps"]

GIB = 2**30
PRECISION_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
# NF4 with double quantisation: 4 bits, 8 bits per 64 weights, 32 bits per 64 * 256.
_QUANTIZED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0 + 2 / 1024}
_OPTIMIZER_BYTES = {"adamw_torch": 8.0, "adamw_8bit": 2.0 + 8 / 256}
_ADAPTER_BYTES = 4.0
"""Bytes per parameter of adapters and gradients: float32, which fp16 training needs."""

LOGIT_TILE = (4096, 32768)
"""Tokens and vocabulary entries whose logits exist at once in TRL's fused loss (16-bit)."""
HEAD_TOKENS = 1024
"""The fused pass's ``HEAD_CHUNK_TOKENS`` (``engines.fused.cross_entropy``)."""
CPU_LOGIT_TOKENS = 256
"""The same without Triton: ``TRL_CHUNK_TOKENS`` in the same module."""

CPU_WORKSPACE_GIB = 0.85
"""Memory of the interpreter once torch and its libraries are loaded."""
FUSED_WORKSPACE_GIB = {"none": 1.35, "fp8": 1.8, "4bit": 0.45}
"""Scratch space of the fused pass on CUDA, by format of the frozen weights.

It holds workspaces of matrix products, the adapter columns of joined weights, and what the
allocator cannot fill. Fitted to the measured runs.
"""
COPIES = {"fp8": 2.0, "4bit": 4 / 64}
"""Bytes per weight that the fused pass keeps in addition to the weight itself.

For fp8 these are two 8-bit copies, one for each pass; for 4-bit weights, the 32-bit scale of each
block of 64.
"""


@dataclass(frozen=True)
class _Workspace:
    """Scratch space on CUDA in GiB, next to the largest weight where weights are dequantised.

    ``large_fixed`` on top of ``copies`` of that weight applies instead where it is more.
    """

    fixed: float
    large_fixed: float
    copies: int


_WORKSPACE: dict[str, _Workspace] = {
    "unsloth": _Workspace(0.2, 0.2, 1),
    # What passes through a layer in the backward pass grows with it: seen at 8B and at 70B.
    "transformers": _Workspace(0.4, 0.18, 3),
}


@dataclass(frozen=True)
class StepConfig:
    """One way to run a training step.

    Attributes:
        packing: The rows of a micro-batch lie end to end, without padding.
        recomputed_layers: Layers that keep only their input for the backward pass. It is none or
            all of them, unless the engine ``packs``.
        row_attention: The fused engine attends row by row, because the GPU has no kernel for rows
            of different length. It then keeps keys and values once per query head.
        shards: Processes that each keep a part of the frozen weights.
        shared_tokens: Leading tokens that all rows share; a fused pass computes them once.
        balanced_passes: Passes over which the rows of a step are distributed so that each has
            about the same number of tokens.
    """

    engine: EngineName
    device: Device
    quantization: Quantization
    precision: Precision
    micro_batch: int
    packing: bool
    recomputed_layers: int
    optimizer: str
    row_attention: bool = False
    shards: int = 1
    shared_tokens: int = 0
    balanced_passes: int = 1

    @property
    def checkpointing(self) -> bool:
        """Return whether any layer is recomputed in the backward pass."""
        return self.recomputed_layers > 0

    @property
    def traits(self) -> Traits:
        """Return the traits of the engine."""
        return TRAITS[self.engine]


@dataclass(frozen=True)
class _Saved:
    """Bytes kept for the backward pass, per token and per unit of width of one layer.

    ``per_token`` is in bytes per token and hidden unit, for what is not a layer's own.
    """

    hidden: float
    query: float
    key_value: float
    intermediate: float
    per_token: float


_SAVED = {
    ("unsloth", 2): _Saved(9, 4, 4, 4, 13.6),
    ("unsloth", 4): _Saved(18, 8, 8, 8, 27),
    ("transformers", 2): _Saved(18, 6, 4, 8, 8),
    ("transformers", 4): _Saved(16, 8, 8, 16, 16),
}


def predict_memory(step: StepConfig, spec: ModelSpec, rank: int, tokens: int) -> dict[str, float]:
    """Predict the peak memory in GiB by part for a micro-batch of ``tokens``, padding included."""
    if step.traits.packs:
        return _predict_fused(step, spec, rank, tokens)
    width = PRECISION_BYTES[step.precision]
    trainable = spec.lora_parameters(rank)
    parts = {
        "weights": kept_weight_bytes(step, spec),
        "adapters": trainable * _ADAPTER_BYTES,
        # Split, they are added up over the processes in buffers as large.
        "gradients": trainable * _ADAPTER_BYTES * (1 if step.shards == 1 else 2),
        "optimizer": trainable * _OPTIMIZER_BYTES[step.optimizer],
        "activations": spec.memory_margin * _activation_bytes(step, spec, int(width), tokens),
        "logits": spec.memory_margin * _logit_bytes(step, spec, width, tokens),
        "workspace": _workspace_bytes(step, spec, width) + gathered_bytes(step, spec),
    }
    return {name: size / GIB for name, size in parts.items()}


def _predict_fused(step: StepConfig, spec: ModelSpec, rank: int, tokens: int) -> dict[str, float]:
    width = PRECISION_BYTES[step.precision]
    trainable = spec.lora_parameters(rank)
    passing = _fused_passing_bytes(spec, width, tokens)
    head = _fused_head_bytes(spec, width, tokens)
    if step.device != "cuda":
        workspace = CPU_WORKSPACE_GIB * GIB
    else:
        largest = 2 * spec.hidden * spec.intermediate
        workspace = FUSED_WORKSPACE_GIB[step.quantization] * GIB
        workspace += largest * width if step.quantization == "4bit" else 0
    # In addition to the weights themselves, which generation uses.
    copies = COPIES.get(step.quantization, 0.0) * spec.linear_parameters
    parts = {
        "weights": weight_bytes(spec, step.quantization, width) + copies,
        # The float32 masters, and the copies that the products read.
        "adapters": trainable * (_ADAPTER_BYTES + width),
        "gradients": trainable * _ADAPTER_BYTES,
        "optimizer": trainable * _OPTIMIZER_BYTES[step.optimizer],
        "activations": _fused_activation_bytes(step, spec, rank, int(width), tokens),
        # The head comes before the first layer's backward pass: they never need memory together.
        "logits": head,
        "workspace": workspace + max(0.0, passing - head),
    }
    return {name: size / GIB for name, size in parts.items()}


def weight_bytes(spec: ModelSpec, quantization: str, width: float) -> float:
    """Return the bytes of the frozen weights; only linear layers of the blocks are quantised.

    Every other weight takes ``width`` bytes.
    """
    inside = _QUANTIZED_BYTES.get(quantization, width)
    return spec.linear_parameters * inside + width * (spec.parameters - spec.linear_parameters)


def kept_weight_bytes(step: StepConfig, spec: ModelSpec) -> float:
    """Return the bytes of one process's frozen weights: all of them or, if split, its part.

    Scales of quantised weights are not split, nor are embeddings that the head shares.
    """
    width = PRECISION_BYTES[step.precision]
    whole = weight_bytes(spec, step.quantization, width)
    if step.shards == 1:
        return whole
    kept = spec.head_parameters * width if spec.tied_embeddings else 0.0
    if step.quantization == "4bit":
        kept += spec.linear_parameters * (_QUANTIZED_BYTES["4bit"] - 0.5)
    return kept + (whole - kept) / step.shards


def gathered_bytes(step: StepConfig, spec: ModelSpec) -> float:
    """Return the bytes of weights gathered at once: those of a layer and of the one after it."""
    if step.shards == 1:
        return 0.0
    width = PRECISION_BYTES[step.precision]
    layer = weight_bytes(spec, step.quantization, width)
    layer = (layer - width * (spec.parameters - spec.linear_parameters)) / spec.layers
    # What arrives is copied into place, so the next layer is held twice for a moment.
    head = 0.0 if spec.tied_embeddings else 2 * spec.head_parameters * width
    return max(3 * layer, head)


def max_answer_rows(spec: ModelSpec, width: float, tokens: int, free_gib: float) -> int:
    """Return how many prompts to answer at once, 1 to 64: their KV cache must fit ``free_gib``.

    ``tokens`` counts the longest prompt and its answer together.
    """
    cache = 2 * spec.layers * spec.kv_heads * spec.head_dim * width * tokens
    # Growing the cache by one token copies one layer of it.
    return max(1, min(64, int(free_gib * GIB / (cache * (1 + 2 / spec.layers)))))


def longest_pass_tokens(step: StepConfig, mean_tokens: float, longest_tokens: int) -> int:
    """Return the tokens of the longest micro-batch to expect, padding included.

    n packed rows are taken to have n times the mean length, plus sqrt(n) times the excess of the
    longest row over the mean. For n > 1 that excess counts 0.85, which leaves two to three standard
    deviations; the rows of one run seldom exceed that. If the rows of a step are balanced over its
    passes, the excess of the step is divided among them.
    """
    rows = step.micro_batch
    if not step.packing:
        return rows * longest_tokens
    spread = max(0.0, longest_tokens - mean_tokens)
    certain = 1.0 if rows == 1 else 0.85
    excess = certain * math.sqrt(rows / step.balanced_passes) * spread
    packed = min(rows * longest_tokens, math.ceil(rows * mean_tokens + excess))
    return packed - (rows - 1) * step.shared_tokens


def _fused_activation_bytes(
    step: StepConfig, spec: ModelSpec, rank: int, width: int, tokens: int
) -> float:
    """Return all layers' :class:`medcot.engines.fused.decoder_layer.SavedActivations` in bytes."""
    wide, narrow = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    # Input of the MLP; queries, keys, values and the attention's output; gate and up.
    kept = spec.hidden + (2 * wide + 2 * narrow) + 2 * spec.intermediate + 7 * rank
    if spec.qk_norm:  # Queries and keys before their norms, too.
        kept += wide + narrow
    if step.row_attention:
        kept += 3 * wide
    # The attention's log-sums, two norms' scales.
    in_float32 = spec.heads + 2
    per_layer = kept * width + in_float32 * 4
    recomputed = step.recomputed_layers
    everything = (spec.layers - recomputed) * per_layer + spec.layers * spec.hidden * width
    return tokens * (everything + (per_layer if recomputed else 0))


def _fused_passing_bytes(spec: ModelSpec, width: float, tokens: int) -> float:
    """Return the bytes that one layer's backward pass needs: gradients of gate, up and input."""
    return tokens * width * (3 * spec.intermediate + 4 * spec.hidden)


def _fused_head_bytes(spec: ModelSpec, width: float, tokens: int) -> float:
    """Return the bytes of a logits chunk with its gradient, and of the hidden states' gradient."""
    at_once = min(tokens, HEAD_TOKENS)
    return width * (2 * at_once * spec.vocab + 4 * tokens * spec.hidden)


def _activation_bytes(step: StepConfig, spec: ModelSpec, width: int, tokens: int) -> float:
    saved = _SAVED[step.engine, width]
    layer = (
        saved.hidden * spec.hidden
        + saved.query * spec.heads * spec.head_dim
        + saved.key_value * spec.kv_heads * spec.head_dim
        + saved.intermediate * spec.intermediate
    )
    if isinstance(spec, CountedSpec) and spec.attention == "eager":
        # Scores and their softmax, and a copy in float32, of each token with its whole row.
        layer += (2 * width + 4) * spec.heads * tokens / step.micro_batch
    outside = saved.per_token * spec.hidden
    if not step.checkpointing:
        return tokens * (spec.layers * layer + outside)
    # One layer is recomputed at a time. Each layer's input stays, on the GPU or in host memory.
    kept = 0 if step.traits.offloads_inputs else spec.layers * spec.hidden * width
    return tokens * (layer + kept + outside)


def _logit_bytes(step: StepConfig, spec: ModelSpec, width: float, tokens: int) -> float:
    if step.device == "cuda":
        rows, columns = LOGIT_TILE
        return min(tokens, rows) * min(spec.vocab, columns) * width
    # Elsewhere the project's own loss holds a chunk of logits, their softmax and a copy, in
    # float32, and the gradient of every hidden state.
    return 3 * min(tokens, CPU_LOGIT_TOKENS) * spec.vocab * 4 + tokens * spec.hidden * width


def _workspace_bytes(step: StepConfig, spec: ModelSpec, width: float) -> float:
    """Return the bytes of scratch space: matrix products and the dequantised largest weight."""
    if step.device != "cuda":
        return CPU_WORKSPACE_GIB * GIB
    largest = max(a * b for a, b in spec.linear_sizes.values()) * width
    space = _WORKSPACE[step.engine]
    once = space.fixed * GIB
    if step.quantization == "none":
        return once
    return max(once + largest, space.large_fixed * GIB + space.copies * largest)
