"""Reads the notebook's options, and derives its controls from `RunConfig`'s fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medcot.catalog import Message, say
from medcot.config.presets import make_config
from medcot.config.resolve import PLACE_OPTIONS, check_path, from_text, resolve, value_type
from medcot.config.schema import (
    BUNDLED_DATA,
    BUNDLED_MODEL,
    MEDICAL_O1,
    R1_LLAMA_8B,
    RunConfig,
    bounds,
)
from medcot.credentials import prepare_credentials
from medcot.errors import InputError, nearest
from medcot.hardware.machine import Machine, choose_preset, detect_machine, named_machine
from medcot.network import prepare_network
from medcot.records import Language
from medcot.runs.directory import RunDirectory

SLIDERS = ("rank", "alpha", "samples", "learning_rate", "max_length", "batch")
"""Fields with a slider, besides the length of training (``steps`` or ``epochs``)."""

MACHINES = ("here", "T4", "2xT4", "L4", "A10G", "RTX 4090", "A100", "H100", "H200")
MODELS = (BUNDLED_MODEL, R1_LLAMA_8B)
DATASETS = (BUNDLED_DATA, MEDICAL_O1)

_MACHINE_OF = {
    "tutorial": "T4",
    "kaggle-t4": "2xT4",
    "kaggle-t4x2": "2xT4",
    "gpu-24g": "RTX 4090",
    "gpu-80g": "H100",
}
_BY_POWERS_OF_TWO = ("rank", "alpha", "batch", "max_length")
_SMALLEST = {"learning_rate": 1e-6, "epochs": 0.1}
"""First mark of a field whose lower bound is "above 0"."""


@dataclass(frozen=True)
class Start:
    """The options that the notebook was started with, the same as on the command line.

    ``headless`` trains while the page is made, without a click; ``run`` shows a finished run
    instead of training; ``out`` is the run directory of a training. ``interface`` is the page's
    language, by default that of the data; ``given`` holds the fields that were set.
    """

    config: RunConfig
    interface: Language
    preset_reason: str | Message = ""
    headless: bool = False
    run: Path | None = None
    out: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_start(arguments: Mapping[str, Any], words: Sequence[str] = ()) -> Start:
    """Read command-line arguments; a flag without a value counts as given.

    Args:
        arguments: The options as marimo reads them: it makes numbers of texts like ``1e3``.
        words: The words of the command line, from which the texts are taken.

    Raises:
        InputError: an unknown option, a refused value, a ``--run`` that is no run, or a secret that
            no request could carry.
    """
    prepare_credentials()
    prepare_network()
    # As a script, the "--" before the options is among them, without a name.
    texts = _read_texts(words)
    named: dict[str, Any] = {}
    for given, value in arguments.items():
        if name := given.partition(" ")[0]:  # marimo splits "--mcq a=b" at the "="
            named[name.replace("-", "_")] = texts.get(name, value)
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
        path = check_path("--run", str(run))
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


def _read_texts(words: Sequence[str]) -> dict[str, str | list[str]]:
    """Return the texts of the options in ``words``; the values of a repeated one as a list."""
    joined: list[str] = []
    own = words[words.index("--") + 1 :] if "--" in words else words
    for word in own:
        if word.startswith("-"):
            joined.append(word)
        elif joined:
            joined[-1] += f" {word}"
    found: dict[str, list[str]] = {}
    for option in joined:
        name, _, value = re.sub("[= ]", "\0", option.lstrip("-"), count=1).partition("\0")
        found.setdefault(name, []).append(value.strip())
    return {name: many if len(many) > 1 else many[0] for name, many in found.items()}


def machine_for(preset: str) -> str:
    """Return the one of ``MACHINES`` to plan a preset for: this machine if it has a GPU."""
    if preset not in _MACHINE_OF or detect_machine().gpus:
        return "here"
    return _MACHINE_OF[preset]


def starting_config(start: Start, preset: str) -> RunConfig:
    """Return the controls' first config: ``preset`` with the options of the start on top."""
    if preset == start.config.preset:
        return start.config
    return make_config(preset, dict(start.given))


def marks(name: str, value: float | None = None) -> list[float]:
    """Return the values that a slider of the field ``name`` stops at, ``value`` among them.

    They lie within the field's bounds, evenly by ratio: what they set works by its magnitude.
    """
    low, high = bounds(name)
    low, high = _SMALLEST.get(name, low) or 0, high or 0
    if name in _BY_POWERS_OF_TWO:
        found = {low, high} | {2**n for n in range(21)} | {3 * 2**n for n in range(20)}
    else:
        found = {low, high} | {m * 10.0**n for n in range(-6, 7) for m in (1, 2, 3, 5)}
    if value is not None:
        found.add(value)
    whole = value_type(name) is int
    kept = {int(mark) if whole else float(f"{mark:.6g}") for mark in found if low <= mark <= high}
    return sorted(kept - {0} if whole and low > 0 else kept)


def explain(name: str, language: str) -> str:
    """Return what a setting means: in English the description of its field in `RunConfig`."""
    known = RunConfig.model_fields.get(name)
    if language != "en" or known is None:
        return say(f"help_{name}", language)
    description = known.description or ""
    return f"{description[:1].upper()}{description[1:]}."


def length_field(config: RunConfig) -> str:
    """Return the field that sets the length of training: ``steps`` or ``epochs``."""
    return "epochs" if config.steps is None else "steps"


def shown_values(config: RunConfig) -> dict[str, Any]:
    """Return the fields of ``config`` that have a control, with their values."""
    names = ("preset", "model", "dataset", "language", *SLIDERS, length_field(config))
    return {name: getattr(config, name) for name in names}


def offered(known: Sequence[str], value: str) -> list[str]:
    """Return ``known`` with ``value`` in front if it is not among them."""
    return list(known) if value in known else [value, *known]


def changed_config(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return ``base`` with the controls' values on top.

    Raises:
        InputError: a value that its field refuses.
    """
    given = base.model_dump(exclude={"preset", "steps", "epochs"}) | dict(values)
    length = length_field(base)
    return make_config(base.preset, {length: getattr(base, length)} | given)


def machine_of(name: str) -> Machine:
    """Return the machine that one of ``MACHINES`` names."""
    return detect_machine() if name == "here" else named_machine(name)


def _value(name: str, value: Any) -> Any:
    """Read one option: text, a number already parsed, or a list where it was repeated."""
    if isinstance(value, list):
        return tuple(str(one) for one in value)
    if value == "" and name in ("resume", "json"):
        return True
    return from_text(name, str(value))
