"""Run medcot on Kaggle's free GPUs: build, push, wait, fetch, or all of it with `run`.

Exit codes: 0 done, 1 failed, 2 wrong input, 3 cancelled on Kaggle, 4 out of time (a paused
session, Kaggle's limit, or --timeout), 130 interrupted here while the session goes on there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from medcot.cli.kaggle import choose_run, ended, sign_in, speaker
from medcot.cli.kaggle_options import (
    AGAIN,
    FOLLOW,
    INTERVAL,
    JSON,
    OUT,
    OWNER,
    PATIENCE,
    InOrder,
    kernel_flags,
    name_flags,
    take_wishes,
)
from medcot.cli.options import config_flags
from medcot.cli.run_choice import existing_run
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.kaggle.client.build import FOLDER, Kernel, build, owner_of_this_machine
from medcot.kaggle.client.orchestrate import Finish, probe_secrets, run_on_kaggle, take
from medcot.kaggle.client.push import push, url_of
from medcot.kaggle.client.push_state import last_push
from medcot.kaggle.client.wait import wait
from medcot.kaggle.session.secret_scan import Redactor, known_secrets
from medcot.runs.directory import RunDirectory

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=InOrder, context_settings=SETTINGS)
def cli() -> None:
    """Run medcot on Kaggle's free GPUs.

    \b
    python kaggle/push.py secrets                  once: which secrets the kernel is given
    python kaggle/push.py run --preset kaggle-t4   there and back; the same again goes on

    Needs a Kaggle account with a verified phone number and an API token: kaggle/README.md. Exit
    codes: 0 done, 1 failed, 2 wrong input, 3 cancelled on Kaggle, 4 out of time, 130 interrupted
    here. Generated answers are research output, not medical advice.
    """


@config_flags()
@cli.command("build")
@OWNER
@kernel_flags
def build_command(owner: str | None, **flags: Any) -> None:
    """Write the folder that `kaggle kernels push -p` accepts. Needs no network."""
    wishes = take_wishes(flags)
    config, run, as_json = choose_run(flags)
    kernel = build(config, run, owner or owner_of_this_machine(), wishes)
    show_kernel(kernel, as_json)


@config_flags()
@cli.command("push")
@OWNER
@kernel_flags
@AGAIN
@PATIENCE
def push_command(owner: str | None, again: bool, patience: float, **flags: Any) -> None:
    """Build and push: starts a session, spends quota."""
    wishes = take_wishes(flags)
    config, run, as_json = choose_run(flags)
    account = sign_in(patience)
    kernel = build(config, run, owner or account.user, wishes)
    sent = push(account, kernel, run, speaker(as_json), public=wishes.public, again=again)
    finish_with(asdict(sent) | {"out": str(run.path)}, as_json)


@cli.command("wait")
@OUT
@FOLLOW
@INTERVAL
@PATIENCE
@click.option("--timeout", type=float, metavar="SECONDS", help="stop waiting after this")
@JSON
def wait_command(
    out: str | None,
    follow: bool,
    interval: float,
    patience: float,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Wait for the pushed version to end; the exit code says how."""
    run = existing_run(out, "--out")
    sent, say = last_push(run), speaker(as_json)
    account = sign_in(patience)
    ending, message = wait(
        account, sent, say, say if follow else None, interval=interval, limit_s=timeout
    )
    word = ending.name.lower().replace("_", " ")
    say(f"version {sent.version} of {sent.ref}: {word}{f' ({message})' if message else ''}")
    finish_with({"ending": word, "message": message, "version": sent.version}, as_json)
    sys.exit(ending.value)


@cli.command("fetch")
@OUT
@PATIENCE
@JSON
def fetch_command(out: str | None, patience: float, as_json: bool) -> None:
    """Bring the output of the pushed version into the run directory."""
    run = existing_run(out, "--out")
    sent, account = last_push(run), sign_in(patience)
    show_finish(take(account, sent, run, speaker(as_json), ended(account, sent)), run, as_json)


@config_flags()
@cli.command("run")
@OWNER
@kernel_flags
@click.option("--until-done", is_flag=True, help="go on in as many sessions as it takes")
@AGAIN
@FOLLOW
@INTERVAL
@PATIENCE
def run_command(owner: str | None, patience: float, **flags: Any) -> None:
    """All of it: build, push, wait, fetch.

    Called again with the same --out it takes up where it was.
    """
    wishes = take_wishes(flags)
    until_done, again, follow, interval = (
        flags.pop(name) for name in ("until_done", "again", "follow", "interval")
    )
    config, run, as_json = choose_run(flags)
    account, say = sign_in(patience), speaker(as_json)
    if owner and owner != account.user:
        raise InputError(
            f"--owner {owner}",
            f"these are the credentials of {account.user}",
            f"use --owner {account.user}",
        )
    show = say if follow else None
    finish = run_on_kaggle(
        account,
        config,
        run,
        wishes,
        say,
        show,
        until_done=until_done,
        again=again,
        interval=interval,
    )
    show_finish(finish, run, as_json)


@cli.command("secrets")
@name_flags
@click.option("--out", metavar="DIR", default="runs/kaggle-secrets", show_default=True)
@INTERVAL
@PATIENCE
@JSON
def secrets_command(
    out: str, interval: float, patience: float, as_json: bool, **flags: Any
) -> None:
    """Ask the kernel which secrets it gets.

    A version of the kernel that runs for about a minute on a CPU and costs no GPU quota. What is
    not attached has to be ticked on the kernel's page; the address is printed.
    """
    wishes = take_wishes(flags)
    config, run, _ = choose_run({"preset": "kaggle-t4", "out": out})
    account, say = sign_in(patience), speaker(as_json)
    lines = probe_secrets(account, run, config, wishes, say, interval)
    for line in lines:
        say(line)
    finish_with({"secrets": lines}, as_json)


def show_kernel(kernel: Kernel, as_json: bool) -> None:
    say = speaker(as_json)
    say(f"{kernel.folder}: {kernel.size / 1024:.0f} KB, bundle {kernel.checksum[:16]}")
    if kernel.dataset:
        say(f"{kernel.dataset}: the private data set that it needs")
    say(f"push it with this command's `push`, or: kaggle kernels push -p {kernel.folder}")
    finish_with(
        {"folder": str(kernel.folder), "ref": kernel.ref, "checksum": kernel.checksum}, as_json
    )


def show_finish(finish: Finish, run: RunDirectory, as_json: bool) -> None:
    say = speaker(as_json)
    if finish.outcome == "done" and run.has("report.json"):
        say(run.read_json("report.json")["verdict"].get("sentence", ""))
        say(f"report: {run.report_markdown}")
    elif finish.outcome != "failed":
        sent = last_push(run)
        say(f"{finish.outcome} at step {finish.step}; all of it is in {run.path}")
        say(f"go on: python kaggle/push.py run --until-done --out {run.path} ({url_of(sent.ref)})")
    else:
        say(f"failed; its log is in {run.path / FOLDER}")
    finish_with(asdict(finish) | {"out": str(run.path)}, as_json)
    sys.exit(finish.exit_code)


def finish_with(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))


def main(arguments: list[str] | None = None) -> None:
    """Run a command; every way it can end has its exit code and at most one line."""
    try:
        cli.main(arguments, prog_name="push.py", standalone_mode=False)
    except InputError as error:
        end(2, str(error))
    except click.UsageError as error:
        end(2, error.format_message())
    except RunFailed as error:
        end(1, str(error))
    except (Cancelled, KeyboardInterrupt, click.Abort):
        end(130, "stopped here; a session on Kaggle goes on, `wait` and `fetch` find it again")


def end(code: int, line: str) -> None:
    click.echo(f"medcot: {Redactor(known_secrets())(line)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
