"""Run one session in the kernel: look, install, start or continue, train, export, sign off.

Runs before anything is installed, so it imports the standard library and this package's own light
modules only. The training is a subprocess: an out-of-memory kill ends that, not the session.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from medcot.credentials import Redactor, Secret, known_secrets
from medcot.errors import RunFailed, one_line
from medcot.hardware.machine import detect_machine
from medcot.kaggle.session.job import (
    CONFIG_FILE,
    JOB_FILE,
    JobSpec,
    RunSettings,
    read_job,
    read_settings,
)
from medcot.kaggle.session.machine import describe_machine
from medcot.kaggle.session.manifest import STAMP, Manifest, SessionOutcome, write_manifest
from medcot.kaggle.session.page import publish_report, report_lines, show_report
from medcot.kaggle.session.probe import probe_image
from medcot.kaggle.session.steps import (
    WANDB,
    Session,
    export_tutorial,
    prepare,
    read_pins,
    train,
    upload,
)
from medcot.kaggle.session.subprocesses import ExitStatus, Say
from medcot.kaggle.session.user_secrets import (
    GetSecret,
    SecretLookup,
    find_secret,
    get_kaggle_secret,
    secret_needs,
)


def open_session(
    folder: Path,
    root: Path,
    bundle: str,
    started: float,
    get_secret: GetSecret = get_kaggle_secret,
) -> SessionSteps:
    """Begin the job in the unpacked bundle ``folder``; the kernel's source calls the steps.

    Args:
        folder: the unpacked bundle.
        root: Kaggle's folder, which holds ``input`` and ``working``.
        bundle: the bundle's checksum.
        started: seconds since the epoch when the session began.
        get_secret: asks Kaggle's secret store.
    """
    job = read_job((folder / JOB_FILE).read_text(encoding="utf-8"))
    settings = read_settings((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    found = _find_secrets(job, settings, root, get_secret)
    session = Session(folder, root, job, settings, bundle, started, _make_say(found))
    session.output.mkdir(parents=True, exist_ok=True)
    at = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
    stamp = {"bundle": bundle, "run": job.run, "session": job.session, "at": at}
    (session.output / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    return SessionSteps(session, found)


class SessionSteps:
    """The steps of a session, in the order in which a kernel calls them.

    A step that fails writes ``error.json`` and the manifest, and raises SystemExit with the run's
    exit code. After a session that has ended well before its last step, as one that ran out of
    time does, the other steps do nothing: Kaggle keeps the output of a session that succeeds, and
    ``manifest.json`` says that the run is not finished.
    """

    def __init__(self, session: Session, found: Sequence[SecretLookup]) -> None:
        self.session = session
        self.outcome: SessionOutcome | None = None
        self._found = found
        self._notes = [lookup.line for lookup in found]

    def look(self) -> None:
        """Print versions, hardware, and which secrets are attached; a probe ends with that."""
        with self._step() as active:
            if not active:
                return
            session, machine = self.session, detect_machine()
            for line in (*describe_machine(machine), *self._notes):
                session.say(line)
            if session.job.task == "probe":
                pins = read_pins(session.folder)
                found = probe_image(session.folder, session.output, pins, machine, session.say)
                for line in found:
                    session.say(line)
                self._notes += found
            if session.job.task != "run":
                self._sign_off("done", 0)

    def install(self) -> None:
        """Check the GPUs, and install what the image lacks."""
        with self._step() as active:
            if active:
                prepare(self.session)

    def train(self) -> None:
        """Score, train, score again, and report; or continue the previous session's run."""
        with self._step() as active:
            if not active:
                return
            ended = train(self.session, self._found)
            if ended.stopped and ended.code != 0:
                self.session.say(
                    "stopped before the session's limit; the next session continues from here"
                )
                self._sign_off("paused", ended.code)
            elif ended.code:
                self._fail(ended.code, _explain(self.session, ended))

    def publish(self) -> None:
        """Export the tutorial and the figures, and upload the adapter if the job asks for it."""
        with self._step() as active:
            if active:
                self._notes.append(export_tutorial(self.session))
                self._notes.append(publish_report(self.session))
                self._notes += upload(self.session, self._found)

    def finish(self) -> None:
        """Print the verdict and the table of scores, and list every output file."""
        with self._step() as active:
            if active:
                self._sign_off("done", 0)
                for line in report_lines(self.session.run):
                    self.session.say(line)

    def show(self) -> None:
        """Show the report below a notebook's last cell, or say that there is none yet."""
        show_report(self.session.output, self.outcome or "failed")

    @contextlib.contextmanager
    def _step(self) -> Iterator[bool]:
        """Tell whether the session goes on; whatever the step raises ends it as failed."""
        try:
            yield self.outcome is None
        except Exception as error:  # noqa: BLE001 - the reason must reach the output, whatever it is
            self._fail(1, error if isinstance(error, RunFailed) else _unforeseen(error))

    def _fail(self, code: int, error: RunFailed | None) -> NoReturn:
        if error is not None:
            _write_error(self.session, error)
        self._sign_off("failed", code)
        raise SystemExit(code)

    def _sign_off(self, outcome: SessionOutcome, code: int) -> None:
        session = self.session
        manifest = Manifest(
            session.bundle,
            session.job.run,
            session.job.session,
            outcome,
            code,
            round(time.time() - session.started, 1),
            tuple(self._notes),
        )
        write_manifest(session.output, manifest)
        session.say(f"medcot session {manifest.session}: {outcome}, exit code {code}")
        self.outcome = outcome


def _find_secrets(
    job: JobSpec, settings: RunSettings, root: Path, get_secret: GetSecret
) -> list[SecretLookup]:
    """Look up the secrets that the task can use; a probe asks for all of them."""
    folders: list[Path] = []
    if job.secrets_dataset:
        slug = job.secrets_dataset.rpartition("/")[2]
        folders = [path for path in sorted((root / "input").rglob(slug)) if path.is_dir()]
    wanted = secret_needs(job.hub_labels, job.wandb_labels)
    if job.task == "run" and settings.wandb == "off":
        wanted = [need for need in wanted if need.variable != WANDB]
    return [find_secret(need, os.environ, get_secret, folders) for need in wanted]


def _make_say(found: Sequence[SecretLookup]) -> Say:
    own = [Secret(x.need.labels[0], x.value) for x in found if x.value is not None]
    redact = Redactor([*own, *known_secrets()])

    def say(line: str) -> None:
        print(redact(line), flush=True)

    return say


def _write_error(session: Session, error: RunFailed) -> None:
    session.say(str(error))
    values = {"stage": error.stage, "message": error.message, "remedy": error.remedy}
    text = json.dumps(values, indent=2) + "\n"
    (session.run / "error.json").unlink(missing_ok=True)  # an earlier session's
    (session.output / "error.json").write_text(text, encoding="utf-8")


def _unforeseen(error: Exception) -> RunFailed:
    return RunFailed("session", f"{type(error).__name__}: {one_line(str(error))}.", "See the log.")


def _explain(session: Session, ended: ExitStatus) -> RunFailed | None:
    """Return the reason of a training that could not write it: killed, or rejected at once."""
    if (session.run / "error.json").exists():
        return None
    if ended.code == 2:
        return RunFailed("run", "the options were rejected.", "See the log.")
    if ended.code > 128:
        number = ended.code - 128
        memory = " (the machine's memory may have run out)" if number == 9 else ""
        message = f"signal {number} ended the training{memory}."
        return RunFailed(
            "training", message, "Saved work is kept; `run --again` continues from it."
        )
    message = f"the training ended with exit code {ended.code}."
    return RunFailed("training", message, "See the log.")
