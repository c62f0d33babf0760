"""Loads the coefficients that are fitted to the runs of :mod:`medcot.planning.validation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from medcot.config.schema import EngineName


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
    exchange_s: float
    engines: Mapping[EngineName, EngineSpeed]
    devices: Mapping[str, PeakShare]
    cpu: CpuSpeed


@cache
def load_calibration() -> Calibration:
    """Load the calibration table that comes with the package."""
    table = files("medcot.planning") / "calibration.json"
    return TypeAdapter(Calibration).validate_json(table.read_text(encoding="utf-8"))
