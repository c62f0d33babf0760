"""Compares recipes: several arms, each trained with several seeds, on the same test rows.

Optuna keeps the books in a SQLite file: what became of each arm. Processes may work on one study,
also on several machines that share its folder. An arm is claimed by the lock of its run directory,
so that one whose process was killed is resumed by another.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.resolve import from_text
from medcot.config.schema import ARM_THOUGHTS, RunConfig, build_config, option_name
from medcot.errors import Cancelled, InputError, RunFailed, nearest, one_line
from medcot.evaluation.interface import ScoredRow, rows_from_json
from medcot.listener import Listener
from medcot.pipeline.report import find_validation
from medcot.pipeline.run import run
from medcot.pipeline.study_progress import StudyProgress, read_state
from medcot.records import TrainingState
from medcot.reporting.study import ArmResult, Study, analyse_study, name_loss, render_study
from medcot.runs.directory import Phase, RunDirectory
from medcot.runs.lock import BusyError

TRAINING_FIELDS: tuple[str, ...] = (
    "rank", "alpha", "steps", "epochs", "learning_rate", "samples", "batch", "dropout",
    "warmup_steps", "schedule", "optimizer", "weight_decay", "keep", "patience", "thought",
)  # fmt: skip
"""What arms may differ in: the untuned model and the test rows are the same in all of them."""

MOST_ARMS = 64
WAIT_S = 2.0
LONGEST_WAIT_S = 60.0
"""Seconds to wait for another process that enters something in the books."""
FILE, BOOKS, NAME = "study.json", "study.db", "medcot"

Vary = Mapping[str, Sequence[Any]]
"""Maps a field of the config to the values that it takes."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One recipe of a study: what it has different, and its whole config."""

    name: str
    values: Mapping[str, Any]
    config: RunConfig


def parse_vary(given: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``--vary NAME=VALUE,VALUE`` options.

    Raises:
        InputError: No such field, one that arms may not differ in, or fewer than two values.
    """
    vary: dict[str, list[Any]] = {}
    for text in given:
        name, values = field_of(text), text.partition("=")[2]
        if name not in TRAINING_FIELDS:
            needs = (
                f"expected one of {', '.join(TRAINING_FIELDS)}{nearest(name, [*TRAINING_FIELDS])}"
            )
            raise InputError(f"--vary {text}", f"found {name!r}", needs)
        found = [from_text(name, one.strip()) for one in values.split(",") if one.strip()]
        if len(found) < 2 or len(set(found)) < len(found):
            example = "thought=kept,none" if name == "thought" else "rank=4,16"
            raise InputError(f"--vary {text}", "found fewer than two different values",
                             f"write for example --vary {example}")  # fmt: skip
        if name == "thought" and (unknown := [one for one in found if one not in ARM_THOUGHTS]):
            got, needs = (
                f"found {unknown[0]!r}",
                f"expected two or more of {', '.join(ARM_THOUGHTS)}",
            )
            raise InputError(f"--vary {text}", got, needs)
        if name in vary:
            raise InputError(f"--vary {text}", f"{name} is given twice", "give all values at once")
        vary[name] = found
    if "thought" in vary and len(vary) > 1:
        got = f"{', '.join(name for name in vary if name != 'thought')} varies too"
        raise InputError("--vary thought", got, "let thought vary alone: its arms are compared")
    if not vary:
        raise InputError("--vary", "nothing varies", "write for example --vary rank=4,16")
    return vary


def field_of(text: str) -> str:
    """Return the config's field that ``NAME=VALUE,VALUE`` names."""
    return text.partition("=")[0].strip().lstrip("-").replace("-", "_")


def list_arms(config: RunConfig, vary: Vary) -> list[Arm]:
    """Return an arm for each combination of values.

    Raises:
        InputError: A value is refused, or there are too many arms.
    """
    names = list(vary)
    combinations = list(itertools.product(*(vary[name] for name in names)))
    if len(combinations) > MOST_ARMS:
        got = f"{len(combinations)} arms"
        raise InputError(
            "--vary", got, f"use at most {MOST_ARMS}: choosing among more shows little"
        )
    shared = {
        "generate_samples": 0, "thought_samples": 0, "ability_samples": 0,
        "judge_url": "", "judge_model": "", "judge_criteria": "",
    }  # fmt: skip
    arms: list[Arm] = []
    for combination in combinations:
        values = dict(zip(names, combination, strict=True))
        changes: dict[str, Any] = shared | values
        if "thought" in values:
            changes |= {"thought": ARM_THOUGHTS[values["thought"]], "test_loss": "answer"}
        if "steps" in values:
            changes["epochs"] = None
        if "epochs" in values:
            changes["steps"] = None
        label = "_".join(f"{name}-{value}" for name, value in values.items())
        name = re.sub(r"[^\w.-]", "-", label)
        built = build_config(config.model_dump() | changes)
        for field, value in values.items():
            if field != "thought" and (read := getattr(built, field)) != value:
                raise InputError(f"--vary {option_name(field)[2:]}", f"found {value!r}",
                                 f"write it as {read}")  # fmt: skip
        arms.append(Arm(name, values, built))
    return arms


def run_study(
    config: RunConfig, vary: Vary, folder: Path, listener: Listener | None = None
) -> Study:
    """Train and score what is missing of a study, and return what came of it.

    Every process that is started on ``folder`` takes the next arm that nobody works on, and returns
    when all are done.

    Raises:
        InputError: The folder holds another study, or there are no validation rows.
        RunFailed: Arms failed. The others were finished first.
        Cancelled: The listener asked to stop; finished work is kept.
    """
    listener = listener or Listener()
    arms = list_arms(config, vary)
    if config.validation_samples == 0 and "thought" not in vary:
        got = "a study chooses by the loss of validation rows"
        raise InputError("--validation-samples 0", got, "expected 1 or more")
    _begin(config, vary, folder)
    books = _open_books(folder, vary)
    by_name = {arm.name: arm for arm in arms}
    progress = StudyProgress(listener, list(by_name), lambda name: _look_at(folder, by_name[name]))
    failed: dict[str, RunFailed] = {}
    while open_arms := [
        arm for arm in arms if arm.name not in failed and not _is_done(folder, arm)
    ]:
        worked = False
        for arm in open_arms:
            with suppress(BusyError):
                try:
                    if not _run_arm(arm, folder, progress):
                        continue
                except RunFailed as error:
                    failed[arm.name] = error
                    values = {"arm": arm.name, "error": one_line(str(error), 300)}
                    listener.say(Message("study_arm_failed", values))
                    continue
                worked = True
                loss = _mean_loss(folder, arm)
                books.finish(arm, loss)
                done = sum(_is_done(folder, one) for one in arms)
                values = {"arm": arm.name, "done": done, "of": len(arms), "loss": loss}
                values |= {"measure": name_loss(vary)}
                listener.say(Message("study_arm_done", values))
        if not worked:
            _wait(progress)
    if left := [arm.name for arm in arms if not _is_done(folder, arm)]:
        values = {"arms": ", ".join(left), "of": len(arms)}
        raise RunFailed("study", Message("study_failed", values), Message("study_failed_needs"))
    for arm in arms:
        # A process may have been killed between an arm's end and its entry in the books.
        books.finish(arm, _mean_loss(folder, arm))
    study = analyse_study(config, vary, [_read_arm(folder, arm) for arm in arms])
    directory = RunDirectory(folder)
    directory.write_json("study_report.json", study.to_json())
    directory.write_text("study.md", render_study(study))
    return study


def read_study(folder: Path) -> tuple[RunConfig, dict[str, list[Any]]]:
    """Return the config of a study and what varies in it.

    Raises:
        InputError: There is no study in ``folder``.
    """
    directory = RunDirectory(folder)
    if not directory.has(FILE):
        raise InputError(f"--out {folder}", f"no {FILE} in it", "name the folder of a study")
    found = directory.read_json(FILE)
    return build_config(found["config"], where=str(folder / FILE)), dict(found["vary"])


def _begin(config: RunConfig, vary: Vary, folder: Path) -> None:
    """Write down what the study is, or check that it is the same one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = one_line(error.strerror or str(error), 80)
        raise InputError(f"--out {folder}", got, "name a folder that can be written") from None
    directory = RunDirectory(folder)
    facts = {
        "config": config.model_dump(mode="json"),
        "vary": {name: list(values) for name, values in vary.items()},
    }
    # Listed before the file is looked for, which another process may be writing.
    is_empty = all(one.name.startswith(".") for one in folder.iterdir())
    if directory.has(FILE):
        if directory.read_json(FILE) != facts:
            got = "it holds a study with other options"
            raise InputError(f"--out {folder}", got, "use another folder, or the same options")
        return
    if not is_empty:
        raise InputError(f"--out {folder}", "the folder is not empty", "use a new or empty folder")
    directory.write_json(FILE, facts)


def _directory(folder: Path, arm: Arm) -> RunDirectory:
    return RunDirectory(folder / "arms" / arm.name)


def _is_done(folder: Path, arm: Arm) -> bool:
    directory = _directory(folder, arm)
    return directory.exists() and directory.stage() == "done"


def _look_at(folder: Path, arm: Arm) -> list[TrainingState]:
    """Return how far the trainings of an arm are, with the losses that arms are compared by."""
    trainings = _trainings(folder, arm)
    if "thought" in arm.values:
        losses = _losses(folder, arm) if _is_done(folder, arm) else [None] * len(trainings)
    else:
        found = [find_validation(one) for one in trainings]
        losses = [one and one.kept_loss for one in found]
    return [read_state(one, loss) for one, loss in zip(trainings, losses, strict=True)]


def _run_arm(arm: Arm, folder: Path, progress: StudyProgress) -> bool:
    """Train and score an arm from where it stopped; return False if another process just did.

    Raises:
        BusyError: Another process works on it.
    """
    directory = _directory(folder, arm)
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.lock.take()
    if _is_done(folder, arm):
        directory.lock.release()
        return False
    progress.begin_arm(arm.name)
    known = _scores_before(folder, arm)
    run(arm.config, directory, progress, resume=directory.exists(), scores_before=known)
    progress.end_arm()
    return True


def _scores_before(folder: Path, arm: Arm) -> Path | None:
    """Return the scores of the untuned model from an arm that asks it the same, if one has them."""
    for status in sorted((folder / "arms").glob("*/status.json")):
        other = RunDirectory(status.parent)
        if other.stage() == "done" and other.config().thinks == arm.config.thinks:
            return other.evaluation("before")
    return None


def _mean_loss(folder: Path, arm: Arm) -> float:
    losses = _losses(folder, arm)
    return sum(losses) / len(losses)


def _losses(folder: Path, arm: Arm) -> list[float]:
    """Return the loss of each of the arm's trainings: that by which arms are compared.

    It is that of validation rows; where thoughts vary, whose validation rows differ, that of the
    test rows' answers.

    Raises:
        InputError: The data have no validation rows.
    """
    if "thought" in arm.values:
        return [_mean_test_loss(one) for one in _trainings(folder, arm)]
    found = [find_validation(one) for one in _trainings(folder, arm)]
    losses = [one.kept_loss for one in found if one is not None]
    if len(losses) < len(found):
        got = "the data have no validation rows, by which a study chooses"
        raise InputError(f"--dataset {arm.config.dataset}", got, "use more rows")
    return losses


def _mean_test_loss(training: RunDirectory) -> float:
    rows = [row for row in _read_rows(training, "after") if row.kind == "case"]
    return sum(row.nll_sum or 0 for row in rows) / sum(row.completion_tokens or 0 for row in rows)


def _read_rows(training: RunDirectory, phase: Phase) -> list[ScoredRow]:
    path = training.evaluation(phase)
    return rows_from_json(training.rows(path), where=str(path))


def _trainings(folder: Path, arm: Arm) -> list[RunDirectory]:
    directory = _directory(folder, arm)
    if arm.config.seeds == 1:
        return [directory]
    return [directory.of_seed(number) for number in range(1, arm.config.seeds + 1)]


def _read_arm(folder: Path, arm: Arm) -> ArmResult:
    directory = _directory(folder, arm)
    before = _read_rows(directory, "before")
    after = [_read_rows(one, "after") for one in _trainings(folder, arm)]
    rows = directory.read_json("report.json")["facts"]["rows"]
    # The rows beyond the steps were never trained on.
    seen = min(rows, arm.config.total_steps(rows) * arm.config.batch)
    return ArmResult(arm.name, arm.values, tuple(_losses(folder, arm)), before, after, seen)


def _wait(progress: StudyProgress) -> None:
    """Wait until another process may have ended its arm.

    Raises:
        Cancelled: The listener asked to stop.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if progress.should_stop():
            raise Cancelled
        progress.refresh()
        time.sleep(0.1)


class _Books:
    """The study's finished trials as Optuna keeps them, one for each arm."""

    def __init__(self, folder: Path, study: Any, vary: Vary) -> None:
        self._folder, self._study, self._vary = folder, study, vary

    def finish(self, arm: Arm, loss: float) -> None:
        """Enter an arm that is done with its loss, unless it is entered already."""
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.trial import create_trial

        choices: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(list(self._vary[name])) for name in arm.values
        }
        with _hold_lock(self._folder), _explain_damage(self._folder / BOOKS):
            trials = self._study.get_trials(deepcopy=False)
            if any(trial.user_attrs.get("arm") == arm.name for trial in trials):
                return
            trial = create_trial(
                value=loss, params=dict(arm.values), distributions=choices,
                user_attrs={"arm": arm.name},
            )  # fmt: skip
            self._study.add_trial(trial)


def _open_books(folder: Path, vary: Vary) -> _Books:
    """Open the SQLite file.

    Raises:
        InputError: Optuna is not installed, or the file is damaged.
    """
    try:
        import optuna
    except ImportError:
        needs = "install it with pip install 'medcot[study]'"
        raise InputError("medcot study", "optuna is not installed", needs) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _hold_lock(folder), _explain_damage(folder / BOOKS):
        storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / BOOKS).absolute()}")
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction="minimize", load_if_exists=True
        )
    return _Books(folder, study, vary)


@contextmanager
def _explain_damage(path: Path) -> Generator[None]:
    """Name the SQLite file in ``path`` if it cannot be read or written.

    Raises:
        InputError: It cannot.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        why = one_line(str(getattr(error, "orig", None) or error), 120)
        needs = "delete it and start again: finished arms are entered anew from their folders"
        raise InputError(str(path), f"Optuna cannot use it ({why})", needs) from None


@contextmanager
def _hold_lock(folder: Path) -> Generator[None]:
    """Hold the lock of the study's folder; wait for it up to a minute.

    Raises:
        InputError: Another process held it all that time.
    """
    lock = RunDirectory(folder).lock
    until = time.monotonic() + LONGEST_WAIT_S
    while not lock.held:
        try:
            lock.take()
        except BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def study_path(root: Path = Path("runs")) -> Path:
    """Return ``runs/study``, with a number if that is taken."""
    names: Iterator[Path] = (root / f"study-{number}" for number in itertools.count(1))
    return next(path for path in names if not path.exists())
