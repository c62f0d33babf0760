"""Trains with TRL's SFTTrainer behind :func:`fit`: events, checkpoints, resume, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.tokenization import IGNORED, TokenizedRow, check_labels, gate_refusal
from medcot.data.tokenized import list_row_lengths, to_training_dataset
from medcot.distributed import comm
from medcot.engines.base import LoadedModel
from medcot.engines.compat import deterministic_kernels, known_messages_silenced
from medcot.engines.fallbacks import report_fallback
from medcot.engines.interruption import interruptible
from medcot.engines.loading import (
    engine_for,
    find_weight_not_finite,
    free_memory,
    trainable_parameters,
)
from medcot.errors import Cancelled, InputError, RunFailed, ran_out_of_memory
from medcot.planning.plan import Plan
from medcot.records import OnEvent, TokenLoss
from medcot.runs.directory import RunDirectory
from medcot.training.checkpoints import last_step_kept, newest_whole_checkpoint
from medcot.training.recorder import Recorder
from medcot.training.trainers.choose import make_arguments, make_trainer
from medcot.training.validation import Validation

GATE_ROWS = 8
"""Rows that the template check decodes, as the trainer's own collator makes them."""


@dataclass(frozen=True, slots=True)
class ValidationRows:
    """Rows to score while training, and what scores them with a model's own forward pass."""

    rows: Sequence[TokenizedRow]
    score: Callable[[LoadedModel, Sequence[TokenizedRow]], TokenLoss]


NO_VALIDATION = ValidationRows((), lambda _loaded, _rows: TokenLoss(0.0, 0))


@dataclass(frozen=True, slots=True)
class FitResult:
    """The outcome of a training. ``steps`` and ``tokens`` include earlier sessions of the run.

    ``kept_step`` is the step whose adapter was saved. ``stopped_early`` tells that validation ended
    the training.
    """

    steps: int
    tokens: int
    seconds: float
    trainable_parameters: int
    cancelled: bool
    plan: Plan
    kept_step: int = 0
    validation_rows: int = 0
    stopped_early: bool = False


def fit(
    loaded: LoadedModel,
    rows: Sequence[TokenizedRow],
    config: RunConfig,
    plan: Plan,
    directory: RunDirectory,
    on_event: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
    validation: ValidationRows = NO_VALIDATION,
) -> FitResult:
    """Train the adapter of ``loaded`` on ``rows`` and save it to ``directory.adapter``.

    Resumes from the newest checkpoint in ``directory``. Every step's event is appended to
    ``events.jsonl`` and given to ``on_event``. The rows of ``validation`` are scored every so many
    steps; with ``config.keep`` "best" the adapter is saved as it was when they lost least. When
    memory runs out, all layers are recomputed or the rows per forward pass are halved (the rows per
    optimizer step stay), and training resumes from the newest checkpoint.

    Raises:
        RunFailed: The template check refuses, the loss is not finite, or one row does not fit.
    """
    training = _Training(loaded, rows, config, directory, on_event, should_stop, validation)
    count = trainable_parameters(loaded.model)
    started = time.monotonic()
    if training.steps == 0:
        _save_adapter(loaded, directory.adapter)
        return FitResult(0, 0, 0.0, count, cancelled=False, plan=plan)
    while True:
        try:
            recorder = training.run(plan)
            break
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if comm.world_size() > 1:
                raise _out_of_memory_in_one_process(plan) from error
            layers = loaded.model.config.get_text_config().num_hidden_layers
            plan = _with_less_memory(plan, layers)
    directory.require()
    ended = recorder.step >= training.steps and not recorder.validation_is_pending
    stopped_early = not ended and recorder.validation.is_exhausted
    cancelled = not ended and not stopped_early
    kept_step = recorder.step if cancelled else recorder.validation.choose_weights(recorder.step)
    _save_adapter(loaded, directory.adapter)
    return FitResult(
        recorder.step,
        recorder.tokens,
        time.monotonic() - started,
        count,
        cancelled=cancelled,
        plan=plan,
        kept_step=kept_step,
        validation_rows=len(validation.rows),
        stopped_early=stopped_early,
    )


@dataclass(frozen=True, slots=True)
class _Training:
    """One training, which may be tried with several plans until one fits into memory."""

    loaded: LoadedModel
    rows: Sequence[TokenizedRow]
    config: RunConfig
    directory: RunDirectory
    on_event: OnEvent
    should_stop: Callable[[], bool]
    validated: ValidationRows

    @property
    def steps(self) -> int:
        return self.config.total_steps(len(self.rows))

    def run(self, plan: Plan) -> Recorder:
        """Train from the newest checkpoint to the end, or until it is asked to stop."""
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        loaded, rows = self.loaded, self.rows
        checkpoint = _common_checkpoint(self.directory, self.should_stop)
        recorder = self._recorder(checkpoint, plan)
        if checkpoint and (recorder.step >= self.steps or recorder.validation.is_exhausted):
            _load_weights(loaded.model, checkpoint)
            with loaded.engine.training_pass(loaded, plan), self._interruptible():
                recorder.finish_validation()
            return recorder
        loaded.model.config.use_cache = False
        arguments = make_arguments(self.config, plan, self.steps, self.directory.checkpoints)
        data = to_training_dataset(rows)
        deterministic = self.config.deterministic and plan.device == "cuda"
        with (
            loaded.engine.training_pass(loaded, plan) as adapters,
            known_messages_silenced(),
            deterministic_kernels() if deterministic else nullcontext(),
        ):
            lengths = list_row_lengths(rows)
            trainer = make_trainer(loaded, adapters, arguments, data, lengths, recorder)
            _keep_adapters_in_float32(loaded.model)
            _check_gate(trainer, loaded, rows)
            self._train(trainer, recorder, checkpoint)
        loaded.model = trainer.model
        loaded.model.config.use_cache = True
        loaded.model.eval()
        return recorder

    def _train(self, trainer: Any, recorder: Recorder, checkpoint: Path | None) -> None:
        """Train to the end of the run, or stop after a step or, in a single process, within it."""
        kept = last_step_kept(recorder.validation.save)
        trainer.add_callback(kept)
        try:
            with self._interruptible():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Cancelled:
            kept.save(trainer)

    def _interruptible(self) -> AbstractContextManager[None]:
        """Let a stop end a pass of the model, where no other process waits for it."""

        def poll() -> None:
            if self.should_stop():
                raise Cancelled

        return nullcontext() if comm.world_size() > 1 else interruptible(self.loaded, poll)

    def _recorder(self, checkpoint: Path | None, plan: Plan) -> Recorder:
        """Return a recorder that continues the events up to ``checkpoint``."""
        first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        self.directory.truncate_events(first_step)
        past = list(self.directory.rows(self.directory.events))
        tokens = past[-1]["tokens"] if past else 0
        validation = self._validation(plan)
        losses = {row["step"]: row.get("validation_loss") for row in past}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        # A worker's folder has no events: it takes those of the main process.
        validation.resume(comm.from_main(lambda: known, self.should_stop), checkpoint)
        stop = _stop_in_all_processes(self.should_stop)
        recorder = Recorder(self.steps, tokens, self.directory, self.on_event, stop, validation)
        recorder.step = first_step
        return recorder

    def _validation(self, plan: Plan) -> Validation:
        loaded, traits = self.loaded, self.loaded.engine.traits
        if traits.packs:
            from medcot.training.trainers.fused import score_packed_rows

            score = partial(score_packed_rows, loaded, rows_at_once=plan.micro_batch)
        else:
            score = partial(self.validated.score, loaded)
        # Split weights are gathered for every pass, in all processes at once.
        return Validation(
            loaded.model, self.validated.rows, self.config, self.steps, score,
            shared_out=comm.world_size() > 1 and not traits.splits,
        )  # fmt: skip


def _load_weights(model: Any, checkpoint: Path) -> None:
    """Give ``model`` the weights of a training that has ended: the trainer would go on with it."""
    from peft import load_peft_weights, set_peft_model_state_dict

    _keep_adapters_in_float32(model)
    set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
    model.eval()


def _keep_adapters_in_float32(model: Any) -> None:
    """Undo TRL's cast of QLoRA adapters to bf16.

    fp16's gradient scaler refuses bf16, and float32 adapters lose nothing over long runs.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def _common_checkpoint(directory: RunDirectory, should_stop: Callable[[], bool]) -> Path | None:
    """Return the newest checkpoint in the main process's folder, for every process to resume.

    Raises:
        InputError: This process does not see that folder.
    """
    found = comm.from_main(lambda: newest_whole_checkpoint(directory), should_stop)
    if found is not None and not found.exists():
        got = f"process {comm.rank()} cannot see {found}"
        raise InputError("--resume", got, "keep the run directory in a folder that all hosts share")
    return found


def _stop_in_all_processes(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a collective for the end of every step, so that all stop after the same one."""
    return lambda: comm.any_rank(should_stop() or comm.stop_requested())


def _check_gate(trainer: Any, loaded: LoadedModel, rows: Sequence[TokenizedRow]) -> None:
    """Check labels as the trainer's own collator makes them of the trainer's own rows.

    Raises:
        RunFailed: Rows were dropped, or labels miss a part of the answer.
    """
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


def _with_less_memory(plan: Plan, layers: int) -> Plan:
    """Return the plan with all ``layers`` recomputed if it is not yet, else with fewer rows a pass.

    Raises:
        RunFailed: Nothing is left that would need less memory.
    """
    free_memory()
    if engine_for(plan).traits.packs and plan.recomputed_layers < layers:
        report_fallback(
            "recompute-all-layers",
            f"Memory ran out: all {layers} layers are recomputed in the backward pass instead of"
            f" {plan.recomputed_layers}, which takes up to a third longer.",
        )
        return replace(plan, checkpointing=True, recomputed_layers=layers)
    if plan.micro_batch > 1:
        fewer = _fewer_rows(plan)
        rows = plan.micro_batch * plan.accumulation
        report_fallback(
            f"micro-batch-{fewer}",
            f"Memory ran out: {fewer} rows per forward pass instead of {plan.micro_batch}, so an"
            " optimizer step takes more passes.",
        )
        return replace(plan, micro_batch=fewer, accumulation=rows // fewer)
    raise RunFailed(
        "training",
        Message("error_one_row_memory"),
        Message("needs_smaller_run"),
    )


def _fewer_rows(plan: Plan) -> int:
    """Return the most rows a pass, up to half of today's, that divide those of a step; else 0."""
    rows = plan.micro_batch * plan.accumulation
    return next((n for n in range(plan.micro_batch // 2, 0, -1) if rows % n == 0), 0)


def _out_of_memory_in_one_process(plan: Plan) -> RunFailed:
    """Explain what to do: the others are inside a collective by now, so none can try again."""
    fewer = _fewer_rows(plan)
    remedy = (
        f"Continue with --resume --micro-batch {fewer}." if fewer else "Try --checkpointing on."
    )
    return RunFailed("training", f"process {comm.rank()} ran out of memory.", remedy)


def _save_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Save adapter and tokenizer, so that plain peft and transformers load them."""
    if not comm.is_main():
        return
    if name := find_weight_not_finite(loaded.model):
        raise RunFailed(
            "training",
            f"the trained {name} holds NaN or infinity.",
            "Start a new run with a lower --learning-rate.",
        )
    loaded.model.save_pretrained(str(folder), safe_serialization=True)
    loaded.tokenizer.save_pretrained(str(folder))
