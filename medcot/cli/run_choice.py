"""Which run a command is about: a new one, one to resume, or one that exists."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from medcot.config.resolve import Resolved, check_path
from medcot.config.schema import RunConfig, option_name
from medcot.errors import InputError
from medcot.runs.directory import RunDirectory, new_run_path, newest_run
from medcot.runs.local_paths import resolve_local_paths

RESUMABLE = ("micro_batch", "checkpointing")
"""Fields that a resumed run may change: they affect memory and time, never the result."""


def choose_directory(resolved: Resolved) -> RunDirectory:
    """Return the directory that ``--out`` names, the newest run to resume, or a new one.

    Raises:
        InputError: there is no run to resume.
    """
    if not resolved.resume:
        return RunDirectory(resolved.out or new_run_path(resolved.config))
    needs = "begin a run without --resume, or name one with --out DIR"
    found = resolved.out or newest_run()
    if found is None:
        raise InputError("--resume", "no run found in runs/", needs)
    if not RunDirectory(found).exists():
        raise InputError("--resume", f"no run in {found}", needs)
    return RunDirectory(found)


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
    # The same relative path as the run's own means the same file, from whatever folder.
    given = resolve_local_paths(resolved.config, directory.working_directory())
    changed: dict[str, Any] = {}
    for name in resolved.given:
        if name not in RunConfig.model_fields or name in ignored:
            continue
        kept, asked = getattr(config, name), getattr(resolved.config, name)
        if name in changeable:
            changed[name] = asked
        elif kept not in (asked, getattr(given, name)):
            raise InputError(
                f"{option_name(name)} {asked}",
                f"the run in {directory.path} has {kept}",
                "omit the option, or use another --out",
            )
    return config.model_copy(update=changed)


def run_to_ask(path: str | None, question: str) -> RunDirectory:
    """Return the run in the folder ``path``, the newest one, or else the one that medcot brings.

    The bundled run is the one in the language of the question.
    """
    if path or newest_run():
        return existing_run(path)
    from medcot.data.text import HAN
    from medcot.runs.history import bundled_run

    language = "zh" if re.search(f"[{HAN}]", question) else "en"
    return RunDirectory(bundled_run(language).path)


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
