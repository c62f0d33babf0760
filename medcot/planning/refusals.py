"""How a config that cannot be had on a machine is refused: in one line, by what set it."""

from __future__ import annotations

from typing import Any

from medcot.config.presets import PRESETS
from medcot.config.schema import RunConfig, option_name
from medcot.errors import InputError

NO_CUDA = "without a CUDA GPU"
GPU_EXTRA = "pip install 'medcot[gpu]'"


def refuse(config: RunConfig, field: str, why: str, needs: str) -> InputError:
    """The error for a field that cannot be had here; it names the preset where that set it."""
    value = getattr(config, field)
    if not from_preset(config, field):
        return InputError(option_name(field), f"{value} {why}", needs)
    got = f"{config.preset} ({option_name(field)} {value}) {why}"
    # A preset is for a kind of machine: elsewhere another one is better than a changed one.
    return InputError(
        "--preset", got, f"{GPU_EXTRA if GPU_EXTRA in needs else 'a CUDA GPU'}, or --preset demo"
    )


def from_preset(config: RunConfig, field: str) -> bool:
    """Whether the config's preset set ``field`` to what it is."""
    preset: dict[str, Any] = PRESETS.get(config.preset, {})
    return field in preset and preset[field] == getattr(config, field)
