"""Runs one training or answer at a time in this process, whoever asks: a server has one GPU.

A training runs in its own thread, so that a page can be closed while the run continues. What a
page sees of it is a :class:`Job`, which holds numbers and text, never a model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medcot.catalog import Message, duration_message
from medcot.config.schema import RunConfig
from medcot.credentials import redact
from medcot.engines.loading import free_memory
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.hardware.host_memory import return_free_memory
from medcot.listener import Listener
from medcot.notebook.results import ErrorText, describe_error
from medcot.pipeline.run import run
from medcot.records import Event
from medcot.run_clock import RunClock
from medcot.runs.directory import RunDirectory

LONGEST_QUESTION = 8_000
"""Characters of a question. Longer ones exceed the context of the models that are offered."""

State = Literal["running", "done", "cancelled", "failed"]


@dataclass(eq=False)
class Job:
    """A training that runs or ran. ``owner`` is the visitor who may cancel it.

    ``done`` and ``total`` count the rows or steps of ``stage``, and ``began`` is when it began, in
    seconds of the monotonic clock; ``clock`` knows how far the whole run is, and ``doing`` what is
    done between two rows. ``echo`` is called with each of the run's own lines.
    """

    config: RunConfig
    directory: RunDirectory
    owner: str
    state: State = "running"
    stage: str = "start"
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    clock: RunClock = field(default_factory=RunClock)
    doing: Message | None = None
    events: list[Event] = field(default_factory=list[Event])
    lines: list[str | Message] = field(default_factory=list[str | Message])
    failure: ErrorText | None = None
    echo: Callable[[str], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Make the run end after the current step or row; finished work is kept."""
        self.stop.set()

    @property
    def is_cancelling(self) -> bool:
        """Return whether the run was asked to stop and has not ended yet."""
        return self.state == "running" and self.stop.is_set()

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the stage ends; None before its first row or step is done."""
        if self.stage == "training" and self.events:
            return self.events[-1].eta_s
        if not self.done or not self.total:
            return None
        return (time.monotonic() - self.began) / self.done * (self.total - self.done)

    def finish(self) -> Job:
        """Wait until the run has ended. Ctrl-C makes it stop, and waits until its work is kept."""
        try:
            self.ended.wait()
        except KeyboardInterrupt:
            self.cancel()
            self.ended.wait()
        return self

    def wait(self, seconds: float | None = None) -> Job:
        """Wait until the run has ended, at most ``seconds``."""
        self.ended.wait(seconds)
        return self


class JobListener(Listener):
    """Writes a run's progress into its job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def say(self, line: str | Message) -> None:
        """Keep ``line``, and pass it to the job's ``echo``."""
        self._job.lines.append(line if isinstance(line, Message) else redact(line))
        self._job.echo(redact(str(line)))

    def planned(self, seconds: Mapping[str, float]) -> None:
        """Keep how long each stage will take."""
        self._job.clock.plan(seconds)

    def stage(self, name: str) -> None:
        """Begin to count the rows or steps of the stage ``name``."""
        self._job.stage, self._job.done, self._job.total = name, 0, 0
        self._job.began, self._job.doing = time.monotonic(), None
        self._job.clock.begin(name)

    def progress(self, done: int, total: int) -> None:
        """Keep how many rows or steps of the stage are done."""
        self._job.done, self._job.total, self._job.doing = done, total, None
        self._job.clock.advance(done / total if total else 0.0)

    def answering(self, done: int, total: int, tokens: int, most: int) -> None:
        """Keep how many answers of a group are complete, and how many tokens are generated."""
        job = self._job
        job.doing = Message("doing_answers", {"done": done, "total": total, "tokens": tokens})
        if job.total:
            job.clock.advance((job.done + total * max(done / total, tokens / most)) / job.total)

    def event(self, event: Event) -> None:
        """Keep an optimizer step."""
        self._job.events.append(event)
        self.progress(event.step, event.steps)

    def should_stop(self) -> bool:
        """Return whether the job was cancelled."""
        return self._job.stop.is_set()


class JobRunner:
    """Gives the machine to one training or answer at a time, and keeps the last training."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._job: Job | None = None
        self._since = 0.0

    def start_training(
        self,
        config: RunConfig,
        directory: RunDirectory,
        owner: str = "",
        *,
        resume: bool = False,
        echo: Callable[[str], None] = lambda _: None,
    ) -> Job:
        """Start the whole run of ``config`` in a thread and return at once.

        Raises:
            RunFailed: something else is running; nothing was started.
        """
        self._reserve()
        job = self._job = Job(config, directory, owner, echo=echo)
        threading.Thread(
            target=self._train, args=(job,), kwargs={"resume": resume}, daemon=True,
            name="medcot-training",
        ).start()  # fmt: skip
        return job

    def current_job(self) -> Job | None:
        """Return the training that runs, or else the last one."""
        return self._job

    def is_training(self) -> bool:
        """Return whether a training runs."""
        return self._job is not None and self._job.state == "running"

    def ended_job(self) -> Job | None:
        """Return the last training once it has ended."""
        return None if self.is_training() else self._job

    def state_for(self, visitor: str) -> State | None:
        """Return the state of the last training if ``visitor`` started it."""
        return self._job.state if self._job and self._job.owner == visitor else None

    def cancel_training(self, visitor: str) -> None:
        """Cancel the training that ``visitor`` started; somebody else's is left alone."""
        if self._job and self._job.owner == visitor:
            self._job.cancel()

    def resume_training(self, visitor: str) -> Job:
        """Continue ``visitor``'s last training, which was cancelled or failed.

        Raises:
            RunFailed: there is none, or something else is running.
        """
        job = self._job
        if job is None or job.owner != visitor:
            raise RunFailed("resume", Message("error_no_training"), Message("needs_training"))
        return self.start_training(job.config, job.directory, visitor, resume=True)

    def answer_question(
        self,
        directory: RunDirectory,
        question: str,
        *,
        base: bool,
        show: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Return the model's answer to ``question`` in parts; ``show`` gets it as it grows.

        Raises:
            InputError: a question that is empty or too long, or a run without an adapter.
            RunFailed: something else is running.
        """
        _require_short(question)
        from medcot.inference.ask import ask

        reply: dict[str, Any] = {"question": question, "base": base}
        with self.reserved():
            for grown in ask(directory, question, base=base):
                reply |= asdict(grown)
                show(reply)
        return reply

    def answer_both(
        self,
        directory: RunDirectory,
        question: str,
        *,
        show: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Return the base's and the tuned model's answer under ``pair``, each in parts.

        Raises:
            InputError: a question that is empty or too long, or a run without an adapter.
            RunFailed: something else is running.
        """
        _require_short(question)
        from medcot.comparing.answers import ask_both
        from medcot.comparing.sides import choose_sides

        reply: dict[str, Any] = {"question": question, "pair": (None, None)}
        with self.reserved():
            for grown in ask_both(*choose_sides([directory]), question):
                sides = (grown.first, grown.second)
                reply["pair"] = tuple(None if one is None else asdict(one) for one in sides)
                show(reply)
        return reply

    def alone(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns; nothing else of this process runs beside it.

        Raises:
            RunFailed: something else is running.
        """
        with self.reserved():
            return work()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve the machine for one answer.

        Raises:
            RunFailed: something else is running.
        """
        self._reserve()
        try:
            yield
        finally:
            self._release()

    def _reserve(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RunFailed("start", self._describe_holder(), Message("needs_waiting"))
        self._since = time.monotonic()

    def _describe_holder(self) -> Message:
        """Say what runs and how long it takes, as far as that is known."""
        job = self._job
        if job is None or job.state != "running":
            so_far = duration_message(time.monotonic() - self._since)
            return Message("error_busy_answering", {"time": so_far})
        stage, left = Message(f"stage_{job.stage}"), job.seconds_left()
        if left is None:
            return Message("error_busy_training", {"stage": stage})
        values = {"stage": stage, "done": job.done, "total": job.total}
        return Message("error_busy_until", {**values, "time": duration_message(left)})

    def _release(self) -> None:
        _free_memory()
        self._busy.release()

    def _train(self, job: Job, *, resume: bool) -> None:
        try:
            job.state = _run(job, resume=resume)
        finally:
            self._release()
            job.ended.set()


def _require_short(question: str) -> None:
    if len(question) > LONGEST_QUESTION:
        got = Message("error_question_length", {"count": len(question)})
        raise InputError("QUESTION", got, Message("needs_at_most", {"most": LONGEST_QUESTION}))


RUNNER = JobRunner()
"""The one runner of this process, which all pages of a server share."""


def path_to_show(ended: Job | None, visitor: str) -> Path | None:
    """Return the folder of a training that ``visitor`` started and that is done."""
    own = ended is not None and ended.owner == visitor and ended.state == "done"
    return ended.directory.path if ended and own else None


def _run(job: Job, *, resume: bool) -> State:
    """Run the job. Only the callees of this frame hold the model, so returning frees it."""
    try:
        run(job.config, job.directory, JobListener(job), resume=resume)
    except Cancelled:
        return "cancelled"
    except Exception as error:  # noqa: BLE001 - the page shows the reason; the thread must end
        job.failure = describe_error(error)
        return "failed"
    return "done"


def _free_memory() -> None:
    free_memory()
    return_free_memory()
