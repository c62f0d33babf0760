"""Which run a command is about: a new one, one to resume, or one that exists."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from medcot.config.resolve import Resolved, check_path
from medcot.config.schema import RunConfig, option_name
from medcot.errors import InputError
from medcot.runs.directory import RunDirectory, new_run_path, newest_run

RESUMABLE = ("micro_batch", "checkpointing")
"""Fields that a resumed run may change: they affect memory and time, never the result."""


def choose_directory(resolved: Resolved) -> RunDirectory:
    """Return the directory that ``--out`` names, the newest run to resume, or a new one."""
    newest = newest_run() if resolved.resume and resolved.out is None else None
    return RunDirectory(resolved.out or newest or new_run_path(resolved.config))


def config_of_run(
    directory: RunDirectory,
    resolved: Resolved,
    *,
    changeable: Collection[str] = (),
    ignored: Collection[str] = (),
) -> RunConfig:
    """Return the config of an existing run, with the options that may change applied.

    ``changeable`` and ``ignored`` name fields whose given values are taken over or disregarded.

    Raises:
        InputError: any other option was given a value that the run does not have.
    """
    config = directory.config()
    changed: dict[str, Any] = {}
    for name in resolved.given:
        if name not in RunConfig.model_fields or name in ignored:
            continue
        kept, asked = getattr(config, name), getattr(resolved.config, name)
        if name in changeable:
            changed[name] = asked
        elif kept != asked:
            raise InputError(
                f"{option_name(name)} {asked}",
                f"the run in {directory.path} has {kept}",
                "omit the option, or use another --out",
            )
    return config.model_copy(update=changed)


def existing_run(path: str | None, option: str = "--run") -> RunDirectory:
    """Return the run in the folder ``path``, by default the newest one in ``runs/``.

    Raises:
        InputError: there is none; ``option`` is named as the way to give one.
    """
    found = check_path(option, path) if path else newest_run()
    if found is None:
        raise InputError(option, "no run found in runs/", f"pass {option} DIR")
    directory = RunDirectory(found)
    directory.config()
    return directory
