"""Enumerates the step configs that the constraints leave open, and predicts their cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.planning.constraints import Constraints
from medcot.planning.engine_traits import TRAITS
from medcot.planning.memory_model import StepConfig, longest_pass_tokens, predict_memory
from medcot.planning.model_specs import ModelSpec
from medcot.planning.speed_model import gradient_exchange_s, micro_batch_s

BY_EXACTNESS = ("none", "fp8", "8bit", "4bit")
"""Formats of the frozen weights, the most exact first."""


@dataclass(frozen=True)
class Workload:
    """What a run computes, as far as memory and time depend on it. Lengths are in tokens."""

    config: RunConfig
    machine: Machine
    spec: ModelSpec
    mean_tokens: float
    longest_tokens: int
    shared_tokens: int = 0


@dataclass(frozen=True)
class Candidate:
    """A step config with its peak memory in GiB and the seconds of an optimizer step."""

    step: StepConfig
    memory_gib: Mapping[str, float]
    peak_gib: float
    step_s: float


def list_candidates(workload: Workload, constraints: Constraints) -> list[Candidate]:
    """List all step configs that the constraints allow, the fastest first."""
    return sorted(_candidates(workload, constraints), key=lambda one: one.step_s)


def choose_best(fitting: list[Candidate]) -> Candidate:
    """Choose the fastest; break ties by exactness of the weights, then by memory."""
    fastest = min(fitting, key=lambda one: one.step_s)
    limit = fastest.step.traits.tie_ratio * fastest.step_s
    close = [one for one in fitting if one.step_s <= limit]
    return min(close, key=lambda c: (BY_EXACTNESS.index(c.step.quantization), c.peak_gib))


def peak_gib(workload: Workload, step: StepConfig) -> float:
    """Predict the peak memory in GiB of ``step`` on the longest micro-batch to expect."""
    return sum(_memory(workload, step).values())


def _candidates(workload: Workload, constraints: Constraints) -> Iterator[Candidate]:
    for quantization in constraints.quantizations:
        for micro_batch in constraints.micro_batches:
            accumulation = workload.config.batch // constraints.processes // micro_batch
            packs = TRAITS[constraints.engine].packs
            step = StepConfig(
                engine=constraints.engine,
                device=constraints.device,
                quantization=quantization,
                precision=constraints.precision,
                micro_batch=micro_batch,
                packing=constraints.packing,
                recomputed_layers=0,
                optimizer=workload.config.optimizer,
                row_attention=constraints.row_attention,
                shards=constraints.processes if constraints.split else 1,
                shared_tokens=workload.shared_tokens if packs else 0,
                balanced_passes=accumulation * constraints.processes if packs else 1,
            )
            for layers in _recomputable(workload, constraints, step):
                one = replace(step, recomputed_layers=layers)
                yield _cost(workload, one, accumulation, constraints.processes)


def _recomputable(workload: Workload, constraints: Constraints, step: StepConfig) -> list[int]:
    """List how many layers to try to recompute: none, all and, if the engine can, as few as fit."""
    layers = workload.spec.layers
    found = [layers if switch else 0 for switch in constraints.checkpointings]
    if not step.traits.packs or len(found) == 1 or layers < 3:
        return found
    # Beyond the first, each recomputed layer saves the same.
    most, least = (
        peak_gib(workload, replace(step, recomputed_layers=count)) for count in (1, layers)
    )
    if least <= constraints.limit_gib < most:
        excess = (most - constraints.limit_gib) / (most - least)
        found.insert(1, min(layers, 1 + math.ceil(excess * (layers - 1))))
    elif most <= constraints.limit_gib:
        found.insert(1, 1)
    return found


def _cost(workload: Workload, step: StepConfig, accumulation: int, processes: int) -> Candidate:
    memory = _memory(workload, step)
    once = micro_batch_s(
        step,
        workload.spec,
        workload.machine,
        workload.mean_tokens,
        workload.longest_tokens,
        workload.config.rank,
    )
    step_s = accumulation * once + gradient_exchange_s(step, processes)
    return Candidate(step, memory, sum(memory.values()), step_s)


def _memory(workload: Workload, step: StepConfig) -> dict[str, float]:
    tokens = longest_pass_tokens(step, workload.mean_tokens, workload.longest_tokens)
    return predict_memory(step, workload.spec, workload.config.rank, tokens)
