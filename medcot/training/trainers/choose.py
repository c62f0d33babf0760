"""Chooses TRL's SFTTrainer for each engine, and sets its arguments, collator and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines.base import LoadedModel, TrainedParameters
from medcot.engines.compat import name_cpu_without_number, provide_loss
from medcot.engines.imports import collector_paused
from medcot.engines.loading import engine_for
from medcot.planning.plan import Plan
from medcot.training.checkpoints import check_before_saving, manifest_callback
from medcot.training.recorder import Recorder


def make_trainer(
    loaded: LoadedModel,
    adapters: TrainedParameters | None,
    arguments: Any,
    data: Any,
    lengths: Sequence[int],
    recorder: Recorder,
) -> Any:
    """Return a trainer that reports its steps to ``recorder``.

    Args:
        adapters: What the engine's training pass yields.
        data: Rows of token ids and labels.
        lengths: The tokens of each row, in the order of ``data``.
    """
    from medcot.engines.fused.cross_entropy import ChunkedLogProb

    provide_loss(ChunkedLogProb, loaded.device)
    if adapters is not None:
        from medcot.training.trainers.fused import make_packed_trainer

        trainer = make_packed_trainer(
            loaded.model, arguments, adapters, data, lengths, loaded.tokenizer, recorder
        )
    else:
        trainer = _make_plain_trainer(loaded, arguments, data, recorder)
    trainer.add_callback(manifest_callback(recorder.validation.save))
    trainer.data_collator = CountingCollator(trainer.data_collator, recorder)
    _remove_printing(trainer)
    return trainer


def _make_plain_trainer(loaded: LoadedModel, arguments: Any, data: Any, recorder: Recorder) -> Any:
    if loaded.engine.traits.splits and comm.world_size() > 1:
        from medcot.training.trainers.fsdp import SplitTrainer as Trainer
    else:
        from trl.trainer.sft_trainer import SFTTrainer as Trainer

    trainer = Trainer(
        model=loaded.model, args=arguments, train_dataset=data, processing_class=loaded.tokenizer
    )
    trainer.add_callback(_as_callback(trainer, recorder))
    return trainer


def make_arguments(config: RunConfig, plan: Plan, steps: int, checkpoints: Path) -> Any:
    """Return the ``SFTConfig`` of a run: what its config asks for, computed as its plan says."""
    with collector_paused():
        import trl.trainer.sft_trainer  # noqa: F401 - which every trainer is made of
        from trl.trainer.sft_config import SFTConfig

    on_cpu = plan.device == "cpu"
    if on_cpu and comm.world_size() > 1:
        name_cpu_without_number()
    arguments: Any = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=min(config.warmup_steps, steps),
        weight_decay=config.weight_decay,
        # Of experts, too, the loss is that of the completions alone: it is the one that is scored.
        router_aux_loss_coef=0.0,
        optim=config.optimizer if not on_cpu else "adamw_torch",
        completion_only_loss=True,
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
        dataloader_pin_memory=plan.device == "cuda",
        # A blocking copy of a batch would wait for everything that the GPU still has to do.
        accelerator_config={"non_blocking": plan.device == "cuda"},
        ddp_find_unused_parameters=False,
        **_arguments_by_pass(config, plan),
    )
    if arguments.n_gpu > 1:
        # A process has one GPU, as planned. Trainer would take all: a batch for each, DataParallel.
        arguments._n_gpu = 1
    return arguments


def _arguments_by_pass(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """Return the arguments that depend on whether the engine has a training pass of its own.

    Such a pass packs rows, chooses dtypes, scales fp16 losses, recomputes layers and logs by
    itself.
    """
    plain = not engine_for(plan).traits.packs
    half = plain and plan.device != "cpu"
    return {
        # The plan's packing lays the rows of a forward pass end to end and keeps the batch; TRL's
        # own would let a step see as many rows as happen to fit. Rows longer than max_length were
        # left out before, so nothing needs to be cut here.
        "max_length": None if plan.packing else config.max_length,
        "padding_free": plain and plan.packing,
        "gradient_checkpointing": plain and plan.checkpointing,
        "bf16": half and plan.precision == "bf16",
        "fp16": half and plan.precision == "fp16",
        "logging_strategy": "steps" if plain else "no",
    }


class CountingCollator:
    """Counts the tokens of each batch as it is collated, without reading from the device."""

    def __init__(self, collate: Any, recorder: Recorder) -> None:
        self._collate, self._recorder = collate, recorder

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Count the tokens of ``examples`` and collate them."""
        self._recorder.rows_collated(sum(len(example["input_ids"]) for example in examples))
        return self._collate(examples)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collate, name)


def _as_callback(trainer: Any, recorder: Recorder) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.finish_validation()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.step_begins()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            recorder.validate(state.global_step)
            if recorder.should_end():
                control.should_training_stop = True
                control.should_save = True
            return control

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
        ) -> None:
            if "loss" in logs:
                own = recorder.take_tokens(args.gradient_accumulation_steps)
                tokens = int(comm.sum_over_ranks(own))
                seconds = recorder.seconds_since_begin()
                scaled = not isfinite(logs["grad_norm"]) and _has_loss_scale(trainer)
                recorder.step_ended(state.global_step, tokens, logs, seconds, scaled=scaled)
                # The trainer logs a step before it saves its checkpoint.
                if control.should_save:
                    check_before_saving(kwargs["optimizer"], state.global_step)

    return Callback()


def _has_loss_scale(trainer: Any) -> bool:
    """Return whether accelerate's ``GradScaler`` skipped the step and can still halve its scale.

    Asked after such a step only, as it waits for the device.
    """
    scaler = trainer.accelerator.scaler
    return scaler is not None and scaler.get_scale() >= 1


def _remove_printing(trainer: Any) -> None:
    """Keep the trainer from printing each log as a dict: the events hold the same values."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
