"""TRL's SFT loss without Triton: the same log-probabilities in plain PyTorch, on any device.

TRL 1.15 computes its loss by a Triton kernel and has none for a CPU or a Mac. This stands in its
place and keeps its manner: labelled tokens only, a chunk of logits at a time, never all of them.
"""

from __future__ import annotations

from typing import Any

import torch

TOKENS_AT_ONCE = 256
"""Rows of logits held at a time: 50 MB for 49,152 words in float32."""


class ChunkedLogProb(torch.autograd.Function):
    """log p(target) of ``hidden @ weight.T`` for a frozen head.

    The gradient of each token's log-probability is taken while its logits are there, so that the
    backward pass needs neither the logits nor their recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [tokens, width]
        weight: torch.Tensor,  # [words, width]
        bias: torch.Tensor | None,  # [words]
        targets: torch.Tensor,  # [tokens]
        temperature: float,
        _chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        _outputs: tuple[str, ...] = (),
    ) -> tuple[torch.Tensor, ...]:
        if weight.requires_grad:
            raise NotImplementedError("this loss trains adapters on a frozen output head only")
        count = len(targets)
        log_probs = torch.empty(count, dtype=torch.float32, device=hidden.device)
        is_top1 = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, count, TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            logits.mul_(logit_scale)
            slope = logit_scale / temperature
            if softcap is not None:
                capped = torch.tanh(logits / softcap)
                logits = capped * softcap
            wanted = targets[part, None]
            log_p = torch.log_softmax(logits.div_(temperature), dim=-1)
            log_probs[part] = log_p.gather(1, wanted).squeeze(1)
            is_top1[part] = (log_p.argmax(-1, keepdim=True) == wanted).float().squeeze(1)
            # d log p(target) / d logit_j = 1[j = target] - p_j
            slopes = log_p.exp_().neg_()
            slopes.scatter_add_(1, wanted, torch.ones_like(wanted, dtype=slopes.dtype))
            if softcap is not None:
                slopes.mul_(1 - capped.square())
            gradient[part] = (slopes.mul_(slope).to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(is_top1)
        unasked = torch.zeros_like(log_probs)
        ctx.mark_non_differentiable(unasked)
        return log_probs, unasked, unasked, unasked, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * gradients[0][:, None].to(gradient.dtype), *[None] * 8)


HEAD_TOKENS = 1024
"""Rows of logits that :func:`head_loss` holds at a time: 0.25 GiB for 128,256 words in 16 bits."""


def head_loss(
    hidden: torch.Tensor,
    norm: Any,
    weight: torch.Tensor,
    targets: torch.Tensor,
    does: Any,
    for_backward: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed loss of ``targets`` [tokens], each predicted from the last layer's ``hidden`` [tokens,
    width], and its gradient by those.

    Norm, output head (``weight`` [words, width]) and cross-entropy in one. The gradient is taken
    while the logits are there, so that the head is multiplied with twice, not three times. ``does``
    is :mod:`medcot.engines.fused.reference_ops` or its Triton twin.
    """
    normed, slope = torch.empty_like(hidden), torch.empty_like(hidden)
    scale = does.rms(hidden, norm.weight, norm.variance_epsilon, normed)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        logits = normed[part] @ weight.T
        total += does.token_losses_(logits, targets[part]).sum()
        if for_backward:
            torch.mm(logits, weight, out=slope[part])
    if not for_backward:
        return total, None
    return total, does.rms_backward(slope, hidden, norm.weight, scale, None)
