"""Reads, lists and compares runs for a front end; runs nothing."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.errors import InputError
from medcot.records import Language
from medcot.runs.directory import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """A run directory, read. :func:`medcot.reporting.storage.read_report` reads its report.

    ``has_report`` is False until the run is scored before and after training; ``bundled`` tells
    that the run comes with the package.
    """

    name: str
    path: Path
    config: RunConfig
    stage: str
    events: tuple[Mapping[str, Any], ...]
    has_report: bool
    bundled: bool = False

    @property
    def has_adapter(self) -> bool:
        """Return whether the run was trained and its adapter is here."""
        return (self.path / "adapter" / "adapter_config.json").exists()

    @property
    def seconds(self) -> float | None:
        """Return the seconds of training, or None before its end."""
        directory = RunDirectory(self.path)
        if not directory.has("training.json"):
            return None
        return float(directory.read_json("training.json")["seconds"])


def read_run(path: Path, *, bundled: bool = False) -> RunRecord:
    """Read the run in ``path``, however far it came.

    Raises:
        InputError: there is none, or a file of it is damaged.
    """
    directory = RunDirectory(path)
    config = directory.config()
    for name in ("plan.json", "environment.json", "training.json", "report.json"):
        if directory.has(name):
            directory.read_json(name)
    return RunRecord(
        name=path.name,
        path=path,
        config=config,
        stage=directory.stage() or "planned",
        events=tuple(directory.rows(directory.events)),
        has_report=directory.has("report.json"),
        bundled=bundled,
    )


def bundled_run(language: Language) -> RunRecord:
    """Return the finished run that comes with the package: the demo, without its adapter."""
    return read_run(_bundled_folder(language), bundled=True)


def _bundled_folder(language: Language) -> Path:
    return Path(str(files("medcot.runs"))) / "finished" / f"demo-{language}"


def companion(shown: RunRecord) -> RunRecord:
    """Return the bundled run to compare with ``shown``, in its language or else the other.

    A kernel on Kaggle carries one of them: its options may be changed, and then it is the other.
    """
    own = _bundled_folder(shown.config.language)
    if own.is_dir() and own.resolve() != shown.path.resolve():
        return bundled_run(shown.config.language)
    return bundled_run("en" if shown.config.language == "zh" else "zh")


def list_runs(root: Path) -> list[RunRecord]:
    """Return the readable runs under ``root``, newest first; damaged ones are logged."""
    folders = [path.parent for path in root.glob("*/config.json")]
    folders.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    found: list[RunRecord] = []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except (InputError, OSError, KeyError) as error:
            # A damaged directory is no reason to hide the others.
            log.warning("%s is not shown: %s", folder, error)
    return found


def find_run(runs: Sequence[RunRecord], name: str) -> RunRecord | None:
    """Return the run called ``name``, or None."""
    return next((run for run in runs if run.name == name), None)


def differing_fields(one: RunRecord, other: RunRecord) -> list[tuple[str, Any, Any]]:
    """Return name and both values of every setting in which two runs differ."""
    mine, theirs = one.config.model_dump(), other.config.model_dump()
    return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


def runs_to_show(
    root: Path, shown: RunRecord, bundled: RunRecord, *, only_shown: bool
) -> list[RunRecord]:
    """Return the runs under ``root``, the shown one and the bundled one, by unique names.

    ``only_shown`` leaves out those under ``root``: a published page is about one run.
    """
    found = [shown] if only_shown else [*list_runs(root), shown]
    by_path = {run.path.resolve(): run for run in (*found, bundled)}
    by_name: dict[str, RunRecord] = {}
    for run in by_path.values():
        name = run.name if run.name not in by_name else f"{run.name} (bundled)"
        by_name[name] = replace(run, name=name)
    return list(by_name.values())


def commands_for(run: RunRecord) -> list[str]:
    """Return the commands that use a run's model."""
    place = "runs/NAME" if run.bundled else shlex.quote(f"runs/{run.path.name}")
    return [
        f'medcot ask --run {place} "What are the warning signs of sepsis?"',
        f"medcot export --run {place} --to merged",
    ]
