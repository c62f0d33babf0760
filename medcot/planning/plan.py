"""Makes the plan of a run: the fastest settings that fit, their cost, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medcot.catalog import Message, Reason, duration
from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.planning.constraints import Constraints, find_constraints
from medcot.planning.explain import explain_choice, explain_no_fit, list_warnings
from medcot.planning.memory_model import PRECISION_BYTES, max_answer_rows
from medcot.planning.model_specs import ModelSpec
from medcot.planning.search import Candidate, Workload, choose_best, list_candidates
from medcot.planning.speed_model import (
    count_rounds,
    count_seeds_at_once,
    evaluation_s,
    loading_s,
)

VALIDATION = 0.125
"""Time of the validations of a training, as a part of the rest; see
:meth:`medcot.config.schema.RunConfig.steps_between_validations`."""

CPU_ANSWER_ROWS = 32
"""Prompts answered at once on a CPU, which reads all weights for each token of all of them. With
SmolLM2-135M on two cores, 26 answers of 40 tokens took 18 s so and 24 s 16 at once. A kill loses
those that are not complete."""


@dataclass(frozen=True)
class Plan:
    """How a run is computed, and what that is predicted to cost.

    ``micro_batch * accumulation * gpus`` is the config's batch; ``gpus`` counts the training
    processes. With ``packing`` the rows of a micro-batch are concatenated into one sequence,
    without padding and without attention between rows, so that an optimizer step sees the same
    samples either way. ``checkpointing`` recomputes ``recomputed_layers`` in the backward pass:
    all layers or, with the fused engine, as few as memory demands. Memory (GPU memory, or RAM
    without a GPU) is the peak of one process. ``time_s`` is in seconds by stage. ``answer_rows``
    prompts are answered at once in the evaluation. With ``split`` each process holds a part of
    the frozen weights. ``seeds_at_once`` trainings run at the same time, each in a process.
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
    reasons: tuple[Reason, ...]
    warnings: tuple[Message, ...]
    answer_rows: int = 8
    recomputed_layers: int = 0
    split: bool = False
    seeds_at_once: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the plan as ``plan.json`` holds it: a message has a code, values and a text."""
        return asdict(self) | {
            "reasons": [reason.to_json() for reason in self.reasons],
            "warnings": [warning.to_json() for warning in self.warnings],
        }


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

    ``rows`` training rows have ``mean_tokens`` on average and ``longest_tokens`` at most, prompt
    and answer together. Their first ``shared_tokens`` are the same in every row.

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
    return _compose_plan(workload, constraints, choose_best(fitting), found, rows)


def describe(plan: Plan) -> list[str]:
    """Render a plan for the terminal, line by line, in English."""
    trained = plan.trainable_parameters / plan.total_parameters
    step = f"{plan.micro_batch} rows x {plan.accumulation}" + (
        f" x {plan.gpus} processes" if plan.gpus > 1 else ""
    )
    weights = {
        "4bit": "4-bit weights",
        "8bit": "8-bit weights",
        "fp8": f"{plan.precision} weights multiplied in fp8",
        "none": f"{plan.precision} weights",
    }
    on = {True: "on", False: "off"}
    switches = f"packing {on[plan.packing]}, checkpointing {on[plan.checkpointing]}"
    parts = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory_gib.items())
    stages = [(name, duration(s, "en")) for name, s in plan.time_s.items() if name != "total"]
    return [
        f"parameters  {plan.trainable_parameters:,} of {plan.total_parameters:,} trained"
        f" ({trained:.2%})",
        f"engine      {plan.engine} on {plan.device}, {weights[plan.quantization]},"
        f" {plan.precision}, {plan.attention}",
        f"step        {step}, {switches}; about {plan.tokens_per_step:,.0f} tokens",
        f"training    {plan.steps:,} steps, {plan.epochs:.2f} epochs,"
        f" about {plan.tokens_per_second:,.0f} tokens/s",
        f"memory      {plan.peak_gib:.1f} GiB of {plan.limit_gib:.1f} GiB: {parts}",
        f"time        {duration(plan.time_s['total'], 'en')}:"
        f" {', '.join(f'{name} {time}' for name, time in stages)}",
        *(f"because     {reason}" for reason in plan.reasons),
        *(f"warning     {warning}" for warning in plan.warnings),
    ]


def _compose_plan(
    workload: Workload,
    constraints: Constraints,
    best: Candidate,
    found: Sequence[Candidate],
    rows: int,
) -> Plan:
    config, step = workload.config, best.step
    steps = config.total_steps(rows)
    epochs = steps * config.batch / max(1, rows)
    tokens = config.batch * workload.mean_tokens
    answer_rows = _answer_rows(workload, constraints, best)
    train_s = steps * best.step_s * (1 + (VALIDATION if config.validation_samples else 0))
    at_once = count_seeds_at_once(
        config.seeds, workload.machine, step.device, train_s, best.peak_gib, constraints.limit_gib
    )
    values = {"n": at_once, "cores": workload.machine.cpu_cores, "gib": at_once * best.peak_gib}
    shared = (
        (Reason("reason_seeds_on_cores", values),) if at_once > 1 and step.device == "cpu" else ()
    )
    time_s = _stage_times_s(workload, best, train_s, at_once, answer_rows)
    warnings = list_warnings(workload, constraints, epochs, time_s["total"])
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
        reasons=(*constraints.reasons, *explain_choice(constraints, best, found), *shared),
        warnings=(*constraints.warnings, *warnings),
        answer_rows=answer_rows,
        recomputed_layers=step.recomputed_layers,
        split=constraints.split,
        seeds_at_once=at_once,
    )


def _stage_times_s(
    workload: Workload, best: Candidate, train_s: float, at_once: int, answer_rows: int
) -> dict[str, float]:
    """Return the seconds of each stage and their total, of all seeds together."""
    config = workload.config
    stages = {
        "load": loading_s(best.step, workload.spec),
        "evaluate": evaluation_s(
            config, best.step, workload.spec, workload.machine, workload.mean_tokens, answer_rows
        ),
        "train": train_s * count_rounds(config.seeds, at_once, best.step.device),
    }
    return {name: round(s, 1) for name, s in (stages | {"total": sum(stages.values())}).items()}


def _answer_rows(workload: Workload, constraints: Constraints, best: Candidate) -> int:
    standing = ("weights", "adapters", "workspace")
    free = constraints.limit_gib - sum(best.memory_gib[name] for name in standing)
    width = PRECISION_BYTES[best.step.precision]
    # A prompt is the unlabelled part of a row, so never longer than a row.
    tokens = workload.longest_tokens + workload.config.max_new_tokens
    rows = max_answer_rows(workload.spec, width, tokens, free)
    return min(rows, CPU_ANSWER_ROWS) if constraints.device == "cpu" else rows
