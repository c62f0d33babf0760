"""Locks a run directory while it is worked on, and writes down what ended a run."""

from __future__ import annotations

import errno
import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from medcot.catalog import Message
from medcot.distributed import comm
from medcot.errors import Cancelled, InputError, RunFailed, one_line, ran_out_of_memory
from medcot.listener import Listener
from medcot.pipeline.run_log import run_log
from medcot.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT}
"""No bytes, no inodes, or the user's quota is used up."""
FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
WRITER_TEXTS = ("PytorchStreamWriter", "file write failed", "unexpected pos", "iostream error")
"""What PyTorch says, without a reason, when a file cannot be written."""
LEAST_FREE = 1 << 20
"""Bytes: with fewer free, a failed write of PyTorch is put down to the full disk."""


@contextmanager
def recorded(directory: RunDirectory, listener: Listener, *, resume: bool) -> Iterator[None]:
    """Lock the directory; keep ``medcot.log`` and ``status.json`` and, on failure, ``error.json``.

    Raises:
        InputError: Another process works on the run; nothing was changed.
    """
    stale = directory.lock.take() if directory.exists() else ""
    try:
        former = _former_failure(directory) if resume else ""
        if resume:
            directory.remove_unfinished()
            directory.remove("error.json")
        comm.on_peer_failure(lambda ended: _record_failure(directory, ended.as_error()))
        with run_log(directory, listener, resume=resume), _recorded_failures(directory):
            if stale:
                logger.warning("The lock of an earlier process is replaced (%s).", stale)
            if former:
                logger.info("last time: %s", former)
                listener.say(f"Last time: {former}")
            yield
    finally:
        directory.lock.release()


@contextmanager
def _recorded_failures(directory: RunDirectory) -> Iterator[None]:
    """Turn what ends a run into the error that a front end shows, and write it down."""
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        # A process that failed makes the others stop, which the user did not ask for.
        ended = comm.peer_error() or Cancelled()
        _record_failure(directory, ended)
        raise ended from None
    except InputError:
        raise
    except Exception as error:
        failure = comm.peer_error() or _explain(directory, error)
        raise _record_failure(directory, failure) from error


def _former_failure(directory: RunDirectory) -> str:
    """Return what ended the run before, "" where nothing is written down."""
    if not directory.has("error.json"):
        return ""
    try:
        found = directory.read_json("error.json")
        return one_line(" ".join(str(found[name]) for name in ("message", "remedy")), 400)
    except (InputError, KeyError, TypeError, OSError):
        return ""


def _record_failure(directory: RunDirectory, error: Exception) -> Exception:
    """Write down what ended the run; return the error, which says so where that is impossible."""
    if isinstance(error, RunFailed):
        logger.error("failed: %s", error)
    else:
        logger.info("cancelled; finished work is kept")
    if not directory.exists():
        return error
    try:
        if isinstance(error, RunFailed):
            facts = {"stage": error.stage, "message": str(error.message)}
            facts |= {"remedy": str(error.remedy), "traceback": traceback.format_exc()}
            directory.write_json("error.json", facts)
            directory.set_stage("failed")
        else:
            directory.set_stage("cancelled", resume=f"medcot run --resume --out {directory.path}")
    except OSError as problem:
        logger.warning("error.json or status.json could not be written: %s", problem)
        if isinstance(error, RunFailed):
            why = one_line(problem.strerror or str(problem), 80)
            unwritten = Message("error_file_unwritten", {"why": why})
            remedy = Message("two_sentences", {"first": error.remedy, "second": unwritten})
            return RunFailed(error.stage, error.message, remedy)
    return error


def _explain(directory: RunDirectory, error: Exception) -> RunFailed:
    """Return ``error`` as a failure of the run's stage, with what to do where that is known."""
    if isinstance(error, RunFailed):
        return error
    stage = directory.reached or "start"
    folder = str(directory.path)
    if ran_out_of_memory(error):
        return RunFailed(stage, Message("error_out_of_memory"), Message("needs_4bit_or_shorter"))
    if _is_gone(directory, error):
        return RunFailed(stage, Message("error_run_gone", {"folder": folder}),
                         Message("needs_run_back"))  # fmt: skip
    if _is_disk_full(directory, error):
        full = Message("error_disk_full", {"folder": folder})
        return RunFailed(stage, full, Message("needs_space"))
    message = f"{type(error).__name__}: {one_line(str(error))}."
    begun = directory.exists()
    return RunFailed(stage, message, Message("needs_error_file" if begun else "needs_new_start"))


def _is_gone(directory: RunDirectory, error: Exception) -> bool:
    """Return whether the run's own directory was taken from under it."""
    if not (isinstance(error, OSError | RuntimeError) and directory.lock.held):
        return False
    return not directory.path.is_dir() or not directory.lock.is_intact()


def _is_disk_full(directory: RunDirectory, error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    if any(one in text for one in FULL_TEXTS):
        return True
    try:
        free = shutil.disk_usage(directory.path).free
    except OSError:
        return False
    return free < LEAST_FREE and any(one in text for one in WRITER_TEXTS)
