"""Predicts the measured runs of the calibration table, to see how far the cost models are off."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from medcot.config.schema import EngineName
from medcot.hardware.machine import named_machine
from medcot.planning.engine_traits import TRAITS
from medcot.planning.memory_model import (
    Precision,
    Quantization,
    StepConfig,
    longest_pass_tokens,
    predict_memory,
)
from medcot.planning.model_specs import look_up_model_spec
from medcot.planning.speed_model import gradient_exchange_s, micro_batch_s


@dataclass(frozen=True)
class RecipeRun:
    """A measured run of the tutorial's recipe: ``rows`` of ``row_tokens`` tokens in a pass."""

    engine: EngineName
    quantization: Quantization
    checkpointing: bool
    rows: int
    row_tokens: int
    tokens_per_second: int
    peak_gib: float


@dataclass(frozen=True)
class MeasuredRun:
    """A run of ``bench/training.py`` on an H100.

    ``tokens_per_second`` is the median, ``low`` and ``high`` its range. They are None for runs
    measured before a change that made them faster, which calibrate memory alone.
    """

    engine: EngineName
    quantization: Quantization
    precision: Precision
    gpus: int
    micro_batch: int
    accumulation: int
    packing: bool
    recomputed_layers: int
    rank: int
    tokens_per_second: int | None
    low: int | None
    high: int | None
    peak_gib: float


@dataclass(frozen=True)
class OwnRuns:
    """Runs of ``bench/training.py``, and the lengths in tokens of the rows that they trained on."""

    mean_tokens: float
    longest_tokens: int
    shared_tokens: int
    runs: tuple[MeasuredRun, ...]


@dataclass(frozen=True)
class MeasuredRuns:
    """What ``measured_runs.json`` holds; times in seconds, memory in GiB."""

    runs: tuple[RecipeRun, ...]
    own: OwnRuns


@cache
def load_measured_runs() -> MeasuredRuns:
    """Load the measured runs that come with the package."""
    table = files("medcot.planning") / "measured_runs.json"
    return TypeAdapter(MeasuredRuns).validate_json(table.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Prediction:
    """The peak memory and the throughput that the planner expects of a run."""

    peak_gib: float
    tokens_per_second: float


def predict_run(run: MeasuredRun) -> Prediction:
    """Predict the memory and throughput of a measured run."""
    own, spec = load_measured_runs().own, look_up_model_spec("deepseek-r1-distill-llama-8b")
    assert spec is not None
    mean, longest = own.mean_tokens, own.longest_tokens
    packs = TRAITS[run.engine].packs
    step = StepConfig(
        run.engine, "cuda", run.quantization, run.precision, run.micro_batch,
        run.packing, run.recomputed_layers, "adamw_8bit",
        shared_tokens=own.shared_tokens if packs else 0,
        balanced_passes=run.accumulation * run.gpus if packs else 1,
    )  # fmt: skip
    tokens = longest_pass_tokens(step, mean, longest)
    peak = sum(predict_memory(step, spec, run.rank, tokens).values())
    once = micro_batch_s(step, spec, named_machine("H100"), mean, longest, run.rank)
    step_s = run.accumulation * once + gradient_exchange_s(step, run.gpus)
    rows = run.micro_batch * run.accumulation * run.gpus
    return Prediction(peak, rows * mean / step_s)
