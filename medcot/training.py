"""Training: TRL's SFTTrainer behind :func:`fit`. Events out; checkpoints, resume, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcot.config import RunConfig
from medcot.engines import quiet
from medcot.errors import RunFailed
from medcot.model import LoadedModel, trainable_parameters
from medcot.plan import Plan
from medcot.records import Event, OnEvent
from medcot.rundir import RunDirectory
from medcot.tokens import IGNORED, Encoded, check_labels, gate_refusal

GATE_ROWS = 8
"""Rows of the trainer's own first batch that the template gate decodes."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What training did. ``steps`` counts those of earlier sessions of the same run too."""

    steps: int
    tokens: int
    seconds: float
    trainable_parameters: int
    cancelled: bool
    plan: Plan


def fit(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    config: RunConfig,
    plan: Plan,
    directory: RunDirectory,
    on_event: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train the adapter of ``loaded`` on ``rows`` and save it to ``directory.adapter``.

    Goes on from the newest checkpoint in ``directory``. Every step's event is appended to
    ``events.jsonl`` and given to ``on_event``. When memory runs out, the rows per forward pass are
    halved (the rows per optimizer step stay) and training goes on from the newest checkpoint.

    Raises:
        RunFailed: the template gate refuses, the loss is not finite, or one row does not fit.
    """
    steps = config.total_steps(len(rows))
    count = trainable_parameters(loaded.model)
    started = time.monotonic()
    if steps == 0:
        _save_adapter(loaded, directory.adapter)
        return FitResult(0, 0, 0.0, count, False, plan)
    while True:
        try:
            recorder = _train(loaded, rows, config, plan, steps, directory, on_event, should_stop)
            break
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            plan = _with_less_memory(plan)
    _save_adapter(loaded, directory.adapter)
    seconds = time.monotonic() - started
    return FitResult(recorder.step, recorder.tokens, seconds, count, recorder.step < steps, plan)


def _train(
    loaded: LoadedModel,
    rows: Sequence[Encoded],
    config: RunConfig,
    plan: Plan,
    steps: int,
    directory: RunDirectory,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Recorder:
    import torch
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.trainer.sft_trainer import SFTTrainer

    from medcot.engines.loss import provide_loss

    disable_progress_bar()
    provide_loss()
    checkpoint = directory.last_checkpoint()
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    directory.truncate_events(first_step)
    past = list(directory.rows(directory.events))
    recorder = Recorder(steps, past[-1]["tokens"] if past else 0, directory, on_event, should_stop)
    recorder.step = first_step
    loaded.model.config.use_cache = False
    with quiet():
        trainer = SFTTrainer(
            model=loaded.model,
            args=_arguments(config, plan, steps, directory.checkpoints),
            train_dataset=Dataset.from_list([row.as_row() for row in rows]),
            processing_class=loaded.tokenizer,
        )
    trainer.data_collator = _CountingCollator(trainer.data_collator, recorder)
    trainer.add_callback(_as_callback(recorder))
    _remove_printing(trainer)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            # TRL casts QLoRA adapters to bf16, which fp16's gradient scaler refuses; and float32
            # adapters lose nothing over long runs.
            parameter.data = parameter.data.to(torch.float32)
    _check_gate(trainer, loaded, rows)
    with quiet():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    loaded.model = trainer.model
    loaded.model.config.use_cache = True
    loaded.model.eval()
    return recorder


def _arguments(config: RunConfig, plan: Plan, steps: int, checkpoints: Path) -> Any:
    from trl.trainer.sft_config import SFTConfig

    on_cpu = plan.device == "cpu"
    return SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=min(config.warmup_steps, steps),
        weight_decay=config.weight_decay,
        optim=config.optimizer if not on_cpu else "adamw_torch",
        # The plan's packing lays the rows of a forward pass end to end and leaves the batch as it
        # was asked for; TRL's own would let a step see as many rows as happen to fit. Rows longer
        # than max_length were left out before, so nothing needs to be cut here.
        max_length=None if plan.packing else config.max_length,
        padding_free=plan.packing,
        completion_only_loss=True,
        gradient_checkpointing=plan.checkpointing,
        bf16=plan.precision == "bf16" and not on_cpu,
        fp16=plan.precision == "fp16" and not on_cpu,
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        dataloader_pin_memory=not on_cpu,
    )


class Recorder:
    """Turns the trainer's logs into events, and asks it to stop when the user wants that."""

    def __init__(
        self,
        steps: int,
        tokens: int,
        directory: RunDirectory,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> None:
        self.steps, self.tokens = steps, tokens
        self.step = 0
        self.directory, self.on_event, self.should_stop = directory, on_event, should_stop
        self._row_tokens: list[int] = []
        self._step_started = time.monotonic()
        self._durations: list[float] = []

    def rows_collated(self, tokens: int) -> None:
        self._row_tokens.append(tokens)

    def step_begins(self) -> None:
        self._step_started = time.monotonic()

    def step_ended(self, step: int, micro_batches: int, logs: dict[str, float]) -> None:
        """Record one optimizer step of ``micro_batches`` forward passes.

        Raises:
            RunFailed: the loss is no longer a number.
        """
        seconds = time.monotonic() - self._step_started
        # The loader works one batch ahead, so the first ones in the queue are this step's.
        tokens = sum(self._row_tokens[:micro_batches])
        del self._row_tokens[:micro_batches]
        self.step, self.tokens = step, self.tokens + tokens
        # The first step of a session warms caches up and says little about the others.
        self._durations.append(seconds)
        recent = self._durations[1:][-20:] or self._durations
        event = Event(
            step=step,
            steps=self.steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            tokens=self.tokens,
            tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
            memory_gib=round(memory_gib(), 2),
            eta_s=round((self.steps - step) * sum(recent) / len(recent), 1),
        )
        self.directory.append(self.directory.events, event)
        self.on_event(event)
        if not abs(event.loss) < float("inf"):
            raise RunFailed(
                "training",
                f"the loss became {event.loss} at step {step}.",
                "Try a lower --learning-rate; the newest checkpoint is kept.",
            )


def memory_gib() -> float:
    """Peak memory of this process: the accelerator's where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class _CountingCollator:
    """Passes batches through and notes how many tokens each has, without asking the device."""

    def __init__(self, collate: Any, recorder: Recorder) -> None:
        self._collate, self._recorder = collate, recorder

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        self._recorder.rows_collated(sum(len(example["input_ids"]) for example in examples))
        return self._collate(examples)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collate, name)


def _as_callback(recorder: Recorder) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.step_begins()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if recorder.should_stop():
                control.should_training_stop = True
                control.should_save = True
            return control

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
        ) -> None:
            if "loss" in logs:
                recorder.step_ended(state.global_step, args.gradient_accumulation_steps, logs)

    return Callback()


def _check_gate(trainer: Any, loaded: LoadedModel, rows: Sequence[Encoded]) -> None:
    """Let the gate see what the trainer's own collator makes of the trainer's own rows."""
    collate = trainer.data_collator._collate
    if len(trainer.train_dataset) != len(rows):
        raise gate_refusal(
            f"the trainer dropped rows: {len(trainer.train_dataset)} of {len(rows)} are left"
        )
    count = min(GATE_ROWS, len(trainer.train_dataset))
    keep = ("input_ids", "labels", "seq_lengths")
    examples = [
        {key: value for key, value in trainer.train_dataset[index].items() if key in keep}
        for index in range(count)
    ]
    labels = collate(examples)["labels"].tolist()
    check_labels(loaded.tokenizer, [_unpadded(sequence) for sequence in labels], rows)


def _unpadded(labels: list[int]) -> list[int]:
    while labels and labels[-1] == IGNORED:
        labels.pop()
    return labels


def _with_less_memory(plan: Plan) -> Plan:
    """The plan with half the rows per forward pass, or with checkpointing.

    Raises:
        RunFailed: there is nothing left to give up.
    """
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if plan.micro_batch > 1:
        half = plan.micro_batch // 2
        return replace(plan, micro_batch=half, accumulation=plan.accumulation * 2)
    raise RunFailed(
        "training",
        "one row does not fit into memory.",
        "Try a shorter --max-length, a smaller --rank or --quantization 4bit, then --resume.",
    )


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def _save_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Adapter and tokenizer, so that plain peft and transformers load them."""
    loaded.model.save_pretrained(str(folder), safe_serialization=True)
    loaded.tokenizer.save_pretrained(str(folder))


def _remove_printing(trainer: Any) -> None:
    """The trainer prints each log as a dict; the events say it better."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
