"""What a command to Kaggle is about: which run, whose account, and how to speak of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from medcot.cli.options import resolve_flags
from medcot.cli.run_choice import choose_directory, config_of_run
from medcot.config.schema import RunConfig
from medcot.errors import RunFailed
from medcot.hardware.machine import named_machine
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.push_state import Push
from medcot.kaggle.client.retry import Patience
from medcot.kaggle.client.wait import Ending, ending_of
from medcot.kaggle.session.secret_scan import Redactor, known_secrets
from medcot.runs.directory import RunDirectory


def choose_run(flags: dict[str, Any]) -> tuple[RunConfig, RunDirectory, bool]:
    """Return config, run directory and ``--json`` of the flags; an existing run keeps its config.

    Raises:
        InputError: an option contradicts the existing run.
    """
    resolved = resolve_flags(flags, named_machine("T4"))
    run = choose_directory(resolved)
    if run.exists():
        return config_of_run(run, resolved), run, resolved.json
    speaker(resolved.json)(f"preset {resolved.config.preset}, run directory {run.path}")
    return resolved.config, run, resolved.json


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
