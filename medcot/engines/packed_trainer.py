"""TRL's SFTTrainer over the fused pass: packed batches in, no waiting for the device in a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from trl.trainer.sft_trainer import SFTTrainer

from medcot.engines.fused import PackedCollator
from medcot.recorder import Recorder, StepReadings

UNREAD_STEPS = 1
"""Steps whose loss may be on its way while the next one is launched."""


class PackedTrainer(SFTTrainer):
    """The trainer for a peft model within :func:`medcot.engines.fused.fused_forward`.

    The model gives the summed loss of a batch; everything that SFTTrainer would read back from the
    device after each forward pass (entropy, accuracy, token counts) is left out.
    """

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
        # DDP averages gradients over processes; the count is that of all of them.
        loss = model(**inputs) / count * self.accelerator.num_processes
        seen = loss.detach().float()
        self.step_loss = seen if self.step_loss is None else self.step_loss + seen
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self.grad_norm = super()._clip_grad_norm(model)
        return self.grad_norm

    def _get_learning_rate(self) -> float:
        self.learning_rate = super()._get_learning_rate()
        return self.learning_rate

    def take_step_values(self, tokens: int) -> torch.Tensor:
        """(loss, gradient norm, tokens) of the step that just ended, over all processes."""
        assert self.step_loss is not None
        assert self.grad_norm is not None
        loss, norm = self.step_loss, self.grad_norm.detach().float()
        self.step_loss = None
        values = torch.stack([loss, norm, torch.full_like(loss, tokens)])
        if self.accelerator.num_processes > 1:
            distributed.all_reduce(values)
            values = values / torch.tensor(
                [self.accelerator.num_processes] * 2 + [1], device=values.device
            )
        return values


def make_packed_trainer(
    model: Any, arguments: Any, rows: Any, tokenizer: Any, recorder: Recorder
) -> PackedTrainer:
    """A trainer whose steps ``recorder`` hears of, one step late on a GPU."""
    trainer = PackedTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=PackedCollator(),
    )
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
