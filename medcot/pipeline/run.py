"""The whole story of a run: plan, score before, train, score after, report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.errors import Cancelled, InputError, RunFailed, one_line
from medcot.evaluation.interface import ScoredRow, row_to_json, rows_from_json
from medcot.evaluation.suite import evaluate
from medcot.listener import Listener
from medcot.pipeline.collective import announce, ask_of, load_adapter, tools_of
from medcot.pipeline.lm_eval import ready_tasks, score_tasks
from medcot.pipeline.prepare import Prepared, prepare
from medcot.pipeline.report import write_report
from medcot.pipeline.worker import hand_out
from medcot.records import Event
from medcot.reporting.schema import Report
from medcot.reporting.storage import report_to_json
from medcot.runs.directory import Phase, RunDirectory
from medcot.training.tracking import Tracker, start_tracking


def run(
    config: RunConfig,
    directory: RunDirectory,
    listener: Listener | None = None,
    resume: bool = False,
) -> Report:
    """Do all of it and give the report. A resumed run redoes nothing that is on disk.

    Under a launcher this is for the main process; the others call ``beside.take_part``.

    Raises:
        InputError: something given is wrong; nothing was started.
        RunFailed: a stage failed; ``error.json`` says why, everything done is kept.
        Cancelled: the listener asked to stop; everything done is kept.
    """
    listener = listener or Listener()
    with recorded(directory):
        prepared = prepare(config, directory, listener, resume)
        hand_out(prepared)
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
        tracker.finish(report_to_json(report))
        directory.set_stage("done")
    return report


def train_only(
    config: RunConfig, directory: RunDirectory, listener: Listener, resume: bool = False
) -> dict[str, Any]:
    """Plan and train, without scoring; :func:`evaluate_only` can follow."""
    with recorded(directory):
        prepared = prepare(config, directory, listener, resume)
        hand_out(prepared)
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
) -> Report:
    """Score what of base and tuned model is not scored yet, and report.

    ``mcq`` names further multiple-choice sets, ``lm_eval`` tasks of lm-evaluation-harness or files
    of questions for it to score.
    """
    config = directory.config()
    added = tuple(name for name in mcq if name not in config.mcq)
    if added:
        config = config.model_copy(update={"mcq": (*config.mcq, *added)})
    if not directory.has("training.json"):
        raise InputError(f"--run {directory.path}", "the run is not trained yet", "train it first")
    with recorded(directory):
        tasks = ready_tasks(lm_eval, config, directory)
        prepared = prepare(config, directory, listener, resume=True)
        if added:
            directory.write_json("config.json", config.model_dump(mode="json"))
        if tasks and prepared.plan.split:
            got = "the harness cannot use weights that are split over processes (FSDP)"
            needs = "evaluate without FSDP"
            raise InputError(f"--lm-eval {tasks[0].name}", got, needs)
        hand_out(prepared)
        loaded = models.load_base(config, prepared.plan)
        score(prepared, loaded, "before", listener)
        score_tasks(prepared, loaded, "before", tasks, listener)
        load_adapter(loaded, config, prepared.plan, directory.adapter)
        score(prepared, loaded, "after", listener)
        score_tasks(prepared, loaded, "after", tasks, listener)
        models.release(loaded)
        report = write_report(prepared, listener)
        directory.set_stage("done")
    return report


def report_only(directory: RunDirectory, listener: Listener) -> Report:
    """Write the report of a run again from its scored rows."""
    with recorded(directory):
        prepared = prepare(directory.config(), directory, listener, resume=True)
        report = write_report(prepared, listener)
        directory.set_stage("done")
    return report


def score(
    prepared: Prepared, loaded: models.LoadedModel, phase: Phase, listener: Listener
) -> list[ScoredRow]:
    """Run the evaluation suite and save each batch at once; rows on disk are not scored again."""
    directory = prepared.directory
    directory.set_stage(phase)
    listener.stage(phase)
    path = directory.evaluation(phase)

    def progress(done: int, total: int) -> None:
        listener.progress(done, total)
        if (listener.should_stop() or comm.stop_requested()) and done < total:
            raise Cancelled

    return evaluate(
        prepared.suite,
        tools_of(loaded, prepared.config),
        done=rows_from_json(directory.rows(path), where=str(path)),
        save=lambda row: directory.append(path, row_to_json(row)),
        on_progress=progress,
        answer=ask_of(loaded, phase, listener.should_stop),
    )


def train(
    prepared: Prepared, loaded: models.LoadedModel, listener: Listener, tracker: Tracker
) -> None:
    """Put an adapter on ``loaded`` and train it, or take the one that is trained already."""
    from medcot.training.fit import fit

    directory, config = prepared.directory, prepared.config
    if directory.has("training.json"):
        load_adapter(loaded, config, prepared.plan, directory.adapter)
        return
    directory.set_stage("training")
    listener.stage("training")

    def on_event(event: Event) -> None:
        tracker.log(event)
        listener.event(event)

    announce("train")
    models.add_adapter(loaded, config, prepared.plan)
    result = fit(
        loaded, prepared.rows, config, prepared.plan, directory, on_event, listener.should_stop
    )
    if result.cancelled:
        raise Cancelled
    directory.write_json("training.json", asdict(result) | {"plan": prepared.plan.to_json()})


@contextmanager
def recorded(directory: RunDirectory) -> Iterator[None]:
    """Leave ``status.json`` and, on failure, ``error.json`` behind, whatever happens inside."""
    directory.remove("error.json")
    comm.on_failure(lambda ended: _record_failure(directory, ended.as_error()))
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        # A process that failed makes the others stop, which is then no wish of the user's.
        _record_failure(directory, comm.error_elsewhere() or Cancelled())
        raise comm.error_elsewhere() or Cancelled from None
    except InputError:
        raise
    except Exception as error:
        stage = (directory.stage() if directory.exists() else None) or "start"
        own = error if isinstance(error, RunFailed) else _unforeseen(stage, error)
        failure = comm.error_elsewhere() or own
        _record_failure(directory, failure)
        raise failure from error


def _record_failure(directory: RunDirectory, error: Exception) -> None:
    if not directory.exists():
        return
    if isinstance(error, RunFailed):
        details = {"stage": error.stage, "message": str(error.message), "remedy": str(error.remedy)}
        directory.write_json("error.json", details | {"traceback": traceback.format_exc()})
        directory.set_stage("failed")
    else:
        directory.set_stage("cancelled", resume=f"medcot run --resume --out {directory.path}")


def _unforeseen(stage: str, error: Exception) -> RunFailed:
    if type(error).__name__ == "OutOfMemoryError":
        return RunFailed(stage, Message("error_out_of_memory"), Message("needs_4bit_or_shorter"))
    return RunFailed(
        stage,
        f"{type(error).__name__}: {one_line(str(error))}.",
        Message("needs_error_file"),
    )
