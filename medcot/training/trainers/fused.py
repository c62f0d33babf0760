"""TRL's SFTTrainer over the fused pass: packed batches, and no waiting for the device in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from trl.trainer.sft_trainer import SFTTrainer

from medcot.engines.base import TrainedParameters
from medcot.engines.fused.packing import BalancedSampler, PackedCollator
from medcot.training.checkpoints import check_before_saving
from medcot.training.recorder import Recorder, StepReadings

UNREAD_STEPS = 1
"""Steps whose loss may still be computed while the next one is launched."""


class PackedTrainer(SFTTrainer):
    """The trainer for a peft model within :func:`medcot.engines.fused.stack.fused_forward`.

    The model returns the summed loss of a batch. What SFTTrainer would read back from the device
    after each forward pass (entropy, accuracy, token counts) is left out.
    """

    adapters: TrainedParameters
    row_lengths: Sequence[int]
    step_loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None
    learning_rate = 0.0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the signature of transformers
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this batch's share of the mean loss over the step's labelled tokens."""
        count = num_items_in_batch if num_items_in_batch is not None else len(inputs["targets"])
        loss = model(**inputs) / count
        seen = loss.detach().float()
        self.step_loss = seen if self.step_loss is None else self.step_loss + seen
        return loss

    def get_train_dataloader(self) -> Any:
        """Return TRL's own loader, with the rows of each step spread evenly over its passes."""
        loader = super().get_train_dataloader()
        # Inside of accelerate's shares, so that the order is that of every other engine.
        batches: Any = loader.batch_sampler
        batches = getattr(batches, "batch_sampler", batches)
        passes = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        batches.sampler = BalancedSampler(
            batches.sampler, self.row_lengths, batches.batch_size, passes
        )
        return loader

    def training_step(self, model: Any, *arguments: Any, **options: Any) -> Any:
        """Run forward and backward; processes exchange gradients once per step, not here."""
        with self.accelerator.no_sync(model):
            return super().training_step(model, *arguments, **options)

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer of all adapters as one parameter, all of whose weights decay."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            group = {"params": [self.adapters.gather()], "weight_decay": self.args.weight_decay}
            self.optimizer = kind([group], **options)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        master = self.adapters.gather()
        if self.accelerator.num_processes > 1:
            # One call: DDP would make dozens of them during the backward pass.
            distributed.all_reduce(master.grad)
        limit = self.args.max_grad_norm
        self.grad_norm = self.accelerator.clip_grad_norm_([master], limit)
        return self.grad_norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nobody reads it, and counting the model's parameters takes milliseconds."""
        return 0

    def _get_learning_rate(self) -> float:
        self.learning_rate = super()._get_learning_rate()
        return self.learning_rate

    def take_step_values(self, tokens: int) -> torch.Tensor:
        """Return (loss, gradient norm, tokens) of the step that just ended, over all processes."""
        assert self.step_loss is not None
        assert self.grad_norm is not None
        count = self.accelerator.num_processes
        # The norm is that of the common gradient, the same for all.
        loss, norm = self.step_loss, self.grad_norm.detach().float() / count
        self.step_loss = None
        values = torch.stack([loss, norm, torch.full_like(loss, tokens)])
        if count > 1:
            distributed.all_reduce(values)
        return values


def make_packed_trainer(
    model: Any,
    arguments: Any,
    adapters: TrainedParameters,
    rows: Any,
    lengths: Sequence[int],
    tokenizer: Any,
    recorder: Recorder,
) -> PackedTrainer:
    """Return a trainer of the ``adapters`` of ``model`` on ``rows`` of ``lengths`` tokens.

    It reports its steps to ``recorder``, one step late on a GPU.
    """
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=PackedCollator(),
    )
    trainer.adapters, trainer.row_lengths = adapters, lengths
    trainer.add_callback(_as_callback(trainer, recorder))
    return trainer


def _as_callback(trainer: PackedTrainer, recorder: Recorder) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        readings: StepReadings | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.readings is None:
                self.readings = StepReadings(args.device)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            assert self.readings is not None
            tokens = recorder.take_tokens(args.gradient_accumulation_steps)
            values = trainer.take_step_values(tokens)
            self.readings.push(state.global_step, trainer.learning_rate, values)
            if recorder.should_stop():
                control.should_training_stop = True
                control.should_save = True
            # No checkpoint is saved before the loss is known to be a number.
            last = state.global_step >= state.max_steps or control.should_save
            self._report(0 if last or state.global_step % args.save_steps == 0 else UNREAD_STEPS)
            if last:
                check_before_saving(kwargs["optimizer"], state.global_step)
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._report(0)

        def _report(self, keep: int) -> None:
            if self.readings is not None:
                for step, tokens, logs, seconds in self.readings.pop(keep):
                    recorder.step_ended(step, tokens, logs, seconds)

    return Callback()
