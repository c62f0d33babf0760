"""Launch the same command once per GPU.

``python -m medcot.kaggle.session.launch 2 -m medcot run ...``

Sets the environment variables that `torchrun` sets. `torchrun` kills its processes 30 seconds after
an interrupt, which is less than a step on a T4 and a checkpoint may take, and it exits with 1
whatever their exit codes were. This launcher lets them save and exits with the run's own code.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

POLL_S = 0.2
EXIT_GRACE_S, TERMINATE_GRACE_S = 60.0, 20.0
"""Seconds that the other processes get after one failed: to end by themselves, then after SIGTERM.
They tell one another of an error, but a process that was killed tells nobody."""


def start(arguments: Sequence[str], count: int) -> list[subprocess.Popen[bytes]]:
    """Start ``count`` Python processes with ``arguments``, in this one's process group."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
    return [
        subprocess.Popen([sys.executable, *arguments], env=_environment(shared, rank))
        for rank in range(count)
    ]


def wait_for(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes and return 0, or the exit code of the first that failed.

    A process ended by signal N counts as 128 + N, as in a shell.
    """
    first, failed_at, running = 0, 0.0, True
    while running:
        codes = [process.poll() for process in started]
        running = None in codes
        if not first and any(codes):
            first, failed_at = next(code for code in codes if code), time.monotonic()
        if first and running and time.monotonic() > failed_at + EXIT_GRACE_S:
            _terminate(started)
        if running:
            time.sleep(POLL_S)
    return first if first >= 0 else 128 - first


def main(arguments: list[str]) -> int:
    """Run ``arguments``, a number of processes and a command, and return the run's exit code."""
    count, *command = arguments
    # A signal reaches the whole group. This process has nothing to save and waits for the others.
    # It handles the signal instead of ignoring it, because a child would inherit the latter.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return wait_for(start(command, int(count)))


def _terminate(started: Sequence[subprocess.Popen[bytes]]) -> None:
    left = [process for process in started if process.poll() is None]
    for process in left:
        process.terminate()
    deadline = time.monotonic() + TERMINATE_GRACE_S
    for process in left:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment(shared: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
