"""One training or answer at a time in this process, whoever asks: a server has one GPU.

A training runs in a thread of its own, so that a page can be closed and the run goes on. What a
page sees of it is a :class:`Job`, which holds numbers and text, never a model.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medcot.config.schema import RunConfig
from medcot.data.prompts import ask, parse
from medcot.engines.loading import release
from medcot.errors import Cancelled, InputError, RunFailed
from medcot.listener import Listener
from medcot.notebook.outcomes import Failure, describe_error
from medcot.pipeline.run import run
from medcot.records import Event
from medcot.runs.directory import RunDirectory

State = Literal["running", "done", "cancelled", "failed"]

_busy = threading.Lock()
_jobs: list[Job] = []


@dataclass(eq=False)
class Job:
    """A training that runs or ran. ``owner`` is the visitor who may cancel it."""

    config: RunConfig
    directory: RunDirectory
    owner: str
    state: State = "running"
    stage: str = "start"
    done: int = 0
    total: int = 0
    events: list[Event] = field(default_factory=list[Event])
    lines: list[str] = field(default_factory=list[str])
    failure: Failure | None = None
    echo: Callable[[str], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask it to end after the step or row at hand; everything done is kept."""
        self.stop.set()

    def finish(self) -> Job:
        """Until it has ended. Ctrl-C asks it to stop, and then waits for what it keeps."""
        try:
            self.ended.wait()
        except KeyboardInterrupt:
            self.cancel()
            self.ended.wait()
        return self

    def wait(self, seconds: float | None = None) -> Job:
        """Until it has ended, or ``seconds`` are over."""
        self.ended.wait(seconds)
        return self


class JobListener(Listener):
    """Writes what a run says into its job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def say(self, line: str) -> None:
        self._job.lines.append(line)
        self._job.echo(line)

    def stage(self, name: str) -> None:
        self._job.stage, self._job.done, self._job.total = name, 0, 0

    def progress(self, done: int, total: int) -> None:
        self._job.done, self._job.total = done, total

    def event(self, event: Event) -> None:
        self._job.events.append(event)
        self.progress(event.step, event.steps)

    def should_stop(self) -> bool:
        return self._job.stop.is_set()


def start_training(
    config: RunConfig,
    directory: RunDirectory,
    owner: str = "",
    *,
    resume: bool = False,
    echo: Callable[[str], None] = lambda _: None,
) -> Job:
    """Begin the whole run of ``config`` in a thread and come back at once.

    ``echo`` hears the run's own lines.

    Raises:
        RunFailed: something else is running; nothing was started.
    """
    _take()
    job = Job(config, directory, owner, echo=echo)
    _jobs[:] = [job]
    thread = threading.Thread(target=_work, args=(job, resume), name="medcot-training", daemon=True)
    thread.start()
    return job


def current_job() -> Job | None:
    """The training that runs, or else the last one of this process."""
    return _jobs[0] if _jobs else None


def is_training() -> bool:
    """Whether a training runs in this process."""
    return bool(_jobs) and _jobs[0].state == "running"


def ended_job() -> Job | None:
    """The last training of this process, once it has ended."""
    job = current_job()
    return None if job is None or job.state == "running" else job


def state_for(visitor: str) -> State | None:
    """The state of the last training, if it is ``visitor``'s own."""
    job = current_job()
    return job.state if job and job.owner == visitor else None


def path_to_show(ended: Job | None, visitor: str) -> Path | None:
    """The folder of a training that ``visitor`` brought to its end."""
    own = ended is not None and ended.owner == visitor and ended.state == "done"
    return ended.directory.path if ended and own else None


def cancel_training(visitor: str) -> None:
    """Ask ``visitor``'s own training to stop; another's goes on."""
    job = current_job()
    if job and job.owner == visitor:
        job.cancel()


def resume_training(visitor: str) -> Job:
    """Go on with ``visitor``'s last training, which was cancelled or failed.

    Raises:
        RunFailed: there is none, or something else is running.
    """
    job = current_job()
    if job is None or job.owner != visitor:
        raise RunFailed("resume", "you have no training to resume.", "Start one.")
    return start_training(job.config, job.directory, visitor, resume=True)


@contextmanager
def reserved() -> Iterator[None]:
    """The machine for one answer.

    Raises:
        RunFailed: something else is running.
    """
    _take()
    try:
        yield
    finally:
        _free_memory()
        _busy.release()


def answer_question(
    directory: RunDirectory,
    question: str,
    *,
    base: bool,
    show: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The model's answer to ``question``, in parts; ``show`` gets it again as it grows.

    Raises:
        InputError: an empty question, or a run without an adapter.
        RunFailed: something else is running.
    """
    from medcot.inference.ask import load_run
    from medcot.inference.generate import stream

    if not question.strip():
        raise InputError("question", "the text is empty", "ask a question")
    with reserved():
        config, loaded = directory.config(), load_run(directory, base=base)
        prompt = ask(question, config.style, config.language, loaded.chat)
        output, pieces = "", 0
        reply: dict[str, Any] = {"question": question, "base": base}
        for piece in stream(loaded, prompt, config.max_new_tokens):
            output, pieces = output + piece, pieces + 1
            reply |= asdict(parse(output)) | {"finished": True, "tokens": pieces}
            show(reply)
        release(loaded)
    return reply


def _take() -> None:
    if not _busy.acquire(blocking=False):
        raise RunFailed(
            "start",
            "another training or answer is running on this server.",
            "Wait until it ends, or cancel it on the page that started it.",
        )


def _work(job: Job, resume: bool) -> None:
    try:
        job.state = _run(job, resume)
    finally:
        _free_memory()
        _busy.release()
        job.ended.set()


def _run(job: Job, resume: bool) -> State:
    """The model lives in this frame's callees alone, so that leaving it frees the memory."""
    try:
        run(job.config, job.directory, JobListener(job), resume)
    except Cancelled:
        return "cancelled"
    except Exception as error:  # noqa: BLE001 - the thread must end with its reason said
        job.failure = describe_error(error)
        return "failed"
    return "done"


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
