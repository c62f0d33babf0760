"""TRL's SFTTrainer for split weights: adapters whole in every process, their gradients averaged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from trl.trainer.sft_trainer import SFTTrainer


class SplitTrainer(SFTTrainer):
    """The trainer for a model of :mod:`medcot.engines.fsdp.model`, in one of several processes.

    DDP refuses split weights, so it is left out; what it would do, average the gradients over the
    processes, is done at once when those of a step are complete.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """The usual accelerator, which leaves the model unwrapped; autocast stays."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )

    def _clip_grad_norm(self, model: Any) -> Any:
        # Before fp16's scale is taken off: what overflows in one process does so in all.
        average_gradients([value for value in model.parameters() if value.requires_grad])
        return super()._clip_grad_norm(model)


def average_gradients(trained: Sequence[nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its mean over all processes, which all must ask.

    The loss of each process counts as many times as there are processes, as for DDP.
    """
    for value in trained:
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    gradients = [value.grad for value in trained if value.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
