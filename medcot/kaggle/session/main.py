"""What the kernel does: look, install, continue or start, train, export, sign off.

Runs before anything is installed, so it imports the standard library and this package's own
light modules only. The training is a plain subprocess: an out-of-memory kill ends that, not this.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medcot.errors import RunFailed, one_line
from medcot.hardware.machine import detect_machine
from medcot.kaggle.session.machine import describe
from medcot.kaggle.session.manifest import STAMP, Manifest, Outcome, write_manifest
from medcot.kaggle.session.secret_scan import Redactor, Secret, known_secrets
from medcot.kaggle.session.steps import WANDB, Session, export_tutorial, train, upload
from medcot.kaggle.session.subprocesses import Ended
from medcot.kaggle.session.user_secrets import Ask, Lookup, ask_kaggle, look_up, needs


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
        ended = train(session, found)
    except Exception as error:  # noqa: BLE001 - whatever it is, it comes home with a reason
        _write_error(session, error if isinstance(error, RunFailed) else _unforeseen(error))
        return _sign_off(session, "failed", 1, notes)
    if ended.stopped and ended.code != 0:
        session.say("stopped before the session's limit; the next session continues from here")
        return _sign_off(session, "paused", ended.code, notes)
    if ended.code:
        _explain(session, ended)
        return _sign_off(session, "failed", ended.code, notes)
    notes.append(export_tutorial(session))
    notes += upload(session, found)
    return _sign_off(session, "done", 0, notes)


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
    (session.run / "error.json").unlink(missing_ok=True)  # an earlier session's
    (session.output / "error.json").write_text(text, encoding="utf-8")


def _unforeseen(error: Exception) -> RunFailed:
    return RunFailed("session", f"{type(error).__name__}: {one_line(str(error))}.", "See the log.")


def _explain(session: Session, ended: Ended) -> None:
    """Say why the training ended, where it could not say so itself: killed, or refused at once."""
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
