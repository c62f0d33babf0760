"""The planner: the fastest settings that fit, what they cost, and why. Pure and quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.planning.constraints import Ground, settle_ground
from medcot.planning.explain import explain_choice, explain_refusal, warn_of
from medcot.planning.memory_model import PRECISION_BYTES, answer_rows
from medcot.planning.model_specs import ModelShape
from medcot.planning.search import Candidate, Work, best_of, list_candidates
from medcot.planning.speed_model import evaluate_s, load_s


@dataclass(frozen=True)
class Plan:
    """How a run will be computed, and what that is predicted to cost.

    ``micro_batch * accumulation * gpus`` is the config's batch. With ``packing`` the rows of a
    micro-batch lie end to end in one sequence, without padding and with attention kept apart, so
    that every optimizer step sees the same samples either way. ``gpus`` counts the processes
    that train side by side. ``recomputed_layers`` are those that ``checkpointing`` computes again
    on the way back: all of them or, with the fused engine, as few as memory demands. Memory is that
    of one process (on the GPU, else RAM) at its peak, time is in seconds, ``answer_rows`` are the
    prompts answered at once in the evaluation. With ``split`` each process holds a part of the
    weights.
    """

    engine: str
    quantization: str
    precision: str
    device: str
    gpus: int
    micro_batch: int
    accumulation: int
    packing: bool
    checkpointing: bool
    attention: str
    optimizer: str
    trainable_parameters: int
    total_parameters: int
    memory_gib: Mapping[str, float]
    peak_gib: float
    limit_gib: float
    steps: int
    epochs: float
    tokens_per_step: float
    tokens_per_second: float
    time_s: Mapping[str, float]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    answer_rows: int = 8
    recomputed_layers: int = 0
    split: bool = False


def make_plan(
    config: RunConfig,
    machine: Machine,
    shape: ModelShape,
    rows: int,
    mean_tokens: float,
    longest_tokens: int,
    shared_tokens: int = 0,
) -> Plan:
    """Choose the fastest settings that fit ``machine``; what the config fixes stays fixed.

    ``rows`` training rows of ``mean_tokens`` on average, ``longest_tokens`` at most, prompts and
    answers together; their first ``shared_tokens`` are the same in all.

    Raises:
        InputError: something that the config fixes is impossible here, or nothing fits.
    """
    longest = max(1, min(longest_tokens, config.max_length))
    mean = max(1.0, min(mean_tokens, float(longest)))
    work = Work(config, machine, shape, mean, longest, shared_tokens)
    ground = settle_ground(config, machine, shape)
    found = list_candidates(work, ground)
    fitting = [one for one in found if one.peak_gib <= ground.limit_gib]
    if not fitting:
        raise explain_refusal(work, ground, found)
    return _write_plan(work, ground, best_of(fitting), found, rows)


def _write_plan(
    work: Work, ground: Ground, best: Candidate, found: list[Candidate], rows: int
) -> Plan:
    config, setting = work.config, best.setting
    steps = config.total_steps(rows)
    epochs = steps * config.batch / max(1, rows)
    tokens = config.batch * work.mean_tokens
    time_s = _times(work, best, steps)
    return Plan(
        engine=setting.engine,
        quantization=setting.quantization,
        precision=setting.precision,
        device=setting.device,
        gpus=ground.processes,
        micro_batch=setting.micro_batch,
        accumulation=config.batch // ground.processes // setting.micro_batch,
        packing=setting.packing,
        checkpointing=setting.checkpointing,
        attention=ground.attention,
        optimizer=setting.optimizer,
        trainable_parameters=work.shape.trainable(config.rank),
        total_parameters=work.shape.parameters,
        memory_gib={name: round(size, 3) for name, size in best.memory_gib.items()},
        peak_gib=round(best.peak_gib, 2),
        limit_gib=round(ground.limit_gib, 2),
        steps=steps,
        epochs=round(epochs, 3),
        tokens_per_step=round(tokens, 1),
        tokens_per_second=round(tokens / best.step_s, 1),
        time_s=time_s,
        reasons=(*ground.reasons, *explain_choice(ground, best, found)),
        warnings=(*ground.warnings, *warn_of(work, ground, epochs, time_s["total"])),
        answer_rows=_answer_rows(work, ground, best),
        recomputed_layers=setting.recomputed_layers,
        split=ground.split,
    )


def _times(work: Work, best: Candidate, steps: int) -> dict[str, float]:
    """Seconds by stage."""
    stages = {
        "load": load_s(best.setting, work.shape),
        "evaluate": evaluate_s(
            work.config, best.setting, work.shape, work.machine, work.mean_tokens
        ),
        "train": steps * best.step_s,
    }
    return {name: round(s, 1) for name, s in (stages | {"total": sum(stages.values())}).items()}


def _answer_rows(work: Work, ground: Ground, best: Candidate) -> int:
    standing = ("weights", "adapters", "workspace")
    free = ground.limit_gib - sum(best.memory_gib[name] for name in standing)
    width = PRECISION_BYTES[best.setting.precision]
    # A prompt is the part of a row that is not learnt, and never longer than a row.
    tokens = work.longest_tokens + work.config.max_new_tokens
    rows = answer_rows(work.shape, width, tokens, free)
    return min(rows, 8) if ground.device == "cpu" else rows
