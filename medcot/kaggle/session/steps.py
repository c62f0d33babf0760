"""The steps of a session in the kernel: install, continue or start, train, export, upload.

Runs before anything is installed, so it imports the standard library and this package's own
light modules only. The training is a plain subprocess: an out-of-memory kill ends that, not this.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.errors import RunFailed
from medcot.hardware.machine import Machine, detect_machine
from medcot.kaggle.session import install
from medcot.kaggle.session.machine import check_gpus, processes_for, training_command
from medcot.kaggle.session.manifest import STAMP
from medcot.kaggle.session.requirements import requirements
from medcot.kaggle.session.subprocesses import Ended, Say, run_command
from medcot.kaggle.session.user_secrets import Lookup

TUTORIAL_S, UPLOAD_S, SHORTEST_S = 600.0, 600.0, 60.0
"""The longest that what follows the training may take, and what it has even if time is short: the
margin that is kept for saving bears it."""

HUB, WANDB = "HF_TOKEN", "WANDB_API_KEY"


@dataclass(frozen=True, slots=True)
class Session:
    """One kernel run: the unpacked bundle, Kaggle's folders, the orders, and when it began."""

    folder: Path
    root: Path
    orders: Mapping[str, Any]
    config: Mapping[str, Any]
    bundle: str
    started: float
    say: Say

    @property
    def output(self) -> Path:
        return self.root / "working"

    @property
    def run(self) -> Path:
        return self.output / "run"

    @property
    def notebook(self) -> Path:
        return self.folder / "apps" / "tutorial.py"

    @property
    def data(self) -> Path:
        """Where the config's files are; what runs, runs there."""
        return self.folder / "data"

    @property
    def seconds_left(self) -> float:
        """Until the margin that is kept for saving."""
        limit = self.orders["limit_s"] - self.orders["margin_s"]
        return limit - (time.time() - self.started)


def train(session: Session, found: list[Lookup]) -> Ended:
    """Make the machine ready and carry the run out.

    Raises:
        RunFailed: the machine, the packages or the output to go on from are not what is needed.
    """
    machine = detect_machine()
    check_gpus(machine, session.orders["gpu"])
    _install(session, machine)
    resume = _continue(session)
    environ = _environment(session, found, len(machine.gpus))
    if session.seconds_left < 10:
        raise RunFailed("session", "no time is left to train.", "Use a longer session (--hours).")
    preset, config = session.config["preset"], session.folder / "config.json"
    command = training_command(preset, len(machine.gpus), config, session.run, resume)
    session.say(f"training: {' '.join(command[1:])}")
    session.data.mkdir(exist_ok=True)
    return run_command(
        command, session.say, environ=environ, folder=session.data, seconds=session.seconds_left
    )


def _install(session: Session, machine: Machine) -> None:
    extras = ["app"] if session.notebook.exists() else []
    extras += ["gpu"] if machine.gpus else []
    extras += ["track"] if session.config["wandb"] != "off" else []
    file = session.folder / "kaggle" / "constraints.txt"
    pins = file.read_text(encoding="utf-8") if file.exists() else ""
    wanted = install.missing(requirements(), extras)
    install.install(wanted, pins, session.folder, session.say)
    if session.config["model"] == "smollm2-135m":
        install.install_bundled_model(session.say)


def _continue(session: Session) -> bool:
    """Take over the run of the mounted previous output; whether there was one.

    Raises:
        RunFailed: there should be one and none of this run is mounted.
    """
    if session.orders["session"] == 1:
        return False
    for stamp in sorted((session.root / "input").rglob(STAMP)):
        values = json.loads(stamp.read_text(encoding="utf-8"))
        if values.get("run") == session.orders["run"] and (stamp.parent / "run").is_dir():
            shutil.copytree(stamp.parent / "run", session.run, dirs_exist_ok=True)
            for path in (session.run, *session.run.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)  # what is mounted is read-only
            session.say(f"continuing from the output of session {values.get('session')}")
            return (session.run / "config.json").exists()
    raise RunFailed(
        "continue",
        f"no output of this run is mounted under {session.root / 'input'}.",
        "Push again with --until-done once the previous version's output is listed on Kaggle.",
    )


def _environment(session: Session, found: list[Lookup], gpus: int) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if k != "KAGGLE_ROOT"}
    for lookup in found:
        if lookup.value is not None:
            environ[lookup.need.variable] = lookup.value
        elif lookup.need.variable == WANDB:
            environ["WANDB_MODE"] = "offline"
    environ |= {"PYTHONPATH": str(session.folder / "package"), "PYTHONUNBUFFERED": "1"}
    if gpus > 1 and processes_for(session.config["preset"], gpus) == 1:
        environ["CUDA_VISIBLE_DEVICES"] = "0"
    return environ


def export_tutorial(session: Session) -> str:
    """The notebook, executed on this run, as one page; its failure is a note, not the run's."""
    if not session.notebook.exists():
        return "tutorial: not in the bundle"
    page = session.output / "tutorial.html"
    command = [
        sys.executable,
        "-m",
        "marimo",
        "export",
        "html",
        str(session.notebook),
        "-o",
        str(page),
    ]
    command += ["-f", "--no-sandbox", "--", "--headless", "--run", str(session.run)]
    environ = _environment(session, [], 0)
    seconds = min(TUTORIAL_S, max(SHORTEST_S, session.seconds_left))
    ended = run_command(command, session.say, environ=environ, folder=session.data, seconds=seconds)
    # The page of a notebook with a failed cell is written too, with exit code 1.
    if page.exists() and ended.code == 0:
        return "tutorial: exported"
    return "tutorial: could not be exported in full; the run itself is complete"


def upload(session: Session, found: list[Lookup]) -> list[str]:
    """Send the adapter to the hub where that was asked for; its failure is a note."""
    repository = session.orders["hub_repository"]
    if not repository:
        return []
    if all(lookup.value is None for lookup in found if lookup.need.variable == HUB):
        return [f"hub: nothing uploaded to {repository}, as there is no token"]
    command = [sys.executable, "-m", "medcot.kaggle.session.upload", str(session.run), repository]
    environ = _environment(session, found, 0)
    seconds = min(UPLOAD_S, max(SHORTEST_S, session.seconds_left))
    ended = run_command(command, session.say, environ=environ, seconds=seconds)
    return [f"hub: {'uploaded to' if ended.code == 0 else 'could not upload to'} {repository}"]
