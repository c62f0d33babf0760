"""Faults that a command of the fork server runs within."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BALLAST = "ballast"


@contextmanager
def killed_at_change(
    folder: str, number: int = 0, stage: str = "", count: str = ""
) -> Iterator[None]:
    """Die by SIGKILL just before change ``number`` of a file in ``folder``.

    Args:
        number: From 1; with 0, the command lives.
        stage: Changes are counted once the run is in this stage; "" for all.
        count: A file to write the number of changes to.
    """
    from medcot.runs.directory import RunDirectory

    seen, reached = 0, not stage
    set_stage = RunDirectory.set_stage

    def note_stage(self: RunDirectory, found: Any, **details: Any) -> None:
        nonlocal reached
        set_stage(self, found, **details)
        reached = reached or found == stage

    RunDirectory.set_stage = note_stage

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not reached or event not in CHANGES or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        yield
    finally:
        if count:
            Path(count).write_text(str(seen))


@contextmanager
def paused_in_stages(stages: list[str], signs: str) -> Iterator[None]:
    """Wait at the beginning of each stage: write ``paused-STAGE`` and wait for ``go-STAGE``."""
    from medcot.runs.directory import RunDirectory

    set_stage = RunDirectory.set_stage

    def pause(self: RunDirectory, stage: Any, **details: Any) -> None:
        set_stage(self, stage, **details)
        if stage in stages:
            (Path(signs) / f"paused-{stage}").touch()
            while not (Path(signs) / f"go-{stage}").exists():
                time.sleep(0.02)

    RunDirectory.set_stage = pause
    yield


@contextmanager
def disk_filled(folder: str, stage: str, kind: str, leave: int = 0) -> Iterator[None]:
    """Fill the file system of ``folder`` once the run's stage is ``stage``.

    Args:
        stage: Of the run, or "checkpoint": once the second step is recorded.
        kind: ``bytes`` or ``inodes``.
        leave: So many bytes or inodes stay free.
    """
    from medcot.runs.directory import RunDirectory

    fill = {"bytes": fill_bytes, "inodes": fill_inodes}[kind]
    append, set_stage = RunDirectory.append, RunDirectory.set_stage

    def fill_after_step(self: RunDirectory, path: Path, row: Any) -> None:
        append(self, path, row)
        if path == self.events and stage == "checkpoint" and row.step == 2:
            fill(Path(folder) / BALLAST, leave)

    def fill_after_stage(self: RunDirectory, reached: Any, **details: Any) -> None:
        set_stage(self, reached, **details)
        if reached == stage:
            fill(Path(folder) / BALLAST, leave)

    RunDirectory.append, RunDirectory.set_stage = fill_after_step, fill_after_stage
    yield


def fill_bytes(ballast: Path, leave: int) -> None:
    """Write a file ``ballast`` that leaves ``leave`` bytes of its file system free."""
    ballast.mkdir()
    free = os.statvfs(ballast).f_bavail * os.statvfs(ballast).f_frsize
    with (ballast / "file").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)


def fill_inodes(ballast: Path, leave: int) -> None:
    """Make empty files in the folder ``ballast`` until only ``leave`` inodes are free."""
    ballast.mkdir()
    for number in range(os.statvfs(ballast).f_ffree - leave):
        (ballast / str(number)).touch()
