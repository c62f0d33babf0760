"""Tracks a run in Weights & Biases: online, offline or off. A failure costs one line, no run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from medcot.config.schema import RunConfig
from medcot.credentials import has_wandb_login, redact_values
from medcot.errors import one_line
from medcot.network import OFFLINE, is_offline
from medcot.records import Event
from medcot.runs.directory import RunDirectory

INIT_S, FINISH_S = 60.0, 600.0
"""Seconds that opening a run and sending its last data may take; afterwards it is on disk."""


class Tracker:
    """Sends events and the final scores to one W&B run, or nowhere.

    After a failure it says so in one line and sends nothing more.
    """

    def __init__(self, run: Any = None, say: Callable[[str], None] = lambda _line: None) -> None:
        self._run, self._say = run, say

    def log(self, event: Event) -> None:
        """Send one optimizer step."""
        values = asdict(event)
        step = values.pop("step")
        named = {f"train/{name}": value for name, value in values.items()}
        self._attempt(lambda run: run.log(named, step=step))

    def finish(self, report: dict[str, Any] | None, exit_code: int = 0) -> None:
        """Put the report's scores into the run's summary and close it."""

        def close(run: Any) -> None:
            if report is not None:
                scores = {f"{part}/nll": report[part]["nll"] for part in ("before", "after")}
                run.summary.update({"verdict": report["verdict"], **scores})
            run.finish(exit_code=exit_code)

        self._attempt(close)

    def _attempt(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # noqa: BLE001 - no tracking failure may cost a run
            self._run = None
            self._say(f"W&B: {one_line(str(error))}; the run continues without it.")


def start_tracking(
    config: RunConfig, directory: RunDirectory, say: Callable[[str], None]
) -> Tracker:
    """Open the W&B run that ``config.wandb`` asks for, or the same one again on resume."""
    if config.wandb == "off":
        return Tracker()
    try:
        import wandb
    except ImportError:
        say("W&B: not installed, so nothing is tracked there (pip install 'medcot[track]').")
        return Tracker()
    mode = config.wandb
    if mode == "online" and not has_wandb_login():
        say(f"W&B: no login found, so the run is kept offline in {directory.path / 'wandb'}.")
        mode = "offline"
    if mode == "online" and is_offline():
        say(f"W&B: {OFFLINE} is on, so the run is kept offline in {directory.path / 'wandb'}.")
        mode = "offline"
    for tried in dict.fromkeys((mode, "offline")):
        try:
            return Tracker(_open(wandb, tried, config, directory), say)
        except Exception as error:  # noqa: BLE001 - no tracking failure may cost a run
            kept = f"is kept offline in {directory.path / 'wandb'}"
            then = kept if tried == "online" else "continues without it"
            say(f"W&B: {one_line(str(error))}; the run {then}.")
    return Tracker()


def _open(wandb: Any, mode: str, config: RunConfig, directory: RunDirectory) -> Any:
    known = directory.has("wandb.json")
    run_id = directory.read_json("wandb.json")["id"] if known else uuid4().hex[:8]
    # Clients before this setting wait for ever at the end; they refuse a setting they do not know.
    known_settings = wandb.Settings.model_fields
    limits = {"finish_timeout": FINISH_S} if "finish_timeout" in known_settings else {}
    # The client keeps the command line, which may hold a judge's login.
    sys.argv[1:] = [redact_values(argument) for argument in sys.argv[1:]]
    run = wandb.init(
        project=config.wandb_project,
        job_type=config.wandb_job_type,
        name=directory.path.name,
        id=run_id,
        resume="allow",
        mode=mode,
        dir=str(directory.path),
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_S, **limits),
    )
    directory.write_json("wandb.json", {"id": run_id, "mode": mode, "url": run.url})
    return run
