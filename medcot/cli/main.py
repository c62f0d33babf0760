"""Defines the command ``medcot``: each subcommand gets a config, calls the engine, prints."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medcot import __version__
from medcot.cli.config_command import ConfigCommand
from medcot.cli.exit_codes import ExitCode, exit_on_error
from medcot.credentials import prepare_credentials, redacted_output
from medcot.distributed import comm
from medcot.hardware.host_memory import keep_heap_small
from medcot.network import prepare_network
from medcot.paths import expand_home
from medcot.terminal import say, write, write_json

if TYPE_CHECKING:
    from medcot.comparing.answers import TwoReplies
    from medcot.comparing.sides import Side
    from medcot.config.resolve import Resolved
    from medcot.config.schema import RunConfig
    from medcot.listener import Listener
    from medcot.reporting.schema import Report
    from medcot.runs.directory import RunDirectory

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class PassedOn(click.Command):
    """Passes its arguments on as they are, ``--help`` and ``--`` included, to another program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep ``args`` unread."""
        ctx.args = list(args)
        return ctx.args


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="medcot")
def cli() -> None:
    """Fine-tune a small reasoning model on medical chain-of-thought; learn whether it helped.

    Without a GPU, a network or an account: medcot run --preset demo
    """


@cli.command("run", cls=ConfigCommand)
def run_command(**flags: Any) -> None:
    """Plan, score before, train, score after, report."""
    from medcot.cli.options import resolve_flags
    from medcot.cli.run_choice import choose_directory

    resolved = resolve_flags(flags)
    directory = choose_directory(resolved)
    from medcot.pipeline.run import run

    with _terminal(as_json=resolved.json) as listener:
        listener.say(_preset_line(resolved))
        config = _config_for(resolved, directory)
        report = run(config, directory, listener, resume=resolved.resume)
    _print_report(report, directory, as_json=resolved.json)


@cli.command(
    "study",
    cls=ConfigCommand,
    params=[
        click.Option(
            ["--vary"],
            multiple=True,
            metavar="NAME=V,V",
            help="values that arms differ in, such as rank=4,16; repeatable",
        ),
        click.Argument(["file"], required=False),
    ],
)
def study_command(vary: tuple[str, ...], file: str | None, **flags: Any) -> None:
    """Compare recipes: arms x seeds on the same test rows, picked by validation loss.

    FILE is a .toml file of options with a table [vary]. Start the command again on the same --out
    to continue, also in several processes at once.
    """
    from medcot.cli.study import resolve_study
    from medcot.pipeline.study import run_study
    from medcot.reporting.study import state_study

    config, varied, folder, as_json = resolve_study(file, vary, flags)
    with _terminal(as_json=as_json) as listener:
        study = run_study(config, varied, folder, listener)
    if as_json:
        return _print_json(study.to_json())
    for message in state_study(study):
        say(str(message))
    say(f"report: {folder / 'study.md'}")
    return None


@cli.command(
    "plan",
    cls=ConfigCommand,
    places=False,
    params=[
        click.Option(
            ["--gpu"],
            metavar="NAME",
            help="plan for this GPU: T4, 2xT4, L4, A10G, RTX 4090, A100, H100, H200",
        ),
        click.Option(
            ["--vary"], multiple=True, metavar="NAME=V,V", help="price a study of these arms"
        ),
    ],
)
def plan_command(gpu: str | None, vary: tuple[str, ...], **flags: Any) -> None:
    """Predict parameters, memory and time; say what would be chosen and why."""
    from medcot.cli.options import resolve_flags
    from medcot.hardware.machine import detect_machine, named_machine
    from medcot.pipeline.prepare import plan_only
    from medcot.planning.plan import describe

    machine = named_machine(gpu) if gpu else detect_machine()
    resolved = resolve_flags(flags, machine)
    if vary:
        from medcot.cli.study import describe_price, price_study

        arms, seeds = price_study(resolved.config, vary, machine), resolved.config.seeds
        if resolved.json:
            return _print_json({"seeds": seeds, "arms_s": arms, "total_s": sum(arms.values())})
        for line in describe_price(arms, seeds):
            say(line)
        return None
    plan = plan_only(resolved.config, machine)
    if resolved.json:
        return _print_json(plan.to_json())
    say(_preset_line(resolved))
    for line in describe(plan):
        say(line)
    return None


@cli.command(
    "config",
    cls=ConfigCommand,
    places=False,
    params=[
        click.Option(
            ["--schema"],
            type=click.Choice(("run", "study")),
            is_flag=False,
            flag_value="run",
            help="print the JSON schema of such a file instead (default: run)",
        ),
    ],
)
def config_command(schema: str | None, **flags: Any) -> None:
    """Print the options as they are resolved, as a file for --config."""
    from medcot.config.file_schema import describe_file, write_options

    if schema:
        from medcot.pipeline.study import TRAINING_FIELDS

        return _print_json(describe_file(TRAINING_FIELDS if schema == "study" else ()))
    from medcot.cli.options import resolve_flags

    resolved = resolve_flags(flags)
    if resolved.json:
        return _print_json(resolved.config.model_dump(mode="json"))
    say(f"# {_preset_line(resolved)}")
    for line in write_options(resolved.config):
        say(line)
    return None


@cli.command("train", cls=ConfigCommand)
def train_command(**flags: Any) -> None:
    """Plan and train only; score with `medcot evaluate`."""
    from medcot.cli.options import resolve_flags
    from medcot.cli.run_choice import choose_directory

    resolved = resolve_flags(flags)
    directory = choose_directory(resolved)
    from medcot.pipeline.run import train_only

    with _terminal(as_json=resolved.json) as listener:
        listener.say(_preset_line(resolved))
        config = _config_for(resolved, directory)
        result = train_only(config, directory, listener, resume=resolved.resume)
    if resolved.json:
        return _print_json(result)
    say(f"adapter: {directory.adapter}")
    return None


RUN = click.option(
    "--run", "run_path", metavar="DIR", help="run directory (default: the newest in runs/)"
)
JSON = click.option("--json", "as_json", is_flag=True, help="print facts as JSON")


@cli.command("evaluate")
@RUN
@click.option("--mcq", multiple=True, metavar="FILE", help="multiple-choice sets to add")
@click.option(
    "--lm-eval",
    multiple=True,
    metavar="TASK",
    help="tasks of the installed lm_eval, or question files for it",
)
@click.option(
    "--ability-samples",
    type=click.IntRange(1, 100_000),
    metavar="INTEGER",
    help="general items to add, which show what training cost",
)
@click.option(
    "--ability-task",
    multiple=True,
    metavar="TASK",
    help="lm_eval tasks that show what training cost, apart from the exam",
)
@JSON
def evaluate_command(
    *,
    run_path: str | None,
    mcq: tuple[str, ...],
    lm_eval: tuple[str, ...],
    ability_samples: int | None,
    ability_task: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score base and tuned model on the run's test rows; write the report."""
    from medcot.cli.run_choice import existing_run

    directory = existing_run(run_path)
    from medcot.pipeline.run import evaluate_only

    with _terminal(as_json=as_json) as listener:
        sets, tasks = tuple(map(expand_home, mcq)), tuple(map(expand_home, lm_eval))
        report = evaluate_only(
            directory,
            listener,
            mcq=sets,
            lm_eval=tasks,
            ability_samples=ability_samples,
            ability_tasks=ability_task,
        )
    _print_report(report, directory, as_json=as_json)


@cli.command("report")
@RUN
@JSON
def report_command(*, run_path: str | None, as_json: bool) -> None:
    """Write the report again from the stored scores; of a run on Kaggle, fetch it first."""
    from medcot.cli.run_choice import existing_run

    directory = existing_run(run_path)
    from medcot.pipeline.run import report_only

    if not directory.evaluation("before").exists() and (fetched := _take_over(directory)):
        _print_report(fetched, directory, as_json=as_json)
        return
    with _terminal(as_json=as_json) as listener:
        report = report_only(directory, listener)
    _print_report(report, directory, as_json=as_json)


def _take_over(directory: RunDirectory) -> Report | None:
    """Fetch the report of a run that was sent to Kaggle; None for any other run."""
    from medcot.cli.kaggle import take_over
    from medcot.reporting.storage import read_report

    return read_report(directory.path) if take_over(directory) else None


@cli.command("ask")
@RUN
@click.option("--base", is_flag=True, help="ask the untuned model")
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 32_768), metavar="N", help="longest answer"
)
@click.option("--server", metavar="URL", help="ask a running `medcot serve` instead of loading")
@JSON
@click.argument("question")
def ask_command(
    *,
    run_path: str | None,
    base: bool,
    max_new_tokens: int | None,
    server: str | None,
    as_json: bool,
    question: str,
) -> None:
    """Stream the model's thought and answer to QUESTION.

    Before your first run, the tuned model is the one that comes with medcot.
    """
    from medcot.cli.run_choice import run_to_ask
    from medcot.inference.ask import ask, describe_reply, write_reply

    if server is None:
        directory = run_to_ask(run_path, question)
        replies = ask(directory, question, base=base, max_new_tokens=max_new_tokens)
    elif base or run_path:
        raise click.UsageError("--server answers with its own model: omit --run and --base")
    else:
        from medcot.inference.remote import ask_server

        replies = ask_server(server, question, max_new_tokens)
    if as_json:
        return _print_json(describe_reply(question, replies, base=base))
    for piece in write_reply(replies):
        write(piece)
    say()
    return None


@cli.command("export")
@RUN
@click.option(
    "--to",
    "formats",
    multiple=True,
    metavar="FORMAT",
    help="adapter, merged, gguf, ollama or hub; repeatable",
)
@click.option("--out", metavar="DIR", help="folder of the exports (default: DIR/export of the run)")
@click.option(
    "--quantize", multiple=True, metavar="TYPE", help="of a GGUF: F16, Q8_0, Q4_K_M …; repeatable"
)
@click.option(
    "--repo", default="", metavar="OWNER/NAME", help="repository on the hub, for --to hub"
)
@click.option("--public", is_flag=True, help="make the repository public; new ones are private")
@click.option("--no-proof", is_flag=True, help="do not compare the exports with the run")
@JSON
def export_command(
    *,
    run_path: str | None,
    formats: tuple[str, ...],
    out: str | None,
    quantize: tuple[str, ...],
    repo: str,
    public: bool,
    no_proof: bool,
    as_json: bool,
) -> None:
    """Take the model away in other formats, each proved equal to what was scored."""
    from medcot.cli.run_choice import existing_run
    from medcot.exporting.formats import parse_formats, parse_quantizations
    from medcot.exporting.workflow import ExportOptions, export_run

    options = ExportOptions(
        parse_formats(formats),
        parse_quantizations(quantize),
        Path(out) if out else None,
        prove=not no_proof,
        repository=repo,
        public=public,
    )
    with _terminal(as_json=as_json) as listener:
        records = export_run(existing_run(run_path), options, listener)
    if as_json:
        _print_json([record.to_json() for record in records])


@cli.command("serve")
@RUN
@click.option("--export", "export_path", metavar="DIR", help="serve this export instead")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one"
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="file with the token; made with a new one if it does not exist",
)
@click.option(
    "--backend",
    default="auto",
    metavar="NAME",
    help="what runs the model: vllm, transformers or llama.cpp (default: what fits)",
)
@JSON
def serve_command(
    *,
    run_path: str | None,
    export_path: str | None,
    host: str,
    port: int,
    token_file: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Serve the tuned model to OpenAI clients, with a token."""
    from medcot.cli.run_choice import existing_run
    from medcot.config.resolve import check_path
    from medcot.serving.backends import parse_backend
    from medcot.serving.target import open_export, open_run
    from medcot.serving.workflow import ServeOptions, serve

    if export_path is not None:
        directory = existing_run(run_path) if run_path else None
        target = open_export(check_path("--export", export_path), directory)
    else:
        target = open_run(existing_run(run_path))
    file = check_path("--token-file", token_file) if token_file else None
    options = ServeOptions(host, port, file, parse_backend(backend))
    if as_json:
        serve(target, options, partial(say, err=True), announce=_print_json)
    else:
        serve(target, options, say)


@cli.command("compare")
@click.option(
    "--run",
    "run_paths",
    multiple=True,
    metavar="DIR",
    help="run directory; give two, or one for its base against its tuned model",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 32_768), metavar="N", help="longest answer"
)
@JSON
@click.argument("question", required=False)
def compare_command(
    *,
    run_paths: tuple[str, ...],
    max_new_tokens: int | None,
    as_json: bool,
    question: str | None,
) -> None:
    """Compare two runs by their scored rows or, with QUESTION, by their answers."""
    from medcot.cli.run_choice import existing_run
    from medcot.comparing.sides import choose_sides

    first, second = choose_sides([existing_run(path) for path in run_paths or (None,)])
    if question is None:
        from medcot.comparing.rows import compare_sides
        from medcot.comparing.wording import describe_comparison

        comparison = compare_sides(first, second)
        if as_json:
            return _print_json(comparison.to_json())
        for line in describe_comparison(comparison):
            say(line)
        return None
    from medcot.cli.compare import show_replies
    from medcot.cli.progress import make_console
    from medcot.comparing.answers import ask_both

    replies = ask_both(first, second, question, max_new_tokens)
    if as_json:
        return _print_json(_describe_replies(question, replies, first, second))
    show_replies(replies, (first, second), make_console())
    return None


@cli.command("data")
@click.argument("source", default="sample")
@click.option("--language", default="en", metavar="en|zh", help="language of the data")
@click.option(
    "--columns", default="", metavar="LIST", help="question=NAME,thought=NAME,answer=NAME"
)
@click.option("--thought", default="auto", metavar="NAME", help="auto, train or none")
@click.option("--train-turns", default="last", metavar="NAME", help="last or all")
@click.option("--dataset-config", default="", metavar="NAME", help="hub configuration")
@click.option("--dataset-revision", default="", metavar="REV", help="hub branch, tag or commit")
@JSON
def data_command(*, source: str, as_json: bool, **options: str) -> None:
    """Validate and describe a data set: a hub name, a file, a folder or `sample`."""
    from medcot.config.presets import make_config
    from medcot.data.inspection import describe_inspection, inspect_dataset

    inspection = inspect_dataset(make_config("demo", {"dataset": source, **options}))
    if as_json:
        _print_json(inspection)
    else:
        for line in describe_inspection(inspection):
            say(line)
    if inspection.problems:
        sys.exit(ExitCode.WRONG_INPUT)


@cli.command("doctor")
@click.option("--online", is_flag=True, help="also ask Kaggle for the account's GPU hours")
@JSON
def doctor_command(*, online: bool, as_json: bool) -> None:
    """Check what this machine can do and what is missing."""
    from medcot.cli.doctor import describe_findings, examine_machine

    findings = examine_machine(online=online)
    if as_json:
        return _print_json([asdict(finding) for finding in findings])
    for line in describe_findings(findings):
        say(line)
    return None


@cli.command("app", cls=PassedOn)
@click.pass_context
def app_command(context: click.Context) -> None:
    """Open the notebook in the browser."""
    # The command line and the notebook do not know one another: the server is its own program.
    server = [sys.executable, "-m", "medcot.notebook.server", *context.args]
    os.execv(sys.executable, server)


@cli.command("tutorial", cls=PassedOn)
@click.pass_context
def tutorial_command(context: click.Context) -> None:
    """Execute the notebook and write its pages as a static site."""
    os.execv(sys.executable, [sys.executable, "-m", "medcot.notebook.static_site", *context.args])


@cli.command("kaggle", cls=PassedOn)
@click.pass_context
def kaggle_command(context: click.Context) -> None:
    """Run medcot on Kaggle's free GPUs: build, push, wait, fetch and more."""
    from medcot.cli.kaggle import main as run_on_kaggle

    run_on_kaggle(context.args, command="medcot kaggle")


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; errors print as one line."""
    keep_heap_small()
    # The collector would look at all that PyTorch and TRL imported, for two seconds, to free what
    # the system takes back anyway.
    atexit.register(gc.freeze)
    with redacted_output(), exit_on_error():
        prepare_credentials()
        prepare_network()
        if comm.is_main():
            cli.main(arguments, prog_name="medcot", standalone_mode=False)
            comm.broadcast(None)
        else:
            _work_for_main_process()
        comm.close()


def _work_for_main_process() -> None:
    """Take part in whatever command the main process runs, without printing."""
    from medcot.cli.progress import TerminalListener, make_console
    from medcot.pipeline.worker import run_worker

    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        TerminalListener(make_console(quiet=True), always_finishes=True).live() as listener,
    ):
        run_worker(listener)


def _describe_replies(
    question: str, replies: Iterator[TwoReplies], first: Side, second: Side
) -> dict[str, Any]:
    from medcot.inference.ask import describe_reply

    *_, last = replies
    pairs = (("first", first, last.first), ("second", second, last.second))
    return {
        name: {"run": side.label, **describe_reply(question, [reply], base=side.is_base)}
        for name, side, reply in pairs
        if reply is not None
    }


def _config_for(resolved: Resolved, directory: RunDirectory) -> RunConfig:
    """Return the config of the flags or, to resume, that of the run itself."""
    from medcot.cli.run_choice import RESUMABLE, config_of_run

    if not (resolved.resume and directory.exists()):
        return resolved.config
    return config_of_run(directory, resolved, changeable=RESUMABLE, ignored=("preset",))


@contextmanager
def _terminal(*, as_json: bool) -> Generator[Listener]:
    """Show progress on the terminal; with ``--json``, send everything else to stderr."""
    from medcot.cli.progress import TerminalListener, make_console

    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with aside, TerminalListener(make_console()).live() as listener:
        yield listener


def _preset_line(resolved: Resolved) -> str:
    why = f", because {resolved.preset_reason}" if resolved.preset_reason else ""
    return f"preset {resolved.config.preset}{why}"


def _print_report(report: Report, directory: RunDirectory, *, as_json: bool) -> None:
    if as_json:
        from medcot.reporting.storage import report_to_json

        return _print_json(report_to_json(report))
    from medcot.reporting.wording import word_opening

    if opening := word_opening(report, "en"):
        say(opening)
    say(report.verdict.sentence)
    say(f"report: {directory.report_markdown}")
    say(_next_steps(directory))
    return None


def _next_steps(directory: RunDirectory) -> str:
    """Say in one line what to do with a finished run."""
    place = shlex.quote(str(directory.path))
    steps = [f"open {directory.report_page}", f'medcot ask --run {place} "your question"']
    if Path("Makefile").is_file() and Path("apps/tutorial.py").is_file():
        steps.append(f"make tutorial RUN={place}")
    else:
        steps.append(f"medcot app -- --run {place}")
    return f"next: {'; '.join(steps)}"


def _print_json(value: Any) -> None:
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    write_json(plain)
