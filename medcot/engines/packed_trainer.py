"""TRL's SFTTrainer over the fused pass: packed batches in, no waiting for the device in a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from trl.trainer.sft_trainer import SFTTrainer

from medcot.engines.packing import BalancedSampler, PackedCollator
from medcot.recorder import Recorder, StepReadings

UNREAD_STEPS = 1
"""Steps whose loss may be on its way while the next one is launched."""


class PackedTrainer(SFTTrainer):
    """The trainer for a peft model within :func:`medcot.engines.fused.fused_forward`.

    The model gives the summed loss of a batch; everything that SFTTrainer would read back from the
    device after each forward pass (entropy, accuracy, token counts) is left out.
    """

    row_lengths: Sequence[int] = ()
    step_loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None
    learning_rate = 0.0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss of the optimizer step's labelled tokens, as far as this batch adds to it."""
        count = num_items_in_batch if num_items_in_batch is not None else len(inputs["targets"])
        loss = model(**inputs) / count
        seen = loss.detach().float()
        self.step_loss = seen if self.step_loss is None else self.step_loss + seen
        return loss

    def get_train_dataloader(self) -> Any:
        """The trainer's own, with the rows of each step shared out evenly over its passes."""
        loader = super().get_train_dataloader()
        # Inside of accelerate's shares, so that the order is that of every other engine.
        batches = loader.batch_sampler
        batches = getattr(batches, "batch_sampler", batches)
        passes = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        batches.sampler = BalancedSampler(
            batches.sampler, self.row_lengths, batches.batch_size, passes
        )
        return loader

    def training_step(self, model: Any, *arguments: Any, **options: Any) -> Any:
        """Forward and backward; several processes exchange gradients once per step, not here."""
        with self.accelerator.no_sync(model):
            return super().training_step(model, *arguments, **options)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.accelerator.num_processes > 1:
            _add_up_gradients(model)
        self.grad_norm = super()._clip_grad_norm(model)
        return self.grad_norm

    def _get_learning_rate(self) -> float:
        self.learning_rate = super()._get_learning_rate()
        return self.learning_rate

    def take_step_values(self, tokens: int) -> torch.Tensor:
        """(loss, gradient norm, tokens) of the step that just ended, over all processes."""
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


def _add_up_gradients(model: Any) -> None:
    """The sum over all processes, of all adapters at once.

    DDP would do it in dozens of pieces during the backward pass, which here ends within one call
    per layer: its bookkeeping takes longer than the exchange.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    parts = together.split([gradient.numel() for gradient in gradients])
    with torch.no_grad():
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        )


def make_packed_trainer(
    model: Any,
    arguments: Any,
    rows: Any,
    lengths: Sequence[int],
    tokenizer: Any,
    recorder: Recorder,
) -> PackedTrainer:
    """A trainer of ``rows`` of ``lengths`` tokens; ``recorder`` hears of its steps, one step late
    on a GPU."""
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=PackedCollator(),
    )
    trainer.row_lengths = lengths
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
            # Nothing is saved before it is known that the loss is still a number.
            last = state.global_step >= state.max_steps or control.should_save
            self._tell(0 if last or state.global_step % args.save_steps == 0 else UNREAD_STEPS)
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._tell(0)

        def _tell(self, keep: int) -> None:
            if self.readings is not None:
                for step, tokens, logs, seconds in self.readings.pop(keep):
                    recorder.step_ended(step, tokens, logs, seconds)

    return Callback()
