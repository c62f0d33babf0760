"""TRL's SFTTrainer for sharded weights: whole adapters in every process, averaged gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from trl.trainer.sft_trainer import SFTTrainer


class SplitTrainer(SFTTrainer):
    """The trainer for a model of :mod:`medcot.engines.fsdp.model`, in one of several processes.

    DDP refuses sharded weights. The trainer averages gradients over the processes itself, once per
    step.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """Make the usual accelerator, but leave the model unwrapped; autocast stays."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )

    def _clip_grad_norm(self, model: Any) -> Any:
        # Before fp16's loss scale is removed, so that an overflow in one process is one in all.
        average_gradients([value for value in model.parameters() if value.requires_grad])
        return super()._clip_grad_norm(model)


def average_gradients(trained: Sequence[nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its mean over all processes. A collective.

    TRL multiplies each process's loss by the number of processes, as DDP expects.
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
