"""Carries out a run: plan, score before, train, score after, report."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.errors import Cancelled, InputError
from medcot.evaluation.interface import ScoredRow, row_to_json, rows_from_json
from medcot.evaluation.suite import evaluate
from medcot.inference.loglikelihood import score_rows
from medcot.listener import Listener
from medcot.pipeline.collective import (
    broadcast_step,
    choose_answer,
    collective_tools,
    load_adapter,
)
from medcot.pipeline.failures import recorded
from medcot.pipeline.fingerprints import record_adapter
from medcot.pipeline.prepare import Prepared, prepare
from medcot.pipeline.report import write_report
from medcot.pipeline.seeds import (
    list_seed_directories,
    require_one_process,
    score_seeds,
    train_seeds,
)
from medcot.pipeline.worker import broadcast_task
from medcot.planning.speed_model import count_scorings
from medcot.records import Event
from medcot.reporting.schema import Report
from medcot.reporting.storage import report_to_json
from medcot.runs.directory import Phase, RunDirectory, Stage
from medcot.training.tracking import Tracker, start_tracking


def run(
    config: RunConfig,
    directory: RunDirectory,
    listener: Listener | None = None,
    *,
    resume: bool = False,
    scores_before: Path | None = None,
) -> Report:
    """Plan, score, train, score again and return the report.

    A resumed run repeats nothing that is on disk. Under a launcher this function is for the main
    process; the workers call :func:`medcot.pipeline.worker.run_worker`.

    Args:
        scores_before: Rows that another run scored with the same untuned model, to be taken over.

    Raises:
        InputError: Something given is wrong; nothing was started.
        RunFailed: A stage failed; ``error.json`` says why, finished work is kept.
        Cancelled: The listener asked to stop; finished work is kept.
    """
    listener = listener or Listener()
    with recorded(directory, listener, resume=resume):
        require_one_process(config)
        prepared = prepare(config, directory, listener, resume=resume)
        if scores_before is not None and not directory.evaluation("before").exists():
            text = scores_before.read_text(encoding="utf-8")
            directory.write_text("evaluation/before.jsonl", text)
        broadcast_task(prepared)
        with _tracked(prepared, listener) as tracker:
            loaded = models.load_base(config, prepared.plan)
            _announce_times(prepared, listener, "before", "training", "after", "seeds")
            score(prepared, loaded, "before", listener)
            train(prepared, loaded, listener, tracker)
            score(prepared, loaded, "after", listener)
            if config.seeds > 1:
                score_seeds(prepared, loaded, listener)
            models.release(loaded)
            report = write_report(prepared, listener)
            tracker.finish(report_to_json(report))
        directory.set_stage("done")
    return report


def train_only(
    config: RunConfig, directory: RunDirectory, listener: Listener, *, resume: bool = False
) -> dict[str, Any]:
    """Plan and train without scoring, and return ``training.json``.

    :func:`evaluate_only` can score the run later.
    """
    with recorded(directory, listener, resume=resume):
        require_one_process(config)
        prepared = prepare(config, directory, listener, resume=resume)
        broadcast_task(prepared)
        with _tracked(prepared, listener) as tracker:
            loaded = models.load_base(config, prepared.plan)
            _announce_times(prepared, listener, "training")
            train(prepared, loaded, listener, tracker)
            tracker.finish(None)
        directory.set_stage("trained")
    return directory.read_json("training.json")


def evaluate_only(
    directory: RunDirectory,
    listener: Listener,
    mcq: tuple[str, ...] = (),
    lm_eval: tuple[str, ...] = (),
    ability_samples: int | None = None,
    ability_tasks: tuple[str, ...] = (),
) -> Report:
    """Score what is missing of the base and the tuned model, and return the report.

    Args:
        mcq: Multiple-choice sets to add to those of the run.
        lm_eval: Tasks of lm-evaluation-harness, or files of questions for it to score.
        ability_samples: General items to ask, if the run has none yet.
        ability_tasks: Tasks of lm-evaluation-harness that count as what training cost.

    Raises:
        InputError: The run is not trained, or a set or task cannot be scored.
    """
    # No kernel on Kaggle carries it.
    from medcot.pipeline.lm_eval import ready_tasks, score_tasks

    config = directory.config()
    require_one_process(config)
    if directory.working_directory() != str(Path.cwd()):
        mcq = tuple(str(Path(name).absolute()) if Path(name).exists() else name for name in mcq)
    added = tuple(name for name in mcq if name not in config.mcq)
    if added:
        config = config.model_copy(update={"mcq": (*config.mcq, *added)})
    if ability_samples:
        config = config.model_copy(update={"ability_samples": ability_samples})
    if not directory.has("training.json"):
        raise InputError(f"--run {directory.path}", "the run is not trained yet", "train it first")
    with recorded(directory, listener, resume=True):
        tasks = ready_tasks(lm_eval, config, directory, ability_tasks)
        prepared = prepare(config, directory, listener, resume=True)
        if added:
            for one in (directory, *list_seed_directories(directory, config)):
                kept = one.read_json("config.json")
                new = [name for name in added if name not in kept.get("mcq", ())]
                one.write_json("config.json", kept | {"mcq": [*kept.get("mcq", ()), *new]})
        if ability_samples:
            kept = directory.read_json("config.json")
            directory.write_json("config.json", kept | {"ability_samples": ability_samples})
        if tasks and prepared.plan.split:
            got = "the harness cannot use weights that are split over processes (FSDP)"
            needs = "evaluate without FSDP"
            raise InputError(f"--lm-eval {tasks[0].name}", got, needs)
        broadcast_task(prepared)
        with _tracked(prepared, listener) as tracker:
            loaded = models.load_base(config, prepared.plan)
            _announce_times(prepared, listener, "before", "after")
            score(prepared, loaded, "before", listener)
            score_tasks(prepared, loaded, "before", tasks, listener)
            load_adapter(loaded, config, prepared.plan, directory.adapter)
            score(prepared, loaded, "after", listener)
            score_tasks(prepared, loaded, "after", tasks, listener)
            if config.seeds > 1:
                score_seeds(prepared, loaded, listener)
            models.release(loaded)
            report = write_report(prepared, listener)
            tracker.finish(report_to_json(report))
        directory.set_stage("done")
    return report


def report_only(directory: RunDirectory, listener: Listener) -> Report:
    """Write and return the report of a run again, from its scored rows."""
    with recorded(directory, listener, resume=True):
        prepared = prepare(directory.config(), directory, listener, resume=True)
        report = write_report(prepared, listener)
        directory.set_stage("done")
    return report


def score(
    prepared: Prepared, loaded: models.LoadedModel, phase: Phase, listener: Listener
) -> list[ScoredRow]:
    """Evaluate the model and return its rows. Rows already on disk are not computed again."""
    directory = prepared.directory
    _begin(phase, directory, listener)
    path = directory.evaluation(phase)

    def progress(done: int, total: int) -> None:
        listener.progress(done, total)
        if (listener.should_stop() or comm.stop_requested()) and done < total:
            raise Cancelled

    return evaluate(
        prepared.suite,
        collective_tools(loaded, prepared.config, listener.should_stop, listener.answering),
        done=rows_from_json(directory.rows(path), where=str(path)),
        save=lambda row: directory.append(path, row_to_json(row)),
        on_progress=progress,
        answer=choose_answer(loaded, phase, listener.should_stop),
    )


def train(
    prepared: Prepared, loaded: models.LoadedModel, listener: Listener, tracker: Tracker
) -> None:
    """Put an adapter on ``loaded`` and train it, or load the one that is already trained.

    With several seeds all are trained, and the best is loaded.
    """
    directory, config = prepared.directory, prepared.config
    if not directory.has("training.json"):
        _begin("training", directory, listener)
        if config.seeds == 1:
            train_one(prepared, loaded, listener, tracker)
            return
        untracked = partial(train_one, tracker=Tracker())
        train_seeds(prepared, loaded, listener, untracked, tracker.log)
    load_adapter(loaded, config, prepared.plan, directory.adapter)


def train_one(
    prepared: Prepared, loaded: models.LoadedModel, listener: Listener, tracker: Tracker
) -> None:
    """Put a new adapter on ``loaded``, train it with one seed, and write ``training.json``."""
    from medcot.training.fit import ValidationRows, fit

    directory, config = prepared.directory, prepared.config

    def on_event(event: Event) -> None:
        tracker.log(event)
        listener.event(event)

    broadcast_step("train")
    models.add_adapter(loaded, config, prepared.plan)
    result = fit(
        loaded, prepared.rows, config, prepared.plan, directory, on_event, listener.should_stop,
        ValidationRows(prepared.validation, score_rows),
    )  # fmt: skip
    if result.cancelled:
        raise Cancelled
    record_adapter(directory)
    directory.write_json("training.json", asdict(result) | {"plan": prepared.plan.to_json()})


@contextmanager
def _tracked(prepared: Prepared, listener: Listener) -> Generator[Tracker]:
    """Open the run's trackers, and close them as failed when the body raises."""
    tracker = start_tracking(prepared.config, prepared.directory, listener.say)
    try:
        yield tracker
    except BaseException:
        tracker.finish(None, exit_code=1)
        raise


def _announce_times(prepared: Prepared, listener: Listener, *stages: str) -> None:
    """Tell how long the plan expects each of ``stages`` to take; training once only."""
    times = prepared.plan.time_s
    seeds = prepared.config.seeds
    scoring = times["evaluate"] / count_scorings(prepared.config)
    expected = {"before": scoring, "training": times["train"], "after": scoring}
    if seeds > 1:
        expected["seeds"] = times["evaluate"] - 2 * scoring
    if prepared.directory.has("training.json"):
        del expected["training"]
    listener.planned({name: seconds for name, seconds in expected.items() if name in stages})


def _begin(stage: Stage, directory: RunDirectory, listener: Listener) -> None:
    directory.set_stage(stage)
    listener.stage(stage)
