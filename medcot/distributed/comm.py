"""The processes that train side by side: what they say to one another.

Process 0 is the main one: it alone writes, prints, scores and reports. The others take part in
training and otherwise wait for what it tells them. Without a launcher there is one process, and
nothing here does anything.
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
    Failure,
    Link,
    connect,
    is_main,
    leave,
    rank,
    world_size,
)
from medcot.errors import Cancelled, RunFailed

__all__ = [
    "Failure", "any_of", "close", "error_elsewhere", "fail", "from_main", "hand_in", "hear",
    "is_main", "leave", "on_failure", "rank", "stop_requested", "take", "tell", "total",
    "world_size",
]  # fmt: skip

Value = TypeVar("Value")

POLL_S = 0.1
LINGER_S = 10.0
"""How long the main process waits at its end for the others to hear of it: the store may be its."""
STEP_TIMEOUT = timedelta(days=7)
"""Of the few numbers exchanged after each step: a process may write a checkpoint meanwhile."""


def _never() -> bool:
    return False


def tell(value: Any) -> None:
    """Say ``value`` to the other processes; they get it in this order from :func:`hear`."""
    if world_size() > 1:
        link = _link()
        link.turn += 1
        link.store.set(f"main/{link.turn}", pickle.dumps(value))


def hear(should_stop: Callable[[], bool] = _never) -> Any:
    """Wait for what the main process says next. It learns when ``should_stop`` asks for that.

    Raises:
        Cancelled: the main process was asked to stop.
        RunFailed: some process failed.
    """
    link = _link()
    link.turn += 1
    asked = False

    def ask_once() -> None:
        nonlocal asked
        if should_stop() and not asked:
            link.store.set("stop", "1")
            asked = True

    return _wait_for(link, f"main/{link.turn}", ask_once)


def hand_in(name: str, value: Any) -> None:
    """Give ``value`` to the main process, which asks for it by ``name`` in :func:`take`."""
    _link().store.set(f"in/{name}", pickle.dumps(value))


def take(name: str, should_stop: Callable[[], bool] = _never) -> Any:
    """Wait for what another process hands in by ``name``; it can be taken once.

    Raises:
        Cancelled: ``should_stop``, or another process was asked to stop.
        RunFailed: some process failed.
    """

    def end_if_asked() -> None:
        if should_stop() or stop_requested():
            raise Cancelled

    value = _wait_for(_link(), f"in/{name}", end_if_asked)
    _link().store.delete_key(f"in/{name}")
    return value


def _wait_for(link: Link, key: str, meanwhile: Callable[[], None]) -> Any:
    while not link.store.check([key]):
        if ended := link.failure():
            raise ended.as_error()
        meanwhile()
        time.sleep(POLL_S)
    return pickle.loads(link.store.get(key))


def from_main(make: Callable[[], Value], should_stop: Callable[[], bool] = _never) -> Value:
    """What ``make`` gives in the main process, in every process."""
    if not is_main():
        return hear(should_stop)
    value = make()
    tell(value)
    return value


def total(value: float) -> float:
    """The sum of ``value`` over all processes. All of them must ask, and all get the same."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    numbers = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(numbers, group=_numbers_group())
    return numbers.item()


def any_of(flag: bool) -> bool:
    """Whether ``flag`` holds in any process. All of them must ask, and all get the same."""
    return total(float(flag)) > 0


def stop_requested() -> bool:
    """Whether another process was asked to stop while it waited, or failed."""
    return world_size() > 1 and _link().stop.is_set()


def error_elsewhere() -> Cancelled | RunFailed | None:
    """What ended another process, or None: it may be why a collective broke in this one."""
    ended = _link().failure() if world_size() > 1 else None
    return ended.as_error() if ended else None


def on_failure(record: Callable[[Failure], None]) -> None:
    """What to write down when another process failed and this one is stuck."""
    if world_size() > 1:
        _link().record = record


def fail(code: int, line: str) -> Failure:
    """Tell all processes that this one ends; gives the failure that was told first."""
    own = Failure(rank(), socket.gethostname(), code, line)
    if world_size() == 1:
        return own
    try:
        link = _link()
        link.ending = True
        if link.store.add("ended", 1) == 1:
            link.store.set("failure", json.dumps(asdict(own)))
        link.store.wait(["failure"])
        _linger(link)
        return link.failure() or own
    except (RunFailed, RuntimeError):
        return own


def close() -> None:
    """Part in good order, after all work is done."""
    if world_size() == 1:
        return
    import torch.distributed as dist

    link = _link()
    link.ending = True
    link.store.add("ended", 1)
    _linger(link)
    if dist.is_initialized():
        dist.destroy_process_group()


def _linger(link: Link) -> None:
    deadline = time.monotonic() + LINGER_S
    while is_main() and link.store.add("ended", 0) < world_size() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _link() -> Link:
    found = connect()
    if isinstance(found, RunFailed):
        raise found
    return found


@cache
def _numbers_group() -> Any:
    """A group on the CPU: asking the GPU would make every step wait for it."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)
