"""Training: TRL's SFTTrainer behind :func:`fit`. Events out; checkpoints, resume, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.tokenization import IGNORED, TokenizedRow, check_labels, gate_refusal
from medcot.data.tokenized import list_row_lengths, to_training_dataset
from medcot.distributed import comm
from medcot.engines.base import LoadedModel
from medcot.engines.compat import quiet
from medcot.engines.loading import engine_for, trainable_parameters
from medcot.errors import InputError, RunFailed
from medcot.planning.plan import Plan
from medcot.records import OnEvent
from medcot.runs.directory import RunDirectory
from medcot.training.recorder import Recorder
from medcot.training.trainers.choose import make_arguments, make_trainer

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
    rows: Sequence[TokenizedRow],
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
            if comm.world_size() > 1:
                raise _out_of_memory_beside_others(plan) from error
            plan = _with_less_memory(plan, loaded.model.config.num_hidden_layers)
    _save_adapter(loaded, directory.adapter)
    seconds = time.monotonic() - started
    return FitResult(recorder.step, recorder.tokens, seconds, count, recorder.step < steps, plan)


def _train(
    loaded: LoadedModel,
    rows: Sequence[TokenizedRow],
    config: RunConfig,
    plan: Plan,
    steps: int,
    directory: RunDirectory,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> Recorder:
    import torch
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    checkpoint = _common_checkpoint(directory, should_stop)
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    directory.truncate_events(first_step)
    past = list(directory.rows(directory.events))
    done = past[-1]["tokens"] if past else 0
    recorder = Recorder(steps, done, directory, on_event, _stop_of_all(should_stop))
    recorder.step = first_step
    loaded.model.config.use_cache = False
    arguments = make_arguments(config, plan, steps, directory.checkpoints)
    data = to_training_dataset(rows)
    with loaded.engine.training_pass(loaded, plan) as adapters, quiet():
        lengths = list_row_lengths(rows)
        trainer = make_trainer(loaded, adapters, arguments, data, lengths, recorder)
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                # TRL casts QLoRA adapters to bf16, which fp16's gradient scaler refuses; and
                # float32 adapters lose nothing over long runs.
                parameter.data = parameter.data.to(torch.float32)
        _check_gate(trainer, loaded, rows)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    loaded.model = trainer.model
    loaded.model.config.use_cache = True
    loaded.model.eval()
    return recorder


def _common_checkpoint(directory: RunDirectory, should_stop: Callable[[], bool]) -> Path | None:
    """The newest checkpoint in the main process's folder, which every process goes on from.

    Raises:
        InputError: this process does not see that folder.
    """
    found = comm.from_main(lambda: directory.last_checkpoint(), should_stop)
    if found is not None and not found.exists():
        got = f"process {comm.rank()} cannot see {found}"
        raise InputError("--resume", got, "keep the run directory in a folder that all hosts share")
    return found


def _stop_of_all(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Asked by every process after every step: all stop after the same one."""
    return lambda: comm.any_of(should_stop() or comm.stop_requested())


def _check_gate(trainer: Any, loaded: LoadedModel, rows: Sequence[TokenizedRow]) -> None:
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


def _with_less_memory(plan: Plan, layers: int) -> Plan:
    """The plan with all ``layers`` recomputed where it can be, else half the rows per pass.

    Raises:
        RunFailed: there is nothing left to give up.
    """
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if engine_for(plan).traits.packs and plan.recomputed_layers < layers:
        return replace(plan, checkpointing=True, recomputed_layers=layers)
    if plan.micro_batch > 1:
        fewer = _fewer_rows(plan)
        rows = plan.micro_batch * plan.accumulation
        return replace(plan, micro_batch=fewer, accumulation=rows // fewer)
    raise RunFailed(
        "training",
        Message("error_one_row_memory"),
        Message("needs_smaller_run"),
    )


def _fewer_rows(plan: Plan) -> int:
    """At most half the rows per pass, as many as divide those of a step; 0 where one is left."""
    rows = plan.micro_batch * plan.accumulation
    return next((n for n in range(plan.micro_batch // 2, 0, -1) if rows % n == 0), 0)


def _out_of_memory_beside_others(plan: Plan) -> RunFailed:
    """The other processes are inside a collective by now, so none can simply try again."""
    fewer = _fewer_rows(plan)
    remedy = (
        f"Continue with --resume --micro-batch {fewer}." if fewer else "Try --checkpointing on."
    )
    return RunFailed("training", f"process {comm.rank()} ran out of memory.", remedy)


def _is_out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def _save_adapter(loaded: LoadedModel, folder: Path) -> None:
    """Adapter and tokenizer, so that plain peft and transformers load them."""
    if not comm.is_main():
        return
    loaded.model.save_pretrained(str(folder), safe_serialization=True)
    loaded.tokenizer.save_pretrained(str(folder))
