"""Runs medcot's commands in forks of one process that has imported everything.

A command then begins at once, without four seconds of imports, and can be killed like any other.
The server has one thread and computes nothing itself, so that its forks start in a sound state.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPORTS = (
    "medcot.cli.main", "medcot.cli.progress", "medcot.pipeline.run", "medcot.engines.hf",
    "medcot.training.fit", "medcot.training.trainers.choose", "medcot.inference.generate",
    "medcot.inference.ask", "medcot.reporting.figures", "peft", "trl", "datasets",
    "statsmodels.stats.multitest", "scipy.stats", "transformers.models.llama",
    "transformers.models.llama.modeling_llama", "trl.trainer.sft_trainer", "torch._dynamo",
)  # fmt: skip
LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: ``code`` is negative for a signal; ``cpu_s`` are its CPU seconds."""

    code: int
    cpu_s: float
    output: str


class ForkServer:
    """The server. ``wrapper`` is the command that starts it, if any."""

    def __init__(self, scratch: Path, *wrapper: str) -> None:
        self._scratch, self._count = scratch, 0
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.pid = int(self._answer())

    def start(self, *arguments: str | Path, fault: str = "", **options: Any) -> int:
        """Start ``medcot ARGUMENTS`` and return its pid.

        Args:
            fault: A context manager ``MODULE:NAME`` that the command runs within.
            options: What to call it with.
        """
        self._count += 1
        request = {"arguments": [str(one) for one in arguments], "fault": fault}
        output = str(self._scratch / f"output-{self._count}")
        return int(self._ask(request | {"options": options, "output": output}))

    def wait(self, pid: int) -> Ended:
        """Wait until the command has ended; it is killed after ``LIMIT_S`` seconds."""
        timer = threading.Timer(LIMIT_S, os.kill, (pid, 9))
        timer.start()
        try:
            return Ended(**json.loads(self._ask({"wait": pid})))
        finally:
            timer.cancel()

    def run(self, *arguments: str | Path, fault: str = "", **options: Any) -> Ended:
        """Start ``medcot ARGUMENTS`` and wait until it has ended."""
        return self.wait(self.start(*arguments, fault=fault, **options))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextmanager
def fork_server(scratch: Path, *wrapper: str) -> Iterator[ForkServer]:
    """A running server; ``wrapper`` is the command that starts it, if any."""
    server = ForkServer(scratch, *wrapper)
    try:
        yield server
    finally:
        server.close()


def serve() -> None:
    """Answer requests, one a line, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in IMPORTS:
        importlib.import_module(name)
    # Drawing starts a JavaScript engine in every command, a second each.
    sys.modules["medcot.reporting.figures"].can_draw = lambda: False  # type: ignore[attr-defined]
    gc.collect()
    gc.freeze()
    outputs: dict[int, Path] = {}
    answers.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("wait"):
            _, status, usage = os.wait4(pid, 0)
            output = outputs.pop(pid).read_text(encoding="utf-8", errors="replace")
            code, cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            answers.write(json.dumps({"code": code, "cpu_s": cpu_s, "output": output}) + "\n")
        elif pid := os.fork():
            outputs[pid] = Path(request["output"])
            answers.write(f"{pid}\n")
        else:
            _carry_out(**request)


def _carry_out(arguments: list[str], fault: str, options: dict[str, Any], output: str) -> None:
    """Be the command: never returns."""
    code = 1
    try:
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from medcot.cli.main import main

        module, _, name = fault.partition(":")
        within = getattr(importlib.import_module(module), name)(**options) if fault else None
        with within or nullcontext():
            main(arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:  # noqa: BLE001 - it goes to the output, and the fork ends
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
