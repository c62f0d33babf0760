"""The whole story of a run: plan, score before, train, score after, report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from medcot import model as models
from medcot.config import RunConfig
from medcot.errors import Cancelled, InputError, RunFailed, one_line
from medcot.evaluation import examine
from medcot.preparation import Listener, Prepared, prepare
from medcot.records import Event
from medcot.report import build_report, render_markdown, write_figures
from medcot.rundir import Phase, RunDirectory
from medcot.tracking import Tracker, start_tracking


def run(
    config: RunConfig,
    directory: RunDirectory,
    listener: Listener | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Do all of it and give the report. A resumed run redoes nothing that is on disk.

    Raises:
        InputError: something given is wrong; nothing was started.
        RunFailed: a stage failed; ``error.json`` says why, everything done is kept.
        Cancelled: the listener asked to stop; everything done is kept.
    """
    listener = listener or Listener()
    with recorded(directory):
        prepared = prepare(config, directory, listener, resume)
        tracker = start_tracking(config, directory, listener.say)
        try:
            loaded = models.load_base(config, prepared.plan)
            score(prepared, loaded, "before", listener)
            train(prepared, loaded, listener, tracker)
            score(prepared, loaded, "after", listener)
            models.release(loaded)
            report = write_report(prepared, listener)
        except BaseException:
            tracker.finish(None, exit_code=1)
            raise
        tracker.finish(report)
        directory.set_stage("done")
    return report


def train_only(
    config: RunConfig, directory: RunDirectory, listener: Listener, resume: bool = False
) -> dict[str, Any]:
    """Plan and train, without scoring; :func:`evaluate_only` can follow."""
    with recorded(directory):
        prepared = prepare(config, directory, listener, resume)
        tracker = start_tracking(config, directory, listener.say)
        try:
            loaded = models.load_base(config, prepared.plan)
            train(prepared, loaded, listener, tracker)
        finally:
            tracker.finish(None)
        directory.set_stage("trained")
    return directory.read_json("training.json")


def evaluate_only(
    directory: RunDirectory,
    listener: Listener,
    mcq: tuple[str, ...] = (),
    lm_eval: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Score what of base and tuned model is not scored yet, and report.

    ``mcq`` names further multiple-choice sets, ``lm_eval`` tasks of lm-evaluation-harness.
    """
    config = directory.config()
    added = tuple(name for name in mcq if name not in config.mcq)
    if added:
        config = config.model_copy(update={"mcq": (*config.mcq, *added)})
    if not directory.has("training.json"):
        raise InputError("--run", f"{directory.path}, which is not trained", "a trained run")
    with recorded(directory):
        prepared = prepare(config, directory, listener, resume=True)
        if added:
            directory.write_json("config.json", config.model_dump(mode="json"))
        loaded = models.load_base(config, prepared.plan)
        score(prepared, loaded, "before", listener)
        score_tasks(prepared, loaded, "before", lm_eval, listener)
        models.load_adapter(loaded, directory.adapter)
        score(prepared, loaded, "after", listener)
        score_tasks(prepared, loaded, "after", lm_eval, listener)
        models.release(loaded)
        report = write_report(prepared, listener)
        directory.set_stage("done")
    return report


def report_only(directory: RunDirectory, listener: Listener) -> dict[str, Any]:
    """Write the report of a run again from its scored rows."""
    with recorded(directory):
        prepared = prepare(directory.config(), directory, listener, resume=True)
        report = write_report(prepared, listener)
        directory.set_stage("done")
    return report


def score(
    prepared: Prepared, loaded: models.LoadedModel, phase: Phase, listener: Listener
) -> list[dict[str, Any]]:
    """Hold the examination and keep every row at once; rows on disk are not computed again."""
    from medcot.inference import model_tools

    directory = prepared.directory
    directory.set_stage(phase)
    listener.stage(phase)
    path = directory.evaluation(phase)

    def progress(done: int, total: int) -> None:
        listener.progress(done, total)
        if listener.should_stop() and done < total:
            raise Cancelled

    return examine(
        prepared.examination,
        model_tools(loaded, prepared.config),
        done=list(directory.rows(path)),
        save=lambda row: directory.append(path, row),
        on_progress=progress,
    )


def score_tasks(
    prepared: Prepared,
    loaded: models.LoadedModel,
    phase: Phase,
    tasks: tuple[str, ...],
    listener: Listener,
) -> None:
    """Let lm-evaluation-harness score its own tasks; their rows join the others of the phase."""
    directory = prepared.directory
    path = directory.evaluation(phase)
    known = {row["set"] for row in directory.rows(path)}
    missing = [task for task in tasks if task not in known]
    if not missing:
        return
    from medcot.lm_eval_bridge import run_lm_eval

    listener.stage(f"lm_eval {phase}")
    for row in run_lm_eval(loaded.model, loaded.tokenizer, missing):
        directory.append(path, row)


def train(
    prepared: Prepared, loaded: models.LoadedModel, listener: Listener, tracker: Tracker
) -> None:
    """Put an adapter on ``loaded`` and train it, or take the one that is trained already."""
    from medcot.training import fit

    directory, config = prepared.directory, prepared.config
    if directory.has("training.json"):
        models.load_adapter(loaded, directory.adapter)
        return
    directory.set_stage("training")
    listener.stage("training")

    def on_event(event: Event) -> None:
        tracker.log(event)
        listener.event(event)

    models.add_adapter(loaded, config, prepared.plan)
    result = fit(
        loaded, prepared.rows, config, prepared.plan, directory, on_event, listener.should_stop
    )
    if result.cancelled:
        raise Cancelled
    directory.write_json("training.json", asdict(replace(result, plan=prepared.plan)))


def write_report(prepared: Prepared, listener: Listener) -> dict[str, Any]:
    """Compare before and after, and write ``report.json``, ``report.md`` and the figures.

    Raises:
        InputError: one of the two was not scored in full.
    """
    directory = prepared.directory
    directory.set_stage("report")
    listener.stage("report")
    before = list(directory.rows(directory.evaluation("before")))
    after = list(directory.rows(directory.evaluation("after")))
    report = build_report(before, after, prepared.examination, prepared.config, _facts(prepared))
    directory.write_json("report.json", report)
    events = list(directory.rows(directory.events))
    write_figures(report, events, directory.path)
    directory.write_text("report.md", render_markdown(report))
    return report


def _facts(prepared: Prepared) -> dict[str, Any]:
    """What the report says of the run. Nothing in it changes between two runs of one seed."""
    return {
        "dataset": {
            "name": prepared.dataset.name,
            "revision": prepared.dataset.revision,
            "fingerprint": prepared.dataset.fingerprint,
            "synthetic": prepared.dataset.synthetic,
        },
        "rows": len(prepared.rows),
        "dropped": [asdict(row) for row in prepared.dropped],
        "leaks": [asdict(leak) for leak in prepared.leaks],
        "steps": prepared.config.total_steps(len(prepared.rows)),
        "trainable_parameters": prepared.plan.trainable_parameters,
        "total_parameters": prepared.plan.total_parameters,
    }


@contextmanager
def recorded(directory: RunDirectory) -> Iterator[None]:
    """Leave ``status.json`` and, on failure, ``error.json`` behind, whatever happens inside."""
    directory.remove("error.json")
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        if directory.exists():
            directory.set_stage("cancelled", resume=f"medcot run --resume --out {directory.path}")
        raise Cancelled from None
    except InputError:
        raise
    except Exception as error:
        stage = (directory.stage() if directory.exists() else None) or "start"
        failure = error if isinstance(error, RunFailed) else _unforeseen(stage, error)
        if directory.exists():
            details = {"stage": failure.stage, "message": failure.message, "remedy": failure.remedy}
            directory.write_json("error.json", details | {"traceback": traceback.format_exc()})
            directory.set_stage("failed")
        raise failure from error


def _unforeseen(stage: str, error: Exception) -> RunFailed:
    if type(error).__name__ == "OutOfMemoryError":
        return RunFailed(
            stage, "memory ran out.", "Try --quantization 4bit or a shorter --max-length."
        )
    return RunFailed(
        stage,
        f"{type(error).__name__}: {one_line(str(error))}.",
        "error.json has the details; --resume goes on.",
    )
