"""What a command to Kaggle is about: which run, whose account, and how to speak of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from medcot.cli.options import resolve_flags
from medcot.config.schema import RunConfig
from medcot.errors import InputError, RunFailed
from medcot.hardware.machine import named_machine
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.push_state import Push
from medcot.kaggle.client.retry import Patience
from medcot.kaggle.client.wait import Ending, ending_of
from medcot.kaggle.session.secret_scan import Redactor, known_secrets
from medcot.runs.directory import RunDirectory, new_run_path, newest_run


def choose_run(flags: dict[str, Any]) -> tuple[RunConfig, RunDirectory, bool]:
    """The config and run directory that the flags name; an existing run keeps its config."""
    resolved = resolve_flags(flags, named_machine("T4"))
    path = resolved.out or (newest_run() if resolved.resume else None)
    run = RunDirectory(path or new_run_path(resolved.config))
    if not run.exists():
        speaker(resolved.json)(f"preset {resolved.config.preset}, run directory {run.path}")
        return resolved.config, run, resolved.json
    config = run.config()
    for name in resolved.given:
        kept, asked = getattr(config, name, None), getattr(resolved.config, name, None)
        if name in RunConfig.model_fields and kept != asked:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} {asked}", f"the run in {run.path} has {kept}", "use another --out"
            )
    return config, run, resolved.json


def existing_run(out: str | None) -> RunDirectory:
    """The run in the folder ``out``, or the newest one.

    Raises:
        InputError: there is none.
    """
    path = Path(out) if out else newest_run()
    if path is None:
        raise InputError("--out", "no run found in runs/", "pass --out DIR")
    run = RunDirectory(path)
    run.config()
    return run


def sign_in(patience_min: float) -> Account:
    """The account of this machine, once Kaggle has taken its credentials.

    Raises:
        InputError: none, or refused.
    """
    account = connect(Patience(seconds=patience_min * 60))
    account.quota()
    return account


def ended(account: Account, sent: Push) -> Ending:
    """How the version ``sent`` ended.

    Raises:
        RunFailed: it has not.
    """
    status = account.status(sent.ref, sent.version)
    ending = ending_of(status) if status else None
    if ending is None:
        word = status.word.lower() if status else "unknown to Kaggle"
        raise RunFailed("fetch", f"version {sent.version} is {word}.", "Wait until it has ended.")
    return ending


def speaker(as_json: bool) -> Callable[[str], None]:
    """Prints lines with every secret hidden; beside JSON they go to standard error."""
    redact = Redactor(known_secrets())

    def say(line: str) -> None:
        click.echo(redact(line), err=as_json)

    return say
