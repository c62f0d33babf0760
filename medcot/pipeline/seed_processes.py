"""Trains several seeds at the same time, each in a process of its own.

A process runs ``medcot train --resume`` on the seed's run directory. It sees one GPU, or computes
with its share of the CPU cores: operators of a small model keep one core busy better than several.
A launcher's processes would train one model together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import IO, Any

from medcot.catalog import Message
from medcot.config.resolve import ENVIRONMENT_ONLY
from medcot.errors import Cancelled, RunFailed, one_line
from medcot.hardware.machine import Machine, usable_gpus
from medcot.listener import Listener
from medcot.records import Event
from medcot.runs.directory import RunDirectory

POLL_S = 0.5
VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"

Place = Mapping[str, str]
"""Environment variables that give a process its GPU or its share of the cores."""

Command = Callable[[RunDirectory], Sequence[str]]
"""Returns the command that trains the run in a directory."""


def list_gpus(machine: Machine, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """Return a place for each of the usable GPUs."""
    count = len(usable_gpus(machine))
    named = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    names = named[:count] if named else [str(number) for number in range(count)]
    return [{VISIBLE: name} for name in names]


def share_cores(
    machine: Machine, at_once: int, environment: Mapping[str, str] = os.environ
) -> list[Place]:
    """Return ``at_once`` places that share the CPU cores; one if the user allows one thread."""
    allowed = environment.get(THREADS, "")
    cores = min(machine.cpu_cores, int(allowed)) if allowed.isdecimal() else machine.cpu_cores
    if cores < 2:
        return [{}]
    return [{THREADS: str(max(1, cores // at_once))}] * at_once


def train_command(directory: RunDirectory) -> Sequence[str]:
    """Return the command that trains a seed's run, from where it stopped."""
    return [sys.executable, "-m", "medcot", "train", "--resume", "--out", str(directory.path)]


@dataclass(slots=True)
class _Training:
    """A process, its place, what it prints, and how many steps of it are shown."""

    directory: RunDirectory
    place: Place
    process: subprocess.Popen[bytes]
    printed: IO[bytes]
    shown: int = 0


def train_in_processes(
    directories: Sequence[RunDirectory],
    places: Sequence[Place],
    listener: Listener,
    command: Command = train_command,
) -> None:
    """Train the runs in ``directories``, as many at a time as there are ``places``.

    Raises:
        RunFailed: A training failed. The others were stopped first, and keep their work.
        Cancelled: The listener asked to stop.
    """
    waiting, free, running = list(directories), list(places), list[_Training]()
    started: list[_Training] = []
    steps = _Steps(len(directories), listener)
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(0), free.pop(0), command))
                started.append(running[-1])
            time.sleep(POLL_S)
            for one in list(running):
                code = one.process.poll()
                steps.show(one)
                if code is None:
                    continue
                running.remove(one)
                free.append(one.place)
                if code != 0:
                    raise _explain(one, code)
            if listener.should_stop():
                raise Cancelled
    finally:
        for one in running:
            if one.process.poll() is None:
                one.process.terminate()  # A shell's background jobs ignore SIGINT.
        for one in started:
            one.process.wait()
            one.printed.close()


def _start(directory: RunDirectory, place: Place, command: Command) -> _Training:
    kept = {
        name: value
        for name, value in os.environ.items()
        # The options are in the run's config, and another number of seeds would be refused.
        if not name.startswith("MEDCOT_") or name in ENVIRONMENT_ONLY
    }
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
    process = subprocess.Popen(
        command(directory), env=kept | dict(place), stdin=subprocess.DEVNULL,
        stdout=printed, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return _Training(directory, place, process, printed)


def _explain(one: _Training, code: int) -> Exception:
    """Return why a training ended, by its own words where it has some."""
    if one.directory.has("error.json"):
        found = one.directory.read_json("error.json")
        return RunFailed("training", str(found["message"]), str(found["remedy"]))
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return Cancelled()
    one.printed.seek(0)
    lines = one.printed.read().decode("utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    values = {"folder": str(one.directory.path), "code": code, "last": one_line(last, 200)}
    return RunFailed("training", Message("error_seed_ended", values), Message("needs_seed_log"))


class _Steps:
    """Shows the steps of all trainings as one count."""

    def __init__(self, trainings: int, listener: Listener) -> None:
        self._trainings, self._listener, self._done = trainings, listener, 0

    def show(self, one: _Training) -> None:
        """Show the steps that a training did since the last time."""
        names = [field.name for field in fields(Event)]
        for row in list(one.directory.rows(one.directory.events))[one.shown :]:
            one.shown += 1
            self._done += 1
            values: dict[str, Any] = {name: row.get(name) for name in names}
            event = Event(**values)
            whole = replace(event, step=self._done, steps=event.steps * self._trainings)
            self._listener.event(whole)
