"""Records training: each optimizer step as an event, on disk and for a listener."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from math import isfinite
from statistics import median
from typing import Any

from medcot.distributed import comm
from medcot.errors import Cancelled, RunFailed
from medcot.records import Event, OnEvent
from medcot.runs.directory import RunDirectory
from medcot.training.checkpoints import REMEDY, remove_checkpoints_from
from medcot.training.validation import Validation

logger = logging.getLogger(__name__)

EXPLOSION = 3.0
"""Multiple of the usual loss that counts as exploded."""
EXPLODED_STEPS = 3
"""Steps in a row that must lose so much: a single batch of hard rows may."""
USUAL_STEPS = 8
"""Steps before them whose median is the usual loss."""


class Recorder:
    """Turns the trainer's logs into events, and passes on the user's request to stop."""

    def __init__(
        self,
        steps: int,
        tokens: int,
        directory: RunDirectory,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
        validation: Validation,
    ) -> None:
        self.steps, self.tokens = steps, tokens
        self.step = 0
        self.validation = validation
        self.directory, self.on_event, self.should_stop = directory, on_event, should_stop
        self._row_tokens: list[int] = []
        self._step_started = time.monotonic()
        self._durations: list[float] = []
        self._losses: list[float] = []
        self.skipped_steps = 0
        """Steps of this session that an fp16 overflow kept from changing anything."""

    def rows_collated(self, tokens: int) -> None:
        """Note the tokens of a batch that was just collated."""
        self._row_tokens.append(tokens)

    def step_begins(self) -> None:
        """Start the clock of an optimizer step."""
        self._step_started = time.monotonic()

    def validate(self, step: int) -> bool:
        """Score the validation rows if they are due after ``step``; return whether they were.

        The clock of the step stands still meanwhile.
        """
        if not self.validation.is_due(step):
            return False
        self._wait_for_device()
        started = time.monotonic()
        # A stop within it: the step is recorded without, and resuming scores the rows first.
        with suppress(Cancelled):
            self.validation.run(step)
        self._step_started += time.monotonic() - started
        return True

    def finish_validation(self) -> None:
        """Score the validation rows after the step resumed from, if a stop came in between."""
        if not self.validation_is_pending:
            return
        self.validation.run(self.step)
        if comm.is_main():
            loss = self.validation.losses[self.step]
            row = self.directory.complete_last_event({"validation_loss": loss})
            values: dict[str, Any] = {one.name: row.get(one.name) for one in fields(Event)}
            self.on_event(Event(**values))

    @property
    def validation_is_pending(self) -> bool:
        """Whether a stop kept the validation after the last step from its end."""
        due = self.step > 0 and self.validation.is_due(self.step)
        return due and self.step not in self.validation.losses

    def should_end(self) -> bool:
        """Return whether training ends after this step: on request, or for want of progress."""
        asked = self.should_stop()
        return asked or self.validation.is_exhausted

    def _wait_for_device(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def take_tokens(self, micro_batches: int) -> int:
        """Return the tokens of the next ``micro_batches`` forward passes, each once."""
        # The loader works one batch ahead, so the first ones in the queue are this step's.
        tokens = sum(self._row_tokens[:micro_batches])
        del self._row_tokens[:micro_batches]
        return tokens

    def step_ended(
        self, step: int, tokens: int, logs: dict[str, float], seconds: float, *, scaled: bool
    ) -> None:
        """Record one optimizer step.

        Args:
            step: Number of the step, from 1.
            tokens: Tokens of its rows, over all processes.
            logs: ``loss``, ``grad_norm`` and ``learning_rate``.
            seconds: Its duration.
            scaled: Whether its loss had an fp16 scale above 1, which an overflow halves. A gradient
                that is not finite was then skipped, and the training continues.

        Raises:
            RunFailed: The loss or the gradient is no longer a finite number, or the loss exploded.
        """
        self.step, self.tokens = step, self.tokens + tokens
        # The first step of a session warms up caches, so it predicts the others badly.
        self._durations.append(seconds)
        recent = self._durations[1:][-20:] or self._durations
        skipped = scaled and not isfinite(logs["grad_norm"])
        event = Event(
            step=step,
            steps=self.steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=None if skipped else logs["grad_norm"],
            tokens=self.tokens,
            tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
            memory_gib=round(memory_gib(), 2),
            eta_s=round((self.steps - step) * sum(recent) / len(recent), 1),
            validation_loss=self.validation.losses.get(step),
        )
        self.directory.append(self.directory.events, event)
        self.on_event(event)
        if skipped:
            self.skipped_steps += 1
            logger.warning(
                "Step %d changed nothing: its fp16 gradient overflowed, and the loss scale is"
                " halved.", step,
            )  # fmt: skip
        for name, value in (
            ("loss", event.loss),
            ("gradient's norm", event.grad_norm),
            ("validation loss", event.validation_loss),
        ):
            if value is None or isfinite(value):
                continue
            raise RunFailed(
                "training",
                f"the {name} became {value} at step {step}.",
                REMEDY,
            )
        self._check_explosion(step, event.loss)

    def _check_explosion(self, step: int, loss: float) -> None:
        """Stop a training whose loss exploded, at the newest checkpoint before that.

        Raises:
            RunFailed: Each of the last steps lost several times what was usual before them.
        """
        self._losses.append(loss)
        before, last = self._losses[:-EXPLODED_STEPS], self._losses[-EXPLODED_STEPS:]
        if len(before) < USUAL_STEPS:
            return
        usual = median(before[-USUAL_STEPS:])
        if min(last) <= EXPLOSION * usual:
            return
        remove_checkpoints_from(self.directory, step - EXPLODED_STEPS + 1)
        raise RunFailed(
            "training",
            f"the loss exploded: {min(last):.3g} or more in the {EXPLODED_STEPS} steps up to"
            f" {step}, {usual:.3g} before them.",
            REMEDY,
        )

    def seconds_since_begin(self) -> float:
        """Return the seconds since :meth:`step_begins`."""
        return time.monotonic() - self._step_started


@dataclass(frozen=True, slots=True)
class StepReading:
    """One optimizer step, as the device computed it."""

    step: int
    tokens: int
    logs: dict[str, float]
    """``loss``, ``grad_norm`` and ``learning_rate``."""
    seconds: float
    loss_scale: float


@dataclass(slots=True)
class _Queued:
    step: int
    learning_rate: float
    values: Any  # [loss, grad_norm, tokens, loss scale], being copied to the CPU
    began: Any  # a CUDA event, or a time elsewhere
    ended: Any


class StepReadings:
    """Values of steps that the device may still be computing, read once they are ready.

    Reading a loss from the device makes the CPU wait, and after that the device: with thousands of
    short kernels a step, that costs a good part of the step. So values are copied while the next
    step is launched, and time is taken by the device's own clock.
    """

    def __init__(self, device: Any) -> None:
        self._on_cuda = device.type == "cuda"
        self._open: list[_Queued] = []
        self._began = self._mark()

    def restart_clock(self) -> None:
        """Begin the next step now: what was done since the last one is no part of it."""
        self._began = self._mark()

    def push(self, step: int, learning_rate: float, values: Any) -> None:
        """Add a step whose ``values`` are queued on the device.

        They are (loss, gradient norm, tokens, loss scale).
        """
        import torch

        if self._on_cuda:
            host = torch.empty_like(values, device="cpu", pin_memory=True)
            values = host.copy_(values, non_blocking=True)
        ended = self._mark()
        self._open.append(_Queued(step, learning_rate, values, self._began, ended))
        self._began = ended

    def pop(self) -> Iterator[StepReading]:
        """Yield the steps that were pushed, once the device has computed them."""
        while self._open:
            queued = self._open.pop(0)
            seconds = self._seconds_between(queued.began, queued.ended)
            loss, grad_norm, tokens, loss_scale = queued.values.tolist()
            logs = {"loss": loss, "grad_norm": grad_norm, "learning_rate": queued.learning_rate}
            yield StepReading(queued.step, int(tokens), logs, seconds, loss_scale)

    def _mark(self) -> Any:
        if not self._on_cuda:
            return time.monotonic()
        import torch

        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _seconds_between(self, began: Any, ended: Any) -> float:
        if not self._on_cuda:
            return ended - began
        ended.synchronize()
        return began.elapsed_time(ended) / 1000


def memory_gib() -> float:
    """Return this process's peak memory in GiB: the accelerator's, else the resident size."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
