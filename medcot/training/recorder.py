"""Records training: each optimizer step as an event, on disk and for a listener."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from medcot.errors import RunFailed
from medcot.records import Event, OnEvent
from medcot.runs.directory import RunDirectory
from medcot.training.checkpoints import REMEDY


class Recorder:
    """Turns the trainer's logs into events, and passes on the user's request to stop."""

    def __init__(
        self,
        steps: int,
        tokens: int,
        directory: RunDirectory,
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> None:
        self.steps, self.tokens = steps, tokens
        self.step = 0
        self.directory, self.on_event, self.should_stop = directory, on_event, should_stop
        self._row_tokens: list[int] = []
        self._step_started = time.monotonic()
        self._durations: list[float] = []

    def rows_collated(self, tokens: int) -> None:
        """Note the tokens of a batch that was just collated."""
        self._row_tokens.append(tokens)

    def step_begins(self) -> None:
        """Start the clock of an optimizer step."""
        self._step_started = time.monotonic()

    def take_tokens(self, micro_batches: int) -> int:
        """Return the tokens of the next ``micro_batches`` forward passes, each once."""
        # The loader works one batch ahead, so the first ones in the queue are this step's.
        tokens = sum(self._row_tokens[:micro_batches])
        del self._row_tokens[:micro_batches]
        return tokens

    def step_ended(self, step: int, tokens: int, logs: dict[str, float], seconds: float) -> None:
        """Record one optimizer step.

        Raises:
            RunFailed: The loss or the gradient is no longer a finite number.
        """
        self.step, self.tokens = step, self.tokens + tokens
        # The first step of a session warms up caches, so it predicts the others badly.
        self._durations.append(seconds)
        recent = self._durations[1:][-20:] or self._durations
        event = Event(
            step=step,
            steps=self.steps,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            tokens=self.tokens,
            tokens_per_second=round(tokens / max(seconds, 1e-9), 1),
            memory_gib=round(memory_gib(), 2),
            eta_s=round((self.steps - step) * sum(recent) / len(recent), 1),
        )
        self.directory.append(self.directory.events, event)
        self.on_event(event)
        for name, value in (("loss", event.loss), ("gradient's norm", event.grad_norm)):
            if isfinite(value):
                continue
            raise RunFailed(
                "training",
                f"the {name} became {value} at step {step}.",
                REMEDY,
            )

    def seconds_since_begin(self) -> float:
        """Return the seconds since :meth:`step_begins`."""
        return time.monotonic() - self._step_started


@dataclass(slots=True)
class _Reading:
    step: int
    learning_rate: float
    values: Any  # [loss, grad_norm, tokens], being copied to the CPU
    mark: Any  # a CUDA event, or a time elsewhere


class StepReadings:
    """Values of steps that the device may still be computing, read once they are ready.

    Reading a loss from the device makes the CPU wait, and after that the device: with thousands of
    short kernels a step, that costs a good part of the step. So values are copied while the next
    step is launched, and time is taken by the device's own clock.
    """

    def __init__(self, device: Any) -> None:
        self._on_cuda = device.type == "cuda"
        self._open: list[_Reading] = []
        self._last_mark = self._mark()

    def push(self, step: int, learning_rate: float, values: Any) -> None:
        """Add a step whose ``values`` (loss, gradient norm, tokens) are queued on the device."""
        import torch

        if self._on_cuda:
            host = torch.empty_like(values, device="cpu", pin_memory=True)
            values = host.copy_(values, non_blocking=True)
        self._open.append(_Reading(step, learning_rate, values, self._mark()))

    def pop(self, keep: int) -> Iterator[tuple[int, int, dict[str, float], float]]:
        """Yield (step, tokens, logs, seconds) of all but the ``keep`` newest steps."""
        while len(self._open) > keep:
            reading = self._open.pop(0)
            seconds = self._seconds_to(reading.mark)
            loss, grad_norm, tokens = reading.values.tolist()
            logs = {"loss": loss, "grad_norm": grad_norm, "learning_rate": reading.learning_rate}
            yield reading.step, int(tokens), logs, seconds

    def _mark(self) -> Any:
        if not self._on_cuda:
            return time.monotonic()
        import torch

        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _seconds_to(self, mark: Any) -> float:
        last, self._last_mark = self._last_mark, mark
        if not self._on_cuda:
            return mark - last
        mark.synchronize()
        return last.elapsed_time(mark) / 1000


def memory_gib() -> float:
    """Return this process's peak memory in GiB: the accelerator's, else the resident size."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
