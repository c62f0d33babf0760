"""Computes the loss of the output head in chunks, so that the logits are never held all at once.

:func:`compute_head_loss` belongs to the fused pass. :class:`ChunkedLogProb` replaces TRL's Triton
kernel where there is none, on a CPU or a Mac.
"""

from __future__ import annotations

from typing import Any

import torch

from medcot.engines.fused.ops import Ops

TRL_CHUNK_TOKENS = 256
"""Tokens per chunk of :class:`ChunkedLogProb`: 50 MB of float32 logits for 49,152 words."""
HEAD_CHUNK_TOKENS = 1024
"""Tokens per chunk of :func:`compute_head_loss`: 0.25 GiB of 16-bit logits for 128,256
words. ``medcot.planning.memory_model`` plans with the same number."""


class ChunkedLogProb(torch.autograd.Function):
    """Computes log p(target) of ``hidden @ weight.T`` for a frozen output head.

    Stands in for ``_ChunkedLogProbFunction`` of TRL 1.15, whose arguments and results it has. The
    forward pass also computes the gradient while a chunk's logits exist, so that the backward pass
    needs neither the logits nor their recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        _chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        _outputs: tuple[str, ...] = (),
    ) -> tuple[torch.Tensor, ...]:
        """Return log-probabilities, three unused tensors, and whether each target is the top token.

        Args:
            ctx: Autograd's context.
            hidden: [tokens, width].
            weight: [vocab, width], frozen.
            bias: [vocab].
            targets: [tokens].
            temperature: Divides the logits.
            softcap: Bounds the logits by ``softcap * tanh(logits / softcap)``.
            logit_scale: Multiplies the logits first.

        Raises:
            NotImplementedError: The output head is trainable.
        """
        if weight.requires_grad:
            raise NotImplementedError("this loss trains adapters on a frozen output head only")
        count = len(targets)
        log_probs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        is_top1 = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, count, TRL_CHUNK_TOKENS):
            part = slice(start, start + TRL_CHUNK_TOKENS)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            log_probs[part], is_top1[part], to_logits = _log_probs_of_chunk(
                logits.mul_(logit_scale), targets[part, None], temperature, softcap
            )
            to_logits.mul_(logit_scale / temperature)
            gradient[part] = (to_logits.to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(is_top1)
        unused = torch.zeros_like(log_probs)
        ctx.mark_non_differentiable(unused)
        return log_probs, unused, unused, unused, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the saved gradient of each token by the gradient of its log-probability."""
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None].to(gradient.dtype), *[None] * 8)


def _log_probs_of_chunk(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log p(target) [tokens], top-1 hits [tokens] and d log p / d logits * temperature.

    Overwrites ``logits`` [tokens, vocab]; ``targets`` is [tokens, 1].
    """
    capped = None
    if softcap is not None:
        capped = torch.tanh(logits / softcap)
        logits = capped * softcap
    log_p = torch.log_softmax(logits.div_(temperature), dim=-1)
    log_probs = log_p.gather(1, targets).squeeze(1)
    is_top1 = (log_p.argmax(-1, keepdim=True) == targets).float().squeeze(1)
    # d log p(target) / d logit_j = 1[j = target] - p_j
    to_logits = log_p.exp_().neg_()
    to_logits.scatter_add_(1, targets, torch.ones_like(targets, dtype=to_logits.dtype))
    if capped is not None:
        to_logits.mul_(1 - capped.square())
    return log_probs, is_top1, to_logits


def compute_head_loss(
    hidden: torch.Tensor,
    norm: Any,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ops: Ops,
    *,
    for_backward: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed cross-entropy of ``targets``, and its gradient by ``hidden``.

    Final norm, output head and loss in one. The gradient is computed while a chunk's logits exist:
    two matmuls with the head instead of three.

    Args:
        hidden: Output of the last layer at the positions that predict ``targets``: [tokens, width].
        norm: transformers' final RMS norm.
        weight: Output head, [vocab, width].
        targets: [tokens].
        ops: Operations to compute with.
        for_backward: Whether the gradient is wanted; it is None otherwise.
    """
    normed, to_normed = torch.empty_like(hidden), torch.empty_like(hidden)
    rstd = ops.rms_norm(hidden, norm.weight, norm.variance_epsilon, normed)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), HEAD_CHUNK_TOKENS):
        part = slice(start, start + HEAD_CHUNK_TOKENS)
        logits = normed[part] @ weight.T
        total += ops.cross_entropy_(logits, targets[part]).sum()
        if for_backward:
            torch.mm(logits, weight, out=to_normed[part])
    if not for_backward:
        return total, None
    return total, ops.rms_norm_backward(to_normed, hidden, norm.weight, rstd, None)
