"""Run one session in the kernel: look, install, start or continue, train, export, sign off.

Runs before anything is installed, so it imports the standard library and this package's own light
modules only. The training is a subprocess: an out-of-memory kill ends that, not the session.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

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
from medcot.kaggle.session.probe import probe_image
from medcot.kaggle.session.steps import WANDB, Session, export_tutorial, read_pins, train, upload
from medcot.kaggle.session.subprocesses import ExitStatus, Say
from medcot.kaggle.session.user_secrets import (
    GetSecret,
    SecretLookup,
    find_secret,
    get_kaggle_secret,
    secret_needs,
)


def run_session(
    folder: Path,
    root: Path,
    bundle: str,
    started: float,
    get_secret: GetSecret = get_kaggle_secret,
) -> int:
    """Carry out the job in the unpacked bundle ``folder`` and return the run's exit code.

    A run that was stopped in time ends with 0: Kaggle keeps the output of a session that succeeds,
    and ``manifest.json`` says that the run is not finished.

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
    stamp = {"bundle": bundle, "run": job.run, "session": job.session}
    (session.output / STAMP).write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    notes = [lookup.line for lookup in found]
    machine = detect_machine()
    for line in (*describe_machine(machine), *notes):
        session.say(line)
    if job.task == "secrets":
        return _sign_off(session, "done", 0, notes)
    if job.task == "probe":
        found_here = probe_image(folder, session.output, read_pins(folder), machine, session.say)
        for line in found_here:
            session.say(line)
        return _sign_off(session, "done", 0, [*notes, *found_here])
    return _carry_out(session, found, notes)


def _carry_out(session: Session, found: Sequence[SecretLookup], notes: Sequence[str]) -> int:
    try:
        ended = train(session, found)
    except Exception as error:  # noqa: BLE001 - the reason must reach the output, whatever it is
        _write_error(session, error if isinstance(error, RunFailed) else _unforeseen(error))
        return _sign_off(session, "failed", 1, notes)
    if ended.stopped and ended.code != 0:
        session.say("stopped before the session's limit; the next session continues from here")
        return _sign_off(session, "paused", ended.code, notes)
    if ended.code:
        _explain(session, ended)
        return _sign_off(session, "failed", ended.code, notes)
    done = [*notes, export_tutorial(session), *upload(session, found)]
    return _sign_off(session, "done", 0, done)


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


def _explain(session: Session, ended: ExitStatus) -> None:
    """Write ``error.json`` for a training that could not write it: killed, or rejected at once."""
    if (session.run / "error.json").exists():
        return
    if ended.code == 2:
        _write_error(session, RunFailed("run", "the options were rejected.", "See the log."))
    elif ended.code > 128:
        number = ended.code - 128
        memory = " (the machine's memory may have run out)" if number == 9 else ""
        message = f"signal {number} ended the training{memory}."
        remedy = "Saved work is kept; `run --again` continues from it."
        _write_error(session, RunFailed("training", message, remedy))
    else:
        message = f"the training ended with exit code {ended.code}."
        _write_error(session, RunFailed("training", message, "See the log."))


def _sign_off(session: Session, outcome: SessionOutcome, code: int, notes: Sequence[str]) -> int:
    manifest = Manifest(
        session.bundle,
        session.job.run,
        session.job.session,
        outcome,
        code,
        round(time.time() - session.started, 1),
        tuple(notes),
    )
    write_manifest(session.output, manifest)
    session.say(f"medcot session {manifest.session}: {outcome}, exit code {code}")
    return 0 if outcome == "paused" else code
