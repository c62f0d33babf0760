"""Shows a training while it runs and after it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medcot.catalog import duration, in_language, say
from medcot.notebook.jobs import Job
from medcot.notebook.kaggle_panel import BuiltKernel
from medcot.notebook.views.charts import draw_loss
from medcot.notebook.views.markup import (
    callout,
    facts,
    items,
    join,
    paragraph,
    small,
    text,
)
from medcot.notebook.views.rows import show_failure
from medcot.records import Event
from medcot.reporting.storage import read_test_losses
from medcot.runs.directory import RunDirectory
from medcot.runs.history import RunRecord

if TYPE_CHECKING:
    from medcot.kaggle.client.orchestrate import AccountCheck
    from medcot.kaggle.client.push_state import PushRecord


def show_job(job: Job, language: str) -> str:
    """Show a job's stage, loss, remaining time, throughput and memory."""
    parts = [_ending(job, language) if job.state != "running" else _stage(job, language)]
    if job.events:
        last = job.events[-1]
        told = [
            (say("step_now", language), f"{last.step:,} / {last.steps:,}"),
            (say("loss", language), f"{last.loss:.3f}"),
            (say("tokens_per_second", language), f"{last.tokens_per_second:,.0f}"),
            (say("memory", language), f"{last.memory_gib:.1f} GiB"),
        ]
        told += _validation([asdict(event) for event in job.events], language)
        if job.state == "running":
            told.insert(2, (say("time_left", language), duration(last.eta_s, language)))
        parts.append(facts(told))
        events = [asdict(event) for event in job.events]
        test = read_test_losses(job.directory)
        parts.append(draw_loss(events, language, steps=last.steps, test=test))
    if job.lines and job.state == "running":
        parts.append(small(in_language(job.lines[-1], language)))
    return f'<div data-job="{job.state}">{join(*parts)}</div>'


def show_practice(run: RunDirectory, events: Sequence[Event], language: str) -> str:
    """Show the steps of a practice, and where its adapter is."""
    last = events[-1]
    told = [
        (say("steps", language), f"{last.step:,}"),
        (say("loss", language), f"{events[0].loss:.3f} → {last.loss:.3f}"),
        (say("tokens", language), f"{last.tokens:,}"),
        (say("tokens_per_second", language), f"{last.tokens_per_second:,.0f}"),
        (say("memory", language), f"{last.memory_gib:.1f} GiB"),
    ]
    kept = say("practice_kept", language, folder=str(run.adapter))
    curve = draw_loss([asdict(event) for event in events], language) if len(events) > 1 else ""
    return join(facts(told), curve, small(kept))


def show_finished(run: RunRecord, language: str) -> str:
    """Show the training of a finished run."""
    if not run.events:
        return ""
    last = run.events[-1]
    told = [
        (say("steps", language), f"{last['step']:,}"),
        (say("tokens", language), f"{last['tokens']:,}"),
        (say("tokens_per_second", language), f"{last['tokens_per_second']:,.0f}"),
        (say("memory", language), f"{last['memory_gib']:.1f} GiB"),
    ]
    told += _validation(run.events, language)
    if run.seconds is not None:
        told.append((say("time_trained", language), duration(run.seconds, language)))
    test = read_test_losses(RunDirectory(run.path))
    return join(facts(told), draw_loss(run.events, language, test=test))


def _validation(events: Sequence[Mapping[str, Any]], language: str) -> list[tuple[str, str]]:
    """Return the last validation loss and the lowest, nothing before the first one."""
    losses = [event.get("validation_loss") for event in events]
    known = [loss for loss in losses if loss is not None]
    if not known:
        return []
    values = {"last": f"{known[-1]:.3f}", "lowest": f"{min(known):.3f}"}
    return [(say("validation_loss", language), say("validation_losses", language, **values))]


def _stage(job: Job, language: str) -> str:
    """Show what is being done, a bar of the whole run where its length is known, and the time."""
    said = say(f"stage_{job.stage}", language)
    said += f" {job.done:,} / {job.total:,}" if job.total else " …"
    if job.doing:
        said += f" · {job.doing.text(language)}"
    if job.is_cancelling:
        said = say("training_cancelling", language)
    share, left = job.clock.fraction(), job.clock.seconds_left()
    if share is not None and left is not None:
        values = {"share": 100 * share, "time": duration(left, language)}
        return _bar(said, share, 1) + small(say("whole_run", language, **values))
    return _bar(said, job.done, job.total)


def _bar(said: str, done: float, total: float) -> str:
    value = f' value="{done:.3f}" max="{total}"' if total else ""
    label = f'aria-label="{text(said)}"'
    return (
        f'<p class="mc-stage">{text(said)}</p><progress class="mc-progress" {label}{value}>'
        "</progress>"
    )


def _ending(job: Job, language: str) -> str:
    folder = str(job.directory.path)
    if job.state == "done":
        return callout("good", say("training_done", language), paragraph(folder))
    if job.state == "cancelled":
        kept = say("training_kept", language, folder=folder)
        return callout("note", say("training_cancelled", language), paragraph(kept))
    if job.failure is None:
        return ""
    return join(show_failure(job.failure, language), items([folder]))


def describe_sending(step: AccountCheck | BuiltKernel | PushRecord, language: str) -> str:
    """Describe the result of the last step on the Kaggle panel."""
    from medcot.kaggle.client.push_state import PushRecord

    if isinstance(step, BuiltKernel):
        size = f"{step.kernel.size / 1024:.0f}"
        said = say("kaggle_built", language, folder=str(step.kernel.folder), size=size)
        return callout("good", said)
    if not isinstance(step, PushRecord):
        return callout("good" if step.ready else "warn", step.line)
    said = say("kaggle_pushed", language, version=step.version, ref=step.ref)
    return callout("good", said, paragraph(step.url))
