"""Runs as a front end shows them: read from their directories, listed, compared. Nothing is run."""

from __future__ import annotations

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


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind. ``report`` is None until it has been scored before and after."""

    name: str
    path: Path
    config: RunConfig
    stage: str
    plan: Mapping[str, Any]
    environment: Mapping[str, Any]
    events: tuple[Mapping[str, Any], ...]
    report: Mapping[str, Any] | None
    bundled: bool = False

    @property
    def has_adapter(self) -> bool:
        return (self.path / "adapter" / "adapter_config.json").exists()

    @property
    def seconds(self) -> float | None:
        """Seconds of training, where the run has ended it."""
        directory = RunDirectory(self.path)
        if not directory.has("training.json"):
            return None
        return float(directory.read_json("training.json")["seconds"])


def read_run(path: Path, *, bundled: bool = False) -> RunRecord:
    """The run in ``path``, as far as it came.

    Raises:
        InputError: there is none, or a file of it is damaged.
    """
    directory = RunDirectory(path)
    config = directory.config()

    def read(name: str) -> Any:
        return directory.read_json(name) if directory.has(name) else None

    return RunRecord(
        name=path.name,
        path=path,
        config=config,
        stage=directory.stage() or "planned",
        plan=read("plan.json") or {},
        environment=read("environment.json") or {},
        events=tuple(directory.rows(directory.events)),
        report=read("report.json"),
        bundled=bundled,
    )


def bundled_run(language: Language) -> RunRecord:
    """The finished run that comes with the package: the demo, without its adapter."""
    folder = Path(str(files("medcot.runs"))) / "finished" / f"demo-{language}"
    return read_run(folder, bundled=True)


def companion(shown: RunRecord) -> RunRecord:
    """The bundled run to lay beside ``shown``: of its language or, if that is it, of the other."""
    own = bundled_run(shown.config.language)
    if own.path.resolve() != shown.path.resolve():
        return own
    return bundled_run("en" if shown.config.language == "zh" else "zh")


def list_runs(root: Path) -> list[RunRecord]:
    """The readable runs under ``root``, the newest first."""
    folders = [path.parent for path in root.glob("*/config.json")]
    folders.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    found: list[RunRecord] = []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except (InputError, OSError, KeyError):
            continue  # A damaged directory is no reason to hide the others.
    return found


def find_run(runs: Sequence[RunRecord], name: str) -> RunRecord | None:
    """The run called ``name``."""
    return next((run for run in runs if run.name == name), None)


def differing_fields(one: RunRecord, other: RunRecord) -> list[tuple[str, Any, Any]]:
    """The settings in which two runs differ: name, value here, value there."""
    mine, theirs = one.config.model_dump(), other.config.model_dump()
    return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


def runs_to_show(
    root: Path, shown: RunRecord, bundled: RunRecord, *, only_shown: bool
) -> list[RunRecord]:
    """The runs under ``root``, the one that is shown and the bundled one; no name twice.

    With ``only_shown`` those under ``root`` stay out: a published page is about one run.
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
    return [f'medcot ask --run {place} "What are the warning signs of sepsis?"']
