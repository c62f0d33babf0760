"""Messages and collectives between the processes of one run.

Process 0 is the main process: it alone writes, prints, scores and reports. The others, the workers,
take part in training and otherwise wait for its messages. Without a launcher there is one process,
and nothing here does anything.
"""

from __future__ import annotations

import json
import pickle
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from medcot.distributed.rendezvous import (
    Connection,
    ProcessFailure,
    connect,
    exit_now,
    is_main,
    rank,
    world_size,
)
from medcot.errors import Cancelled, RunFailed

__all__ = [
    "ProcessFailure", "announce_failure", "any_rank", "broadcast", "close", "collect", "exit_now",
    "from_main", "is_main", "on_peer_failure", "peer_error", "rank", "receive", "stop_requested",
    "submit", "sum_over_ranks", "world_size",
]  # fmt: skip

Value = TypeVar("Value")

POLL_S = 0.1
LINGER_S = 10.0
"""Seconds the main process waits at its end for the workers to read that it ended. The store may be
its own, and ends with it."""
STEP_TIMEOUT = timedelta(days=7)
"""Limit of the exchange of numbers after each step; a process may write a checkpoint meanwhile."""


def _never() -> bool:
    return False


def broadcast(value: Any) -> None:
    """Send ``value`` to the workers, which get it from :func:`receive` in the order of sending."""
    if world_size() > 1:
        connection = connect()
        connection.messages += 1
        connection.store.set(f"main/{connection.messages}", pickle.dumps(value))


def receive(should_stop: Callable[[], bool] = _never) -> Any:
    """Wait for the next message of the main process.

    Args:
        should_stop: Polled while waiting; when it returns True, the main process is asked to stop.

    Raises:
        Cancelled: The main process was asked to stop.
        RunFailed: A process failed.
    """
    connection = connect()
    connection.messages += 1
    requested = False

    def request_stop_once() -> None:
        nonlocal requested
        if should_stop() and not requested:
            connection.store.set("stop", "1")
            requested = True

    return _wait_for(connection, f"main/{connection.messages}", request_stop_once)


def submit(name: str, value: Any) -> None:
    """Send ``value`` to the main process, which waits for it by ``name`` in :func:`collect`."""
    connect().store.set(f"in/{name}", pickle.dumps(value))


def collect(name: str, should_stop: Callable[[], bool] = _never) -> Any:
    """Wait for what a worker submits by ``name``; it can be collected once.

    Raises:
        Cancelled: ``should_stop`` returned True, or another process was asked to stop.
        RunFailed: A process failed.
    """

    def end_if_requested() -> None:
        if should_stop() or stop_requested():
            raise Cancelled

    value = _wait_for(connect(), f"in/{name}", end_if_requested)
    connect().store.delete_key(f"in/{name}")
    return value


def _wait_for(connection: Connection, key: str, meanwhile: Callable[[], None]) -> Any:
    while not connection.store.check([key]):
        if failure := connection.failure():
            raise failure.as_error()
        meanwhile()
        time.sleep(POLL_S)
    return pickle.loads(connection.store.get(key))


def from_main(make: Callable[[], Value], should_stop: Callable[[], bool] = _never) -> Value:
    """Call ``make`` in the main process and return its value in every process."""
    if not is_main():
        return receive(should_stop)
    value = make()
    broadcast(value)
    return value


def sum_over_ranks(value: float) -> float:
    """Return the sum of ``value`` over all processes. A collective: every process must call it."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    numbers = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(numbers, group=_numbers_group())
    return numbers.item()


def any_rank(value: object) -> bool:
    """Return whether ``value`` is true in any process. A collective: every process must call it."""
    return sum_over_ranks(float(bool(value))) > 0


def stop_requested() -> bool:
    """Return whether another process failed, or was asked to stop while it waited."""
    return world_size() > 1 and connect().stop.is_set()


def peer_error() -> Cancelled | RunFailed | None:
    """Return what ended another process, or None. It may be why a collective broke in this one."""
    failure = connect().failure() if world_size() > 1 else None
    return failure.as_error() if failure else None


def on_peer_failure(record: Callable[[ProcessFailure], object]) -> None:
    """Set what the main process writes down when another one failed and it is stuck itself."""
    if world_size() > 1:
        connect().record = record


def announce_failure(code: int, line: str) -> ProcessFailure:
    """Announce to all processes that this one ends; return the failure that was announced first."""
    own = ProcessFailure(rank(), socket.gethostname(), code, line)
    if world_size() == 1:
        return own
    try:
        connection = connect()
        connection.ending = True
        if connection.store.add("ended", 1) == 1:
            connection.store.set("failure", json.dumps(asdict(own)))
        connection.store.wait(["failure"])
        _linger(connection)
        return connection.failure() or own
    except (RunFailed, RuntimeError):
        # Without the store nobody can be told, and this process's own failure is what is known.
        return own


def close() -> None:
    """Disconnect in good order, after all work is done."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    connection = connect()
    connection.ending = True
    connection.store.add("ended", 1)
    _linger(connection)
    if dist.is_initialized():
        dist.destroy_process_group()


def _linger(connection: Connection) -> None:
    deadline = time.monotonic() + LINGER_S
    while (
        is_main()
        and connection.store.add("ended", 0) < world_size()
        and time.monotonic() < deadline
    ):
        time.sleep(POLL_S)


@cache
def _numbers_group() -> Any:
    """Return a process group on the CPU: reading from the GPU would make every step wait for it."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)
