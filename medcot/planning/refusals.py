"""How a config that cannot be had on a machine is refused: in one line, by what set it."""

from __future__ import annotations

from typing import Any

from medcot.config.presets import PRESETS
from medcot.config.schema import RunConfig, option_name
from medcot.errors import InputError

NO_CUDA = "needs a CUDA GPU"
GPU_EXTRA = "run pip install 'medcot[gpu]'"


def refuse(config: RunConfig, field: str, why: str, needs: str) -> InputError:
    """Return the error for a field this machine rules out; it names the preset that set it.

    ``why`` completes ``OPTION VALUE …`` with a verb; ``needs`` says what to do.
    """
    value = getattr(config, field)
    if not from_preset(config, field):
        return InputError(f"{option_name(field)} {value}", why, needs)
    got = f"its {option_name(field)} {value} {why}"
    # A preset is for a kind of machine: elsewhere another one is better than a changed one.
    remedy = GPU_EXTRA if GPU_EXTRA in needs else "use a CUDA GPU"
    return InputError(f"--preset {config.preset}", got, f"{remedy}, or --preset demo")


def from_preset(config: RunConfig, field: str) -> bool:
    """Whether the config's preset set ``field`` to what it is."""
    preset: dict[str, Any] = PRESETS.get(config.preset, {})
    return field in preset and preset[field] == getattr(config, field)
