"""TRL's SFTTrainer over the fused pass: packed batches, and no waiting for the device in a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from trl.trainer.sft_trainer import SFTTrainer

from medcot.data.tokenization import TokenizedRow
from medcot.engines.base import LoadedModel, TrainedParameters
from medcot.engines.fused.packing import BalancedSampler, PackedCollator
from medcot.records import TokenLoss
from medcot.training.checkpoints import check_before_saving
from medcot.training.recorder import Recorder, StepReadings
from medcot.training.trainers.guard import OptimizerGuard

LOSS_SCALE_FILE = "loss_scale.json"
"""A checkpoint's file with the state of the fp16 loss scale."""


class PackedTrainer(SFTTrainer):
    """The trainer for a peft model within :func:`medcot.engines.fused.stack.fused_forward`.

    The model returns the summed loss of a batch. What SFTTrainer would read back from the device
    after each forward pass (entropy, accuracy, token counts) is left out.
    """

    adapters: TrainedParameters
    row_lengths: Sequence[int]
    guard: OptimizerGuard
    step_loss: torch.Tensor | None = None
    grad_norm: torch.Tensor | None = None
    step_scale: torch.Tensor | None = None
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
            self.guard = OptimizerGuard(self.optimizer)
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        master = self.adapters.gather()
        if self.accelerator.num_processes > 1:
            # One call: DDP would make dozens of them during the backward pass.
            distributed.all_reduce(master.grad)
        limit = self.args.max_grad_norm
        norm: Any = self.accelerator.clip_grad_norm_([master], limit)
        finite = norm.detach().isfinite()
        self.guard.finite, scale = finite, self.adapters.loss_scale
        if scale is not None:
            self.step_scale = scale.value.clone()
            scale.update(finite)
        self.grad_norm = norm
        return norm

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.adapters.loss_scale is not None:
            state = json.dumps(self.adapters.loss_scale.state())
            Path(output_dir, LOSS_SCALE_FILE).write_text(state, encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = Path(checkpoint, LOSS_SCALE_FILE) if checkpoint else None
        # Checkpoints of earlier versions lack it; another device may compute in another dtype.
        if file is not None and file.exists() and self.adapters.loss_scale is not None:
            self.adapters.loss_scale.restore(json.loads(file.read_text(encoding="utf-8")))

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: nobody reads it, and counting the model's parameters takes milliseconds."""
        return 0

    def _get_learning_rate(self) -> float:
        self.learning_rate = super()._get_learning_rate()
        return self.learning_rate

    def take_step_values(self, tokens: int) -> torch.Tensor:
        """Return (loss, gradient norm, tokens, loss scale) of the step that just ended.

        The loss, the norm and the tokens are those of all processes.
        """
        assert self.step_loss is not None
        assert self.grad_norm is not None
        count = self.accelerator.num_processes
        # The norm is that of the common gradient, the same for all.
        loss, norm = self.step_loss, self.grad_norm.detach().float() / count
        self.step_loss = None
        values = torch.stack([loss, norm, torch.full_like(loss, tokens)])
        if count > 1:
            distributed.all_reduce(values)
        # The same in all processes, as it follows from the common gradient.
        scale = torch.ones_like(loss) if self.step_scale is None else self.step_scale
        return torch.cat([values, scale[None]])


def score_packed_rows(
    loaded: LoadedModel, rows: Sequence[TokenizedRow], rows_at_once: int
) -> TokenLoss:
    """Return the loss of ``rows`` together, by the pass that trains and in its arithmetic."""
    device = next(loaded.model.parameters()).device
    collate, total, tokens = PackedCollator(), 0.0, 0
    for start in range(0, len(rows), rows_at_once):
        batch = collate([row.as_row() for row in rows[start : start + rows_at_once]])
        with torch.no_grad():
            total += loaded.model(**{name: one.to(device) for name, one in batch.items()}).item()
        tokens += len(batch["targets"])
    return TokenLoss(total, tokens)


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

    It reports its steps to ``recorder``, one step late.
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

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.finish_validation()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.readings is None:
                self.readings = StepReadings(args.device)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            assert self.readings is not None
            tokens = recorder.take_tokens(args.gradient_accumulation_steps)
            values = trainer.take_step_values(tokens)
            self.readings.push(state.global_step, trainer.learning_rate, values)
            if recorder.validate(state.global_step):
                self.readings.restart_clock()
            stopped = recorder.should_end()
            if stopped:
                control.should_training_stop = True
                control.should_save = True
            # No checkpoint is saved before the loss is known to be a number.
            if state.global_step >= state.max_steps or control.should_save:
                undone = self._report()
                check_before_saving(kwargs["optimizer"], state.global_step)
                # A step that changed nothing is no reason to save; a stop is.
                control.should_save = stopped or (control.should_save and not undone)
            return control

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The last step's values, while the device computes this one's gradient.
            self._report()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._report()

        def _report(self) -> bool:
            """Record the steps that were not read yet; return whether the last one was undone."""
            undone = False
            for reading in self.readings.pop() if self.readings is not None else ():
                undone = not isfinite(reading.logs["grad_norm"])
                if undone:
                    trainer.guard.forget_step()
                recorder.step_ended(
                    reading.step, reading.tokens, reading.logs, reading.seconds,
                    scaled=reading.loss_scale > 1,
                )  # fmt: skip
            return undone

    return Callback()
