"""Trains a recipe several times, with other initial weights and orders, and scores each.

Training ``N`` has a run directory of its own, ``seeds/N``: other commands open it like any run. The
trainings share rows, validation rows, test rows and the scores of the untuned model. The adapter
with the lowest validation loss becomes the adapter of the run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.engines.base import LoadedModel
from medcot.errors import Cancelled, InputError
from medcot.evaluation.interface import (
    ScoredRow,
    row_to_json,
    rows_from_json,
    without_answer,
)
from medcot.evaluation.suite import evaluate, order_rows
from medcot.hardware.machine import detect_machine
from medcot.inference.generate import model_tools
from medcot.listener import Listener
from medcot.pipeline import fingerprints
from medcot.pipeline.prepare import Prepared
from medcot.pipeline.report import find_validation, write_report
from medcot.pipeline.seed_processes import Place, list_gpus, share_cores, train_in_processes
from medcot.planning.plan import Plan
from medcot.records import Event, OnEvent
from medcot.runs.directory import Phase, RunDirectory

logger = logging.getLogger(__name__)

TrainOne = Callable[[Prepared, LoadedModel, Listener], None]
"""Trains one seed on the untuned model and saves its adapter."""

SHARED = ("environment.json", "plan.json", "split.json", fingerprints.FILE)


def require_one_process(config: RunConfig) -> None:
    """Check that no launcher started several processes for one model.

    Raises:
        InputError: One did, and several seeds were asked for.
    """
    if config.seeds > 1 and comm.world_size() > 1:
        got = f"a launcher started {comm.world_size()} processes, which train one model together"
        needs = "start medcot without a launcher: it trains one seed per GPU at a time"
        raise InputError(f"--seeds {config.seeds}", got, needs)


def seed_config(config: RunConfig, number: int) -> RunConfig:
    """Return the config of training ``number``, from 1: the first has the run's own seed."""
    chosen_by = config.seed if config.choice_seed is None else config.choice_seed
    own = {"seed": (config.seed + number - 1) % 2**31, "seeds": 1, "choice_seed": chosen_by}
    unscored = {
        "generate_samples": 0, "thought_samples": 0, "ability_samples": 0,
        "judge_url": "", "judge_model": "", "judge_criteria": "",
    }  # fmt: skip
    return config.model_copy(update=own | unscored)


def list_seed_directories(directory: RunDirectory, config: RunConfig) -> list[RunDirectory]:
    """Return the directories of a run's trainings; none if it has one seed."""
    numbers = range(1, config.seeds + 1) if config.seeds > 1 else ()
    return [directory.of_seed(number) for number in numbers]


def list_seeds(prepared: Prepared) -> list[Prepared]:
    """Return the trainings of a run, each with its directory and with what it is scored on.

    Answers are generated of the kept adapter alone: they take most of an evaluation's time.
    """
    suite = replace(prepared.suite, generated=(), fixed=None, wrong_thoughts={}, abilities=())
    return [
        replace(
            prepared,
            config=seed_config(prepared.config, number),
            directory=prepared.directory.of_seed(number),
            suite=suite,
        )
        for number in range(1, prepared.config.seeds + 1)
    ]


def begin_seeds(prepared: Prepared) -> list[Prepared]:
    """Make the directories that are missing; return the trainings."""
    found = list_seeds(prepared)
    for one in found:
        one.directory.remove_unfinished()
        recorded = prepared.directory.as_recorded(one.config)
        if not one.directory.exists():
            one.directory.create(recorded)
        for name in SHARED:
            if not one.directory.has(name):
                values = prepared.directory.read_json(name)
                if name == fingerprints.FILE:
                    values |= {"config": recorded.model_dump(mode="json"), "adapter": ""}
                one.directory.write_json(name, values)
    return found


def train_seeds(
    prepared: Prepared,
    loaded: LoadedModel,
    listener: Listener,
    train_one: TrainOne,
    on_event: OnEvent,
) -> None:
    """Train every seed that is not trained yet, and make the best adapter that of the run.

    ``on_event`` takes the steps of seeds that are trained in turn, counted over all of them; those
    in processes of their own report by themselves.
    """
    seeds = begin_seeds(prepared)
    left = [one for one in seeds if not one.directory.has("training.json")]
    places = _list_places(prepared.plan, len(left))
    if len(places) > 1:
        code = "seeds_on_gpus" if prepared.plan.device == "cuda" else "seeds_on_cores"
        listener.say(Message(code, {"n": len(left), "places": len(places)}))
        models.release(loaded)
        train_in_processes([one.directory for one in left], places, listener)
        loaded.model = models.load_base(prepared.config, prepared.plan).model
    else:
        _train_in_turn(seeds, left, loaded, listener, train_one, on_event)
    keep_best(prepared, seeds)


def _list_places(plan: Plan, left: int) -> list[Place]:
    """Return where the trainings that are left can run at the same time."""
    if left < 2:
        return []
    if plan.device == "cuda":
        return list_gpus(detect_machine())
    at_once = min(plan.seeds_at_once, left)
    return share_cores(detect_machine(), at_once) if at_once > 1 else []


def _train_in_turn(
    seeds: Sequence[Prepared],
    left: Sequence[Prepared],
    loaded: LoadedModel,
    listener: Listener,
    train_one: TrainOne,
    on_event: OnEvent,
) -> None:
    for number, one in enumerate(seeds, 1):
        if all(one is not other for other in left):
            continue
        values = {"number": number, "of": len(seeds), "seed": one.config.seed}
        listener.say(Message("seed_begins", values))
        train_one(one, loaded, _OneOfSeveral(listener, number - 1, len(seeds), on_event))
        one.directory.set_stage("trained")
        models.remove_adapter(loaded)


def choose_best(seeds: Sequence[Prepared]) -> int:
    """Return the number of the seed with the lowest validation loss, the first without any."""
    losses = [find_validation(one.directory) for one in seeds]
    kept = [found.kept_loss if found else float("inf") for found in losses]
    return kept.index(min(kept)) + 1


def keep_best(prepared: Prepared, seeds: Sequence[Prepared]) -> None:
    """Copy the adapter, the steps and the facts of the best training to the run's directory."""
    number = choose_best(seeds)
    best, directory = seeds[number - 1].directory, prepared.directory
    directory.require()
    shutil.rmtree(directory.adapter, ignore_errors=True)
    shutil.copytree(best.adapter, directory.adapter)
    if best.events.exists():  # A training of no step has none.
        directory.write_text("events.jsonl", best.events.read_text(encoding="utf-8"))
    fingerprints.record_adapter(directory)
    trainings = [one.directory.read_json("training.json") for one in seeds]
    seconds = sum(one["seconds"] for one in trainings)
    kept = {"seconds": seconds, "kept_seed": number, "cancelled": False}
    directory.write_json("training.json", trainings[number - 1] | kept)


def score_seeds(prepared: Prepared, loaded: LoadedModel, listener: Listener) -> None:
    """Score each seed's adapter on the test rows and questions, and write its report.

    The scores of the untuned model and of the kept adapter are those of the run.
    """
    seeds, directory = list_seeds(prepared), prepared.directory
    kept = directory.read_json("training.json")["kept_seed"]
    listener.stage("seeds")
    for number, one in enumerate(seeds, 1):
        incomplete = _missing(one, "before") or _missing(one, "after")
        _copy_rows(prepared, one, "before")
        if number == kept:
            _copy_rows(prepared, one, "after")
        elif _missing(one, "after"):
            models.remove_adapter(loaded)
            models.load_adapter(loaded, one.config, one.plan, one.directory.adapter)
            _score(one, loaded, listener)
        listener.progress(number, len(seeds))
        if incomplete or not one.directory.has("report.html"):
            write_report(one, Listener(), figures=False)
        one.directory.set_stage("done")


def _score(one: Prepared, loaded: LoadedModel, listener: Listener) -> None:
    path = one.directory.evaluation("after")

    def stop(done: int, total: int) -> None:
        if listener.should_stop() and done < total:
            raise Cancelled

    evaluate(
        one.suite,
        model_tools(loaded, one.config, listener.should_stop),
        done=rows_from_json(one.directory.rows(path), where=str(path)),
        save=lambda row: one.directory.append(path, row_to_json(row)),
        on_progress=stop,
    )


def _copy_rows(prepared: Prepared, one: Prepared, phase: Phase) -> None:
    """Give the training the run's own scores, without the answers, of which others have none."""
    if not _missing(one, phase):
        return
    rows, _ = order_rows(_read_rows(prepared.directory, phase), one.suite)
    text = RunDirectory.lines_of(row_to_json(without_answer(row)) for row in rows)
    one.directory.write_text(f"evaluation/{phase}.jsonl", text)


def _missing(one: Prepared, phase: Phase) -> int:
    return order_rows(_read_rows(one.directory, phase), one.suite)[1]


def _read_rows(directory: RunDirectory, phase: Phase) -> list[ScoredRow]:
    path = directory.evaluation(phase)
    return rows_from_json(directory.rows(path), where=str(path))


class _OneOfSeveral(Listener):
    """Shows the steps of one training as a part of those of all."""

    def __init__(self, listener: Listener, before: int, of: int, on_event: OnEvent) -> None:
        self._listener, self._before, self._of = listener, before, of
        self._on_event = on_event

    def say(self, line: str | Message) -> None:
        """Pass the line on."""
        self._listener.say(line)

    def event(self, event: Event) -> None:
        """Pass the step on, counted over all trainings."""
        left = event.steps * (self._of - self._before - 1)
        seconds = event.eta_s / max(1, event.steps - event.step)
        whole = replace(
            event,
            step=event.step + event.steps * self._before,
            steps=event.steps * self._of,
            eta_s=round(event.eta_s + seconds * left, 1),
        )
        self._on_event(whole)
        self._listener.event(whole)

    def should_stop(self) -> bool:
        """Ask the run's listener."""
        return self._listener.should_stop()
