"""The planner: the fastest settings that fit, what they cost, and why. Pure and quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.planning.constraints import Constraints, find_constraints
from medcot.planning.explain import explain_choice, explain_no_fit, list_warnings
from medcot.planning.memory_model import PRECISION_BYTES, answer_rows
from medcot.planning.model_specs import ModelSpec
from medcot.planning.search import Candidate, Workload, choose_best, list_candidates
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
    spec: ModelSpec,
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
    workload = Workload(config, machine, spec, mean, longest, shared_tokens)
    constraints = find_constraints(config, machine, spec)
    found = list_candidates(workload, constraints)
    fitting = [one for one in found if one.peak_gib <= constraints.limit_gib]
    if not fitting:
        raise explain_no_fit(workload, constraints, found)
    return _write_plan(workload, constraints, choose_best(fitting), found, rows)


def _write_plan(
    workload: Workload, constraints: Constraints, best: Candidate, found: list[Candidate], rows: int
) -> Plan:
    config, step = workload.config, best.step
    steps = config.total_steps(rows)
    epochs = steps * config.batch / max(1, rows)
    tokens = config.batch * workload.mean_tokens
    time_s = _times(workload, best, steps)
    return Plan(
        engine=step.engine,
        quantization=step.quantization,
        precision=step.precision,
        device=step.device,
        gpus=constraints.processes,
        micro_batch=step.micro_batch,
        accumulation=config.batch // constraints.processes // step.micro_batch,
        packing=step.packing,
        checkpointing=step.checkpointing,
        attention=constraints.attention,
        optimizer=step.optimizer,
        trainable_parameters=workload.spec.lora_parameters(config.rank),
        total_parameters=workload.spec.parameters,
        memory_gib={name: round(size, 3) for name, size in best.memory_gib.items()},
        peak_gib=round(best.peak_gib, 2),
        limit_gib=round(constraints.limit_gib, 2),
        steps=steps,
        epochs=round(epochs, 3),
        tokens_per_step=round(tokens, 1),
        tokens_per_second=round(tokens / best.step_s, 1),
        time_s=time_s,
        reasons=(*constraints.reasons, *explain_choice(constraints, best, found)),
        warnings=(
            *constraints.warnings,
            *list_warnings(workload, constraints, epochs, time_s["total"]),
        ),
        answer_rows=_answer_rows(workload, constraints, best),
        recomputed_layers=step.recomputed_layers,
        split=constraints.split,
    )


def _times(workload: Workload, best: Candidate, steps: int) -> dict[str, float]:
    """Seconds by stage."""
    stages = {
        "load": load_s(best.step, workload.spec),
        "evaluate": evaluate_s(
            workload.config, best.step, workload.spec, workload.machine, workload.mean_tokens
        ),
        "train": steps * best.step_s,
    }
    return {name: round(s, 1) for name, s in (stages | {"total": sum(stages.values())}).items()}


def _answer_rows(workload: Workload, constraints: Constraints, best: Candidate) -> int:
    standing = ("weights", "adapters", "workspace")
    free = constraints.limit_gib - sum(best.memory_gib[name] for name in standing)
    width = PRECISION_BYTES[best.step.precision]
    # A prompt is the part of a row that is not learnt, and never longer than a row.
    tokens = workload.longest_tokens + workload.config.max_new_tokens
    rows = answer_rows(workload.spec, width, tokens, free)
    return min(rows, 8) if constraints.device == "cpu" else rows
