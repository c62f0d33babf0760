"""What the notebook was started with, and what its controls offer, from `RunConfig`'s fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.catalog import say
from medcot.config.presets import make_config
from medcot.config.resolve import PLACE_OPTIONS, from_text, resolve, value_type
from medcot.config.schema import (
    BUNDLED_DATA,
    BUNDLED_MODEL,
    MEDICAL_O1,
    R1_LLAMA_8B,
    RunConfig,
    bounds,
)
from medcot.errors import InputError, nearest
from medcot.hardware.machine import choose_preset, detect_machine, named_machine
from medcot.records import Language
from medcot.runs.directory import RunDirectory

SLIDERS = ("rank", "alpha", "samples", "learning_rate", "max_length", "batch")
"""The fields that have a slider, besides the length of training (``steps`` or ``epochs``)."""

MACHINES = ("here", "T4", "2xT4", "L4", "A10G", "RTX 4090", "A100", "H100", "H200")
MODELS = (BUNDLED_MODEL, R1_LLAMA_8B)
DATASETS = (BUNDLED_DATA, MEDICAL_O1)

_MACHINE_OF = {
    "tutorial": "T4",
    "kaggle-t4": "T4",
    "kaggle-t4x2": "2xT4",
    "gpu-24g": "RTX 4090",
    "gpu-80g": "H100",
}
_BY_POWERS_OF_TWO = ("rank", "alpha", "batch", "max_length")
_SMALLEST = {"learning_rate": 1e-6, "epochs": 0.1}
"""The first mark where the field only says "above 0"."""


@dataclass(frozen=True)
class Start:
    """What the notebook was started with: the same options as every other way in.

    ``headless`` trains while the page is made, without a click; ``run`` shows a finished run
    instead of training; ``out`` is where a training goes. ``interface`` is the page's language,
    by default that of the data.
    """

    config: RunConfig
    interface: Language
    preset_reason: str = ""
    headless: bool = False
    run: Path | None = None
    out: Path | None = None
    given: Mapping[str, Any] = ()  # type: ignore[assignment]


def read_start(arguments: Mapping[str, Any]) -> Start:
    """The start that command-line arguments ask for; a flag without a value counts as given.

    Raises:
        InputError: an unknown option, a refused value, or a ``--run`` that is no run.
    """
    # As a script, the "--" before the options is among them, without a name.
    named = {name.replace("-", "_"): value for name, value in arguments.items() if name}
    headless = named.pop("headless", None) is not None
    run, interface = named.pop("run", None), named.pop("interface", None)
    if interface not in (None, "en", "zh"):
        raise InputError("--interface", f"found {interface!r}", "expected en or zh")
    known = [*RunConfig.model_fields, *PLACE_OPTIONS]
    for name in named:
        if name not in known:
            option = "--" + name.replace("_", "-")
            needs = f"see medcot run --help{nearest(name, known)}"
            raise InputError(option, "unknown option", needs)
    options = {name: _value(name, value) for name, value in named.items()}
    if run is not None:
        path = Path(str(run))
        config = RunDirectory(path).config()
        return Start(config, interface or config.language, headless=headless, run=path)
    resolved = resolve(options, lambda: choose_preset(detect_machine()))
    return Start(
        resolved.config,
        interface or resolved.config.language,
        resolved.preset_reason,
        headless,
        out=resolved.out,
        given={name: value for name, value in resolved.given.items() if name not in PLACE_OPTIONS},
    )


def machine_for(preset: str) -> str:
    """The name of ``MACHINES`` that a preset is planned for: this one, where it has a GPU."""
    if preset not in _MACHINE_OF or detect_machine().gpus:
        return "here"
    return _MACHINE_OF[preset]


def starting_config(start: Start, preset: str) -> RunConfig:
    """The config that the controls begin with: ``preset`` under what was given at the start."""
    if preset == start.config.preset:
        return start.config
    return make_config(preset, dict(start.given))


def marks(field: str, value: float | None = None) -> list[float]:
    """The values that a slider of ``field`` stops at, within the field's bounds, ``value`` too.

    Even steps of a ratio rather than of a difference: what they set works by its magnitude.
    """
    low, high = bounds(field)
    low, high = _SMALLEST.get(field, low) or 0, high or 0
    if field in _BY_POWERS_OF_TWO:
        found = {low, high} | {2**n for n in range(21)} | {3 * 2**n for n in range(20)}
    else:
        found = {low, high} | {m * 10.0**n for n in range(-6, 7) for m in (1, 2, 3, 5)}
    if value is not None:
        found.add(value)
    whole = value_type(field) is int
    kept = {int(mark) if whole else float(f"{mark:.6g}") for mark in found if low <= mark <= high}
    return sorted(kept - {0} if whole and low > 0 else kept)


def explain(field: str, language: str) -> str:
    """Return what a setting means: in English the description of its field in `RunConfig`."""
    known = RunConfig.model_fields.get(field)
    if language != "en" or known is None:
        return say(f"help_{field}", language)
    description = known.description or ""
    return f"{description[:1].upper()}{description[1:]}."


def length_field(config: RunConfig) -> str:
    """The field that says how long ``config`` trains: ``steps`` or ``epochs``."""
    return "epochs" if config.steps is None else "steps"


def shown_values(config: RunConfig) -> dict[str, Any]:
    """The fields of ``config`` that have a control, with their values."""
    names = ("preset", "model", "dataset", "language", *SLIDERS, length_field(config))
    return {name: getattr(config, name) for name in names}


def offered(known: Sequence[str], value: str) -> list[str]:
    """``known`` with ``value``, which a start may have named, in front where it is not there."""
    return list(known) if value in known else [value, *known]


def changed_config(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``base`` with the controls' values.

    Raises:
        InputError: a value that its field refuses.
    """
    given = base.model_dump(exclude={"preset", "steps", "epochs"}) | dict(values)
    length = length_field(base)
    return make_config(base.preset, {length: getattr(base, length)} | given)


def machine_of(name: str) -> Any:
    """The machine that a name of ``MACHINES`` stands for."""
    return detect_machine() if name == "here" else named_machine(name)


def _value(name: str, value: Any) -> Any:
    """A command line gives text, or numbers already read; ``mcq`` may come several times."""
    if isinstance(value, list):
        return tuple(str(one) for one in value)
    if value == "" and name in ("resume", "json"):
        return True
    return from_text(name, str(value))
