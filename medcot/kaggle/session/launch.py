"""Start the same command once per GPU.

``python -m medcot.kaggle.session.launch 2 -m medcot run ...``

Gives each process what `torchrun` gives it. That launcher kills its processes 30 seconds after an
interrupt, which is less than a step on a T4 and a checkpoint may take, and ends with 1 whatever
they ended with. This one lets them save, and ends with the run's own exit code.
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
GRACE_S, TOLD_S = 60.0, 20.0
"""What the others have after one failed, to end by themselves and then by a termination: they hear
of an error from one another, but a process that was killed tells nobody."""


def start(arguments: Sequence[str], count: int) -> list[subprocess.Popen[bytes]]:
    """``count`` Python processes with ``arguments``, in this one's process group."""
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
    """Until all have ended: 0, or the exit code of the first that failed (128 + N by signal N)."""
    first, failed_at, running = 0, 0.0, True
    while running:
        codes = [process.poll() for process in started]
        running = None in codes
        if not first and any(codes):
            first, failed_at = next(code for code in codes if code), time.monotonic()
        if first and running and time.monotonic() > failed_at + GRACE_S:
            _end(started)
        if running:
            time.sleep(POLL_S)
    return first if first >= 0 else 128 - first


def main(arguments: list[str]) -> int:
    """The exit code of the run that ``arguments`` describe: a number of processes, a command."""
    count, *command = arguments
    # Asked to stop as one group with them, it has nothing to save and waits for their end. Heard
    # rather than ignored, as a child would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    return wait_for(start(command, int(count)))


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    left = [process for process in started if process.poll() is None]
    for process in left:
        process.terminate()
    deadline = time.monotonic() + TOLD_S
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
