"""The steps of a session in the kernel: install, start or continue, train, export, upload."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medcot.errors import RunFailed
from medcot.hardware.machine import Machine, detect_machine
from medcot.kaggle.session import install
from medcot.kaggle.session.job import CONFIG_FILE, JobSpec, RunSettings
from medcot.kaggle.session.machine import check_gpus, count_processes, make_training_command
from medcot.kaggle.session.manifest import STAMP
from medcot.kaggle.session.requirements import requirements
from medcot.kaggle.session.step_lines import steps_shown
from medcot.kaggle.session.subprocesses import ExitStatus, Say, run_command
from medcot.kaggle.session.tutorial import export_command
from medcot.kaggle.session.user_secrets import SecretLookup

TUTORIAL_S, UPLOAD_S, SHORTEST_S = 600.0, 600.0, 60.0
"""Seconds: the most that each step after the training may take, and what it gets even if time is
short. The margin that is kept for saving pays for that."""

HUB, WANDB = "HF_TOKEN", "WANDB_API_KEY"


@dataclass(frozen=True, slots=True)
class Session:
    """One session: the unpacked bundle, Kaggle's folders, the job, and when the session began.

    ``started`` is in seconds since the epoch; ``say`` prints a line with every secret hidden.
    """

    folder: Path
    root: Path
    job: JobSpec
    settings: RunSettings
    bundle: str
    started: float
    say: Say

    @property
    def output(self) -> Path:
        """The folder whose content Kaggle keeps."""
        return self.root / "working"

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.output / "run"

    @property
    def notebook(self) -> Path:
        """The tutorial, which may be absent."""
        return self.folder / "apps" / "tutorial.py"

    @property
    def data(self) -> Path:
        """The config's local files, and the working directory of every command."""
        return self.folder / "data"

    @property
    def seconds_left(self) -> float:
        """Seconds until the margin that is kept for saving."""
        limit_s = self.job.limit_s - self.job.margin_s
        return limit_s - (time.time() - self.started)


def prepare(session: Session) -> None:
    """Check the GPUs, and install what the image lacks.

    Raises:
        RunFailed: a GPU that was asked for is missing, or a package could not be installed.
    """
    machine = detect_machine()
    check_gpus(machine, wanted=session.job.gpu)
    _install(session, machine)


def train(session: Session, found: Sequence[SecretLookup]) -> ExitStatus:
    """Carry out the run, or continue it, and show each of its steps in the log.

    Raises:
        RunFailed: no time is left, or the output to continue from is missing.
    """
    machine = detect_machine()
    resume = _continue(session)
    processes = count_processes(session.settings, len(machine.gpus))
    environ = _environment(session, found)
    if len(machine.gpus) > processes == 1 and session.settings.seeds == 1:
        environ["CUDA_VISIBLE_DEVICES"] = "0"
    if session.seconds_left < 10:
        raise RunFailed("session", "no time is left to train.", "Use a longer session (--hours).")
    config = session.folder / CONFIG_FILE
    command = make_training_command(processes, config, session.run, resume=resume)
    session.say(f"training: {' '.join(command[1:])}")
    session.data.mkdir(exist_ok=True)
    with steps_shown(session.run / "events.jsonl", session.say) as say:
        return run_command(
            command, say, environ=environ, folder=session.data, seconds=session.seconds_left
        )


def run_with_package(session: Session, arguments: Sequence[str], most_s: float) -> ExitStatus:
    """Run Python with the bundle's package, for at most ``most_s`` and what the session has left.

    The command gets no secret.
    """
    return run_command(
        [sys.executable, *arguments],
        session.say,
        environ=_environment(session, []),
        folder=session.data,
        seconds=min(most_s, max(SHORTEST_S, session.seconds_left)),
    )


def _install(session: Session, machine: Machine) -> None:
    extras = ["app"] if session.notebook.exists() else []
    extras += ["gpu"] if machine.gpus else []
    extras += ["track"] if session.settings.wandb != "off" else []
    pins = read_pins(session.folder)
    install.check_kept(requirements(), extras, session.say)
    # The options of a copied kernel may name an engine that the job was not made for.
    unused = [name for name in session.job.unused if name != session.settings.engine]
    wanted = install.find_missing(requirements(), extras, unused=unused)
    began = time.monotonic()
    install.install(wanted, pins, session.folder, session.say)
    if session.settings.model == "smollm2-135m":
        install.install_bundled_model(session.say)
    session.say(f"installing: took {time.monotonic() - began:.0f} s")


def read_pins(folder: Path) -> str:
    """Return the text of the pins in the unpacked bundle ``folder``; empty if it has none."""
    file = folder / "kaggle" / "constraints.txt"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _continue(session: Session) -> bool:
    """Copy the run of the mounted previous output, and return whether there is a run to resume.

    Raises:
        RunFailed: this is a later session and no output of the run is mounted.
    """
    if session.job.session == 1:
        return False
    for stamp in sorted((session.root / "input").rglob(STAMP)):
        values = json.loads(stamp.read_text(encoding="utf-8"))
        if values.get("run") == session.job.run and (stamp.parent / "run").is_dir():
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


def _environment(session: Session, found: Sequence[SecretLookup]) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if k != "KAGGLE_ROOT"}
    for lookup in found:
        if lookup.value is not None:
            environ[lookup.need.variable] = lookup.value
        elif lookup.need.variable == WANDB:
            environ["WANDB_MODE"] = "offline"
    paths = [str(session.folder / "package"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return environ


def export_tutorial(session: Session) -> str:
    """Execute the notebook on this run and export it as one page; return a note on how it went.

    A failure is part of the note only: the run itself is complete.
    """
    if not session.notebook.exists():
        return "tutorial: not in the bundle"
    page = session.output / "tutorial.html"
    command = export_command(session.notebook, page, ["--run", str(session.run)])
    ended = run_with_package(session, command[1:], TUTORIAL_S)
    # marimo writes the page of a notebook with a failed cell as well, and exits with 1.
    if page.exists() and ended.code == 0:
        return "tutorial: exported"
    return "tutorial: could not be exported in full; the run itself is complete"


def upload(session: Session, found: Sequence[SecretLookup]) -> list[str]:
    """Upload the adapter to the hub if the job asks for it; return notes on how it went."""
    repository = session.job.hub_repository
    if not repository:
        return []
    if all(lookup.value is None for lookup in found if lookup.need.variable == HUB):
        return [f"hub: nothing uploaded to {repository}, as there is no token"]
    command = [sys.executable, "-m", "medcot.kaggle.session.upload", str(session.run), repository]
    environ = _environment(session, found)
    seconds = min(UPLOAD_S, max(SHORTEST_S, session.seconds_left))
    ended = run_command(command, session.say, environ=environ, seconds=seconds)
    return [f"hub: {'uploaded to' if ended.code == 0 else 'could not upload to'} {repository}"]
