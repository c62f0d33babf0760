"""Loads the calibration table: measured runs, and the coefficients fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from medcot.config.schema import EngineName
from medcot.planning.memory_model import Precision, Quantization


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
class PeakShare:
    """Share of a GPU's 16-bit peak that a pass reaches, without and with recomputation."""

    share: float
    recompute_share: float


@dataclass(frozen=True)
class EngineSpeed(PeakShare):
    """The coefficients of an engine on CUDA.

    ``layer_pass_s`` is the time to launch the kernels of one layer's forward pass.
    ``recompute_overlaps`` tells whether launches overlap with arithmetic under recomputation, too.
    """

    layer_pass_s: float
    recompute_overlaps: bool


@dataclass(frozen=True)
class CpuSpeed:
    """The coefficients of a CPU."""

    layer_pass_s: float
    tflops_per_core: float


@dataclass(frozen=True)
class Calibration:
    """What ``calibration.json`` holds; times in seconds, memory in GiB.

    ``device`` is the GPU of the measured runs. ``devices`` holds the shares of other GPUs, by a
    part of their name. ``exchange_s`` is the time of a gradient exchange.
    """

    device: str
    runs: tuple[RecipeRun, ...]
    own: OwnRuns
    exchange_s: float
    engines: Mapping[EngineName, EngineSpeed]
    devices: Mapping[str, PeakShare]
    cpu: CpuSpeed


@cache
def load_calibration() -> Calibration:
    """Load the calibration table that comes with the package."""
    table = files("medcot.planning") / "calibration.json"
    return TypeAdapter(Calibration).validate_json(table.read_text(encoding="utf-8"))
