"""Finds a run's local files again from another working directory than the one it was made in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from medcot.config.schema import BETWEEN_DATA_SETS, RunConfig

PATH_FIELDS = ("model", "dataset", "mcq", "judge_criteria")
"""The options that may name a file or folder."""


def resolve_local_paths(config: RunConfig, origin: str | None) -> RunConfig:
    """Return ``config`` with the relative paths that exist below ``origin`` made absolute.

    Args:
        origin: The working directory that the paths are relative to. Nothing changes where it is
            the present one, unknown, or on another machine.
    """
    given = {name: getattr(config, name) for name in PATH_FIELDS}
    return config.model_copy(update=resolve_values(given, origin))


def resolve_values(values: Mapping[str, Any], origin: str | None) -> dict[str, Any]:
    """Return the values of a config with relative paths made absolute; see the function above."""
    found = dict(values)
    if not origin or not Path(origin).is_dir() or Path(origin).samefile(Path.cwd()):
        return found
    for name in PATH_FIELDS:
        value = found.get(name)
        if isinstance(value, str):
            parts = [_resolve(one, origin) for one in value.split(BETWEEN_DATA_SETS)]
            found[name] = BETWEEN_DATA_SETS.join(parts)
        elif isinstance(value, (list, tuple)):
            parts = [_resolve(str(one), origin) for one in cast("list[Any]", value)]
            found[name] = type(value)(parts)  # pyright: ignore[reportUnknownArgumentType]
    return found


def _resolve(value: str, origin: str) -> str:
    path = Path(origin, value)
    return str(path) if value and path.exists() else value
