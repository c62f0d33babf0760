"""Estimate how long a session takes, stage by stage, and say where each figure comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.catalog import duration
from medcot.config.schema import BUNDLED_MODEL, RunConfig
from medcot.kaggle.client.probe import IMAGE
from medcot.planning.constraints import unused_packages
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan
from medcot.planning.speed_model import CPU_BANDWIDTH, stored_bytes

QUEUE_S, INSTALL_S, UNSLOTH_S, REPORT_S = 60.0, 60.0, 60.0, 60.0
"""Assumed; the report's time includes that of the executed notebook."""
HUB_MB_PER_S = 100.0
"""Assumed until a probe has measured it."""
QUANTIZE_GB_PER_S = 1.0
"""Assumed: 16-bit weights that two processes read, send to their GPUs and quantize there."""
BUNDLED_BYTES = 93e6
"""The package that carries the small model."""
GPUS = 2
"""T4s of a session."""


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The predicted ``seconds`` of one stage, and in words what they rest on."""

    stage: str
    seconds: float
    source: str


def plan_session(
    config: RunConfig, plan: Plan, image: Path = IMAGE
) -> tuple[tuple[StageEstimate, ...], float]:
    """Return the stages of a session of ``plan`` in their order, and their sum in seconds.

    Raises:
        InputError: the sizes of the config's model are not known.
    """
    unsloth = plan.device == "cuda" and not unused_packages(config)
    packages = "with unsloth" if unsloth else "without unsloth, which this run does not import"
    trained = (
        "the planner: the tutorial's own 44 minutes for 60 steps on a T4"
        if plan.device == "cuda"
        else "the planner: runs on 2 CPU cores"
    )
    stages = (
        StageEstimate("queue", QUEUE_S, "assumed: Kaggle publishes none"),
        StageEstimate("install", INSTALL_S + unsloth * UNSLOTH_S, f"assumed, {packages}"),
        _download(config, image),
        StageEstimate("load", plan.time_s["load"], "the planner: imports, and files at 1 GB/s"),
        *_quantize(config, plan),
        StageEstimate("evaluate", plan.time_s["evaluate"], _evaluation_source(plan)),
        StageEstimate("train", plan.time_s["train"], trained),
        StageEstimate("report", REPORT_S, "assumed"),
    )
    return stages, sum(one.seconds for one in stages)


def describe_session(stages: Sequence[StageEstimate], total_s: float) -> list[str]:
    """Return the estimate line by line, for the terminal."""
    lines = [f"{one.stage:<10}{duration(one.seconds, 'en'):>12}  {one.source}" for one in stages]
    return [*lines, f"{'in all':<10}{duration(total_s, 'en'):>12}  of a session of 12 h at most"]


def _download(config: RunConfig, image: Path) -> StageEstimate:
    if config.model == BUNDLED_MODEL:
        size, what = BUNDLED_BYTES, "from the package index"
    else:
        size, what = stored_bytes(find_model_spec(config)), "from the hub"
    rate, source = HUB_MB_PER_S, "assumed"
    if image.is_file():
        measured: dict[str, Any] = json.loads(image.read_text(encoding="utf-8"))
        if found := measured.get("hub_mb_per_s"):
            rate, source = float(found), "measured by a probe, one stream"
    seconds = size / 1e6 / rate
    return StageEstimate(
        "download", seconds, f"{size / 1e9:.1f} GB {what} at {rate:.0f} MB/s, {source}"
    )


def _quantize(config: RunConfig, plan: Plan) -> tuple[StageEstimate, ...]:
    """Return the stage in which 16-bit weights become 4-bit ones, if there is one."""
    spec = find_model_spec(config)
    if plan.quantization in ("none", spec.stored):
        return ()
    size = stored_bytes(spec) / 1e9
    shorter = f"none for {config.model}-bnb-4bit" if "/" in config.model else "assumed"
    source = f"{size:.1f} GB at {QUANTIZE_GB_PER_S:.0f} GB/s, assumed; {shorter}"
    return (StageEstimate("quantize", size / QUANTIZE_GB_PER_S, source),)


def _evaluation_source(plan: Plan) -> str:
    if plan.device != "cuda":
        rate = CPU_BANDWIDTH / 1e9
        return f"the planner: weights read at {rate:.1f} GB/s for each token of an answer"
    return "the planner: a T4 reads weights at 320 GB/s (data sheet) for each token of an answer"
