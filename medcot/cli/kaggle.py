"""The commands to Kaggle: build, push, wait, fetch, run, secrets, probe, plan, proof.

Each one makes a record of its options, calls :mod:`medcot.kaggle.client` and prints the result.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from medcot.catalog import duration
from medcot.cli.config_command import ConfigCommand
from medcot.cli.exit_codes import exit_on_error
from medcot.cli.kaggle_options import (
    AGAIN,
    FOLLOW,
    INTERVAL,
    JSON,
    OUT,
    OWNER,
    RETRY,
    OrderedGroup,
    add_kernel_options,
    add_naming_options,
    take_kernel_options,
)
from medcot.cli.options import resolve_flags
from medcot.cli.progress import WatchListener, make_console
from medcot.cli.run_choice import choose_directory, config_of_run, existing_run
from medcot.config.schema import RunConfig
from medcot.credentials import prepare_credentials, redact, redacted_output
from medcot.errors import InputError, RunFailed
from medcot.hardware.machine import Machine, named_machine
from medcot.kaggle.client.account import Account, connect
from medcot.kaggle.client.adopt import (
    find_downloaded,
    find_push,
    plain_commands,
    read_built_kernel,
    take_output,
)
from medcot.kaggle.client.build import FOLDER, Kernel, build, find_owner, needs_gpu
from medcot.kaggle.client.live import LogReader
from medcot.kaggle.client.orchestrate import (
    KaggleResult,
    KaggleRun,
    fetch_and_record,
    probe_secrets,
    run_on_kaggle,
)
from medcot.kaggle.client.push import push, url_of
from medcot.kaggle.client.push_state import PushRecord, last_push
from medcot.kaggle.client.retry import RetryPolicy
from medcot.kaggle.client.wait import FinalStatus, final_status, wait
from medcot.kaggle.session.job import read_settings
from medcot.kaggle.session.machine import count_processes
from medcot.kaggle.session.subprocesses import Say
from medcot.network import prepare_network
from medcot.reporting.storage import read_report
from medcot.runs.directory import RunDirectory
from medcot.terminal import say as print_line
from medcot.terminal import write_json

if TYPE_CHECKING:
    from medcot.kaggle.client.session_plan import StageEstimate

PUSH = "python kaggle/push.py"
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=OrderedGroup, context_settings=SETTINGS)
def cli() -> None:
    """Run medcot on Kaggle's free GPUs.

    \b
    python kaggle/push.py probe                    once, free: what the image is, and its secrets
    python kaggle/push.py secrets                  once, free: the secrets alone
    python kaggle/push.py run --preset kaggle-t4   all of it; the same command again continues

    Needs a Kaggle account with a verified phone number and an API token: docs/kaggle.md. Exit
    codes: 0 done, 1 failed, 2 wrong input, 3 cancelled on Kaggle, 4 out of time (a paused session,
    Kaggle's limit, or --timeout), 130 interrupted here. Generated answers are research output, not
    medical advice.
    """


@cli.command("build", cls=ConfigCommand)
@OWNER
@add_kernel_options
def build_command(owner: str | None, **flags: Any) -> None:
    """Write the folder that `kaggle kernels push -p` accepts. Needs no network."""
    options = take_kernel_options(flags)
    config, run, as_json = choose_run(flags)
    kernel = build(config, run, owner or find_owner(), options)
    print_kernel(kernel, run, as_json=as_json)


@cli.command("push", cls=ConfigCommand)
@OWNER
@add_kernel_options
@AGAIN
@RETRY
def push_command(owner: str | None, *, again: bool, retry_min: float, **flags: Any) -> None:
    """Build and push: starts a session, spends quota."""
    options = take_kernel_options(flags)
    config, run, as_json = choose_run(flags)
    account = sign_in(retry_min)
    require_own_account(owner, account)
    kernel = build(config, run, account.user, options)
    say = make_say(as_json=as_json)
    sent = push(account, kernel, run, say, public=options.public, again=again)
    print_facts(asdict(sent) | {"out": str(run.path)}, as_json=as_json)


@cli.command("wait")
@OUT
@FOLLOW
@INTERVAL
@RETRY
@click.option("--timeout", type=float, metavar="SECONDS", help="stop waiting after this time")
@JSON
def wait_command(
    out: str | None,
    *,
    follow: bool,
    interval: float,
    retry_min: float,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Wait for the pushed version to end; the exit code says how."""
    run, say = existing_run(out, "--out"), make_say(as_json=as_json)
    require_kernel(run)
    account = sign_in(retry_min)
    sent = find_push(account, run, say)
    with watching(say, follow=follow, as_json=as_json) as (tell, show_log):
        status, message = wait(account, sent, tell, show_log, interval=interval, limit_s=timeout)
    explained = f"{status.text} ({message})" if message else status.text
    say(f"version {sent.version} of {sent.ref}: {explained}")
    facts = {"ending": status.text, "message": message, "version": sent.version}
    print_facts(facts, as_json=as_json)
    sys.exit(status.value)


@cli.command("fetch")
@OUT
@RETRY
@JSON
def fetch_command(out: str | None, *, retry_min: float, as_json: bool) -> None:
    """Fetch the output of the pushed version into the run directory."""
    run = existing_run(out, "--out")
    require_kernel(run)
    account = sign_in(retry_min)
    lines: list[str] = []
    sent = find_push(account, run, lines.append)
    status = require_final_status(account, sent)
    result = fetch_and_record(account, sent, run, lines.append, status)
    say = make_say(as_json=as_json)
    reason = f"{lines[-1]} " if result.outcome == "failed" and run.has("error.json") else ""
    say(f"version {sent.version}: {reason}{describe_result(result, run)}")
    for line in lines:
        if line.startswith("W&B"):
            say(line)
    print_facts(asdict(result) | {"out": str(run.path)}, as_json=as_json)
    sys.exit(result.exit_code)


@cli.command("run", cls=ConfigCommand)
@OWNER
@add_kernel_options
@click.option("--until-done", is_flag=True, help="continue in as many sessions as it takes")
@AGAIN
@FOLLOW
@INTERVAL
@RETRY
def run_command(
    owner: str | None,
    *,
    until_done: bool,
    again: bool,
    follow: bool,
    interval: float,
    retry_min: float,
    **flags: Any,
) -> None:
    """Build, push, wait and fetch.

    Called again with the same --out, it continues where it stopped.
    """
    options = take_kernel_options(flags)
    config, run, as_json = choose_run(flags)
    account, say = sign_in(retry_min), make_say(as_json=as_json)
    require_own_account(owner, account)
    with watching(say, follow=follow, as_json=as_json) as (tell, show_log):
        request = KaggleRun(account, config, run, options, tell, show_log, interval)
        result = run_on_kaggle(request, until_done=until_done, again=again)
    print_result(result, run, as_json=as_json)


@cli.command("secrets")
@add_naming_options
@click.option("--out", metavar="DIR", default="runs/kaggle-secrets", show_default=True)
@INTERVAL
@RETRY
@JSON
def secrets_command(
    out: str, *, interval: float, retry_min: float, as_json: bool, **flags: Any
) -> None:
    """Ask the kernel which secrets it is given.

    Pushes a version of the kernel that runs for about a minute on a CPU and costs no GPU quota. A
    secret that is not attached has to be ticked on the kernel's page; the address is printed.
    """
    options = take_kernel_options(flags)
    config, run, _ = choose_run({"preset": "kaggle-t4", "out": out})
    account, say = sign_in(retry_min), make_say(as_json=as_json)
    lines = probe_secrets(KaggleRun(account, config, run, options, say, interval_s=interval))
    for line in lines:
        say(line)
    print_facts({"secrets": lines}, as_json=as_json)


@cli.command("probe")
@add_naming_options
@click.option("--out", metavar="DIR", default="runs/kaggle-probe", show_default=True)
@click.option("--save-image", is_flag=True, help="rewrite kaggle/image.json by what was found")
@INTERVAL
@RETRY
@JSON
def probe_command(
    out: str, *, save_image: bool, interval: float, retry_min: float, as_json: bool, **flags: Any
) -> None:
    """Look at Kaggle's image, its network and the kernel's secrets, free of charge.

    Pushes a version of the kernel that runs for some minutes on a CPU and costs no GPU quota. It
    brings home the list of all packages and what pip would install there; it installs nothing.
    """
    from medcot.kaggle.client import probe

    options = take_kernel_options(flags)
    config, run, _ = choose_run({"preset": "kaggle-t4", "out": out})
    account, say = sign_in(retry_min), make_say(as_json=as_json)
    quota = account.quota()
    facts, lines = probe.probe_image(
        KaggleRun(account, config, run, options, say, interval_s=interval)
    )
    hours = f"{quota.left_h:.1f} of {quota.allowed_h:.0f} hours left" if quota else "none named"
    for line in [*lines, f"GPU quota: {hours}"]:
        say(line)
    if save_image:
        probe.save_image(facts)
        say(f"{probe.IMAGE}: {len(facts.packages)} packages; kaggle/resolve.py renews the pins")
    print_facts({**asdict(facts), "lines": lines, "out": str(run.path)}, as_json=as_json)


@cli.command("plan", cls=ConfigCommand)
def plan_command(**flags: Any) -> None:
    """Estimate how long a session takes, by stage, and say what each figure rests on."""
    from medcot.kaggle.client.session_plan import describe_session

    resolved = resolve_flags(flags, named_machine("2xT4"))
    stages, total_s = estimate_session(resolved.config)
    for line in describe_session(stages, total_s):
        make_say(as_json=resolved.json)(line)
    facts = {"stages": [asdict(one) for one in stages], "total_s": total_s}
    print_facts(facts, as_json=resolved.json)


@cli.command("proof")
@add_naming_options
@click.option("--out", metavar="DIR", default="runs/kaggle-proof", show_default=True)
@click.option("--preset", default="kaggle-t4", show_default=True, help="preset of the run")
@INTERVAL
@RETRY
@JSON
def proof_command(
    out: str, preset: str, *, interval: float, retry_min: float, as_json: bool, **flags: Any
) -> None:
    """Probe, run for about ten minutes, fetch, and write what was measured as Markdown.

    For whoever is the first to run this on Kaggle: paste DIR/kaggle/proof.md into
    docs/experiments.md. The run costs its length of GPU quota.
    """
    from medcot.kaggle.client import probe, proof

    options = take_kernel_options(flags)
    config, run, _ = choose_run({"preset": preset, "out": out, **proof.options_for(preset)})
    account, say = sign_in(retry_min), make_say(as_json=as_json)
    request = KaggleRun(account, config, run, options, say, say, interval)
    stages, total_s = estimate_session(config)
    say(f"planned: {duration(total_s, 'en')}")
    facts, lines = probe.probe_image(request)
    for line in lines:
        say(line)
    result = run_on_kaggle(request)
    if result.outcome != "done":
        print_result(result, run, as_json=as_json)
    snippet = proof.make_snippet(run, last_push(run), stages, facts)
    target = f"{FOLDER}/{proof.FILE}"
    run.write_text(target, snippet)
    say(f"{run.path / target}: paste it into docs/experiments.md")
    print_facts(asdict(result) | {"out": str(run.path), "proof": snippet}, as_json=as_json)


def estimate_session(config: RunConfig) -> tuple[tuple[StageEstimate, ...], float]:
    """Estimate a session of ``config`` on the machine that Kaggle gives it.

    Raises:
        InputError: the config asks for something that this machine cannot do.
    """
    from medcot.kaggle.client.session_plan import GPUS, plan_session
    from medcot.pipeline.prepare import plan_only

    settings = read_settings(config.model_dump_json())
    machine = Machine((), 4, 29.0, "Linux x86_64")
    if needs_gpu(config):
        machine = replace(named_machine("2xT4"), processes=count_processes(settings, GPUS))
    return plan_session(config, plan_only(config, machine))


def choose_run(flags: dict[str, Any]) -> tuple[RunConfig, RunDirectory, bool]:
    """Return config, run directory and ``--json`` of the flags; an existing run keeps its config.

    Raises:
        InputError: an option contradicts the existing run.
    """
    resolved = resolve_flags(flags, named_machine("2xT4"))
    run = choose_directory(resolved)
    if run.exists():
        return config_of_run(run, resolved), run, resolved.json
    say = make_say(as_json=resolved.json)
    say(f"preset {resolved.config.preset}, run directory {run.path}")
    return resolved.config, run, resolved.json


def sign_in(retry_min: float) -> Account:
    """Sign in, and check that Kaggle accepts the credentials.

    Raises:
        InputError: there are none, or Kaggle refuses them.
    """
    account = connect(RetryPolicy(limit_s=retry_min * 60))
    account.quota()
    return account


def take_over(run: RunDirectory) -> bool:
    """Bring home the output of a kernel that was built in ``run``; tell whether there is one.

    Raises:
        InputError, RunFailed: it was not pushed, has not ended, or cannot be fetched.
    """
    if read_built_kernel(run) is None:
        return False
    say = make_say(as_json=True)
    if folder := find_downloaded(run):
        take_output(run, folder, say)
        return True
    account = sign_in(30.0)
    sent = find_push(account, run, say)
    fetch_and_record(account, sent, run, say, require_final_status(account, sent))
    return True


@contextmanager
def watching(say: Say, *, follow: bool, as_json: bool) -> Generator[tuple[Say, Say | None]]:
    """Yield what takes the client's lines, and what takes those of the log (None: no log).

    On a terminal the log is drawn: bars and the curve of the loss, as for a run on this machine.
    """
    if not follow or as_json or not sys.stdout.isatty():
        yield say, say if follow else None
        return
    listener = WatchListener(make_console())

    def tell(line: str) -> None:
        listener.say(redact(line))

    with listener.live():
        yield tell, LogReader(listener)


def require_kernel(run: RunDirectory) -> None:
    """Check, before anyone is asked, that a kernel of ``run`` was built or pushed.

    Raises:
        InputError: neither.
    """
    if read_built_kernel(run) is None:
        last_push(run)


def require_final_status(account: Account, sent: PushRecord) -> FinalStatus:
    """Return how the session of the version ``sent`` ended.

    Raises:
        RunFailed: it has not ended.
    """
    status = account.status(sent.ref, sent.version)
    final = final_status(status) if status else None
    if final is None:
        state = status.state.lower() if status else "unknown to Kaggle"
        raise RunFailed("fetch", f"version {sent.version} is {state}.", "Wait until it has ended.")
    return final


def require_own_account(owner: str | None, account: Account) -> None:
    """Refuse ``--owner`` if it is not the account that is signed in: Kaggle would, and oddly."""
    if owner and owner != account.user:
        raise InputError(
            f"--owner {owner}",
            f"these are the credentials of {account.user}",
            f"use --owner {account.user}",
        )


def make_say(*, as_json: bool) -> Say:
    """Return a function that prints lines with every secret hidden; with JSON, to stderr."""

    def say(line: str) -> None:
        print_line(redact(line), err=as_json)

    return say


def print_kernel(kernel: Kernel, run: RunDirectory, *, as_json: bool) -> None:
    """Print where the built kernel is, and how to push it with this command or Kaggle's own."""
    say = make_say(as_json=as_json)
    say(f"{kernel.folder}: {kernel.size / 1024:.0f} KB, bundle {kernel.checksum[:16]}")
    say(f"to push, wait and fetch: {_called()} run --out {run.path}")
    say("or with Kaggle's own client:")
    if kernel.dataset:
        say(f"  kaggle datasets create -p {kernel.dataset}    the private data set it needs")
    for command in plain_commands(run, kernel.ref):
        say(f"  {command}")
    say(f"  medcot report --run {run.path}    takes over what was fetched")
    facts = {"folder": str(kernel.folder), "ref": kernel.ref, "checksum": kernel.checksum}
    print_facts(facts, as_json=as_json)


def print_result(result: KaggleResult, run: RunDirectory, *, as_json: bool) -> None:
    """Print how the run ended and what to do next, and exit with its code."""
    make_say(as_json=as_json)(describe_result(result, run))
    print_facts(asdict(result) | {"out": str(run.path)}, as_json=as_json)
    sys.exit(result.exit_code)


def describe_result(result: KaggleResult, run: RunDirectory) -> str:
    """Say in one line how the run ended, and where to go on."""
    if result.outcome == "done" and run.has("report.json"):
        page = run.report_page if run.report_page.exists() else run.report_markdown
        return f"{_verdict(run)} Report: {page}"
    if result.outcome == "failed":
        return f"failed; its log is in {run.path / FOLDER}"
    command = f"{_called()} run --until-done --out {run.path}"
    url = url_of(last_push(run).ref)
    return f"{result.outcome} at step {result.step}; to continue: {command} ({url})"


def _called() -> str:
    """Return the words that this program was called with, before its command."""
    return click.get_current_context().find_root().info_name or PUSH


def _verdict(run: RunDirectory) -> str:
    """Return the verdict's sentence, or the line that says why this version cannot read it."""
    try:
        report = read_report(run.path)
    except InputError as error:
        return str(error)
    return report.verdict.sentence if report else ""


def print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print ``facts`` as JSON if that was asked for."""
    if as_json:
        write_json(facts)


def main(arguments: list[str] | None = None, command: str = PUSH) -> None:
    """Run a command; each way it can end has its exit code and at most one line.

    Args:
        command: How it was called; help and messages name it so.
    """
    interrupted = "stopped here; a session on Kaggle continues, `wait` and `fetch` find it again"
    with redacted_output(), exit_on_error(interrupted=interrupted):
        prepare_credentials()
        prepare_network()
        cli.help = (cli.help or "").replace(PUSH, command)
        cli.main(arguments, prog_name=command, standalone_mode=False)
