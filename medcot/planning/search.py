"""Every way of running a step that config and machine leave open, with its cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from medcot.config.schema import RunConfig
from medcot.hardware.machine import Machine
from medcot.planning.constraints import Ground
from medcot.planning.memory_model import Setting, longest_pass, predict_memory
from medcot.planning.model_specs import ModelShape
from medcot.planning.speed_model import fixed_step_s, micro_step_s

EXACTNESS = ("none", "fp8", "8bit", "4bit")
"""Weights from the most exact to the least."""

CLOSE = {"fused": 1.03, "unsloth": 1.1, "transformers": 1.1}
"""Step times within this ratio count as equal: each engine's time model is no better than that."""


@dataclass(frozen=True)
class Work:
    """What is to be computed, as far as memory and time depend on it."""

    config: RunConfig
    machine: Machine
    shape: ModelShape
    mean_tokens: float
    longest_tokens: int
    shared_tokens: int = 0


@dataclass(frozen=True)
class Candidate:
    """A setting with its peak memory in GiB and its seconds per optimizer step."""

    setting: Setting
    memory_gib: Mapping[str, float]
    peak_gib: float
    step_s: float


def list_candidates(work: Work, ground: Ground) -> list[Candidate]:
    """All of them, the fastest first."""
    return sorted(_candidates(work, ground), key=lambda one: one.step_s)


def best_of(fitting: list[Candidate]) -> Candidate:
    """The fastest; among those as fast the most exact, then the one with the least memory."""
    fastest = min(fitting, key=lambda one: one.step_s)
    limit = CLOSE[fastest.setting.engine] * fastest.step_s
    close = [one for one in fitting if one.step_s <= limit]
    return min(close, key=lambda c: (EXACTNESS.index(c.setting.quantization), c.peak_gib))


def peak_gib(work: Work, setting: Setting) -> float:
    """Peak memory of ``setting`` on the longest micro-batch to expect."""
    return sum(_memory(work, setting).values())


def _candidates(work: Work, ground: Ground) -> Iterator[Candidate]:
    for quantization in ground.quantizations:
        for micro_batch in ground.micro_batches:
            accumulation = work.config.batch // ground.processes // micro_batch
            fused = ground.engine == "fused"
            setting = Setting(
                engine=ground.engine,
                device=ground.device,
                quantization=quantization,
                precision=ground.precision,
                micro_batch=micro_batch,
                packing=ground.packing,
                recomputed_layers=0,
                optimizer=work.config.optimizer,
                by_row=ground.by_row,
                shards=ground.processes if ground.split else 1,
                shared_tokens=work.shared_tokens if fused else 0,
                balanced_passes=accumulation * ground.processes if fused else 1,
            )
            for layers in _recomputable(work, ground, setting):
                one = replace(setting, recomputed_layers=layers)
                yield _cost(work, one, accumulation, ground.processes)


def _recomputable(work: Work, ground: Ground, setting: Setting) -> list[int]:
    """How many layers may be recomputed: none, all, and where one can choose as few as fit."""
    layers = work.shape.layers
    found = [layers if switch else 0 for switch in ground.checkpointings]
    if ground.engine != "fused" or len(found) == 1 or layers < 3:
        return found
    # Beyond the first, each recomputed layer saves the same.
    most, least = (
        peak_gib(work, replace(setting, recomputed_layers=count)) for count in (1, layers)
    )
    if least <= ground.limit_gib < most:
        excess = (most - ground.limit_gib) / (most - least)
        found.insert(1, min(layers, 1 + math.ceil(excess * (layers - 1))))
    elif most <= ground.limit_gib:
        found.insert(1, 1)
    return found


def _cost(work: Work, setting: Setting, accumulation: int, processes: int) -> Candidate:
    memory = _memory(work, setting)
    once = micro_step_s(
        setting, work.shape, work.machine, work.mean_tokens, work.longest_tokens, work.config.rank
    )
    step_s = accumulation * once + fixed_step_s(setting, processes)
    return Candidate(setting, memory, sum(memory.values()), step_s)


def _memory(work: Work, setting: Setting) -> dict[str, float]:
    tokens = longest_pass(setting, work.mean_tokens, work.longest_tokens)
    return predict_memory(setting, work.shape, work.config.rank, tokens)
