"""Runs medcot's commands, and programs, in forks of one process that has imported everything.

A command then begins at once, without four seconds of imports, and can be killed like any other.
The server has one thread and computes nothing itself, so that its forks start in a sound state.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
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
    """How a command ended: ``code`` is negative for a signal; ``cpu_s`` are its CPU seconds.

    ``errors`` are a program's; those of a command are in its output.
    """

    code: int
    cpu_s: float
    output: str
    errors: str = ""


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
        request = {"arguments": [str(one) for one in arguments], "fault": fault}
        return self._start(request | {"options": options})

    def start_program(
        self,
        program: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str],
        *,
        draws: bool = False,
    ) -> int:
        """Start ``python PROGRAM`` in a folder and return its pid.

        What libraries read from the environment as they are imported was read by the server, but
        for the hub's cache.

        Args:
            draws: Let reports have figures, as those of commands have not: they start a JavaScript
                engine, a second each.
        """
        request = {"program": [str(one) for one in program], "folder": str(folder), "draws": draws}
        return self._start(request | {"environment": dict(environment)})

    def wait(self, pid: int, within_s: float = LIMIT_S) -> Ended:
        """Wait until the command has ended; it is killed after ``within_s`` seconds."""
        timer = threading.Timer(within_s, os.kill, (pid, 9))
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

    def _start(self, request: dict[str, Any]) -> int:
        self._count += 1
        return int(self._ask(request | {"output": str(self._scratch / f"output-{self._count}")}))

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
    gc.collect()
    gc.freeze()
    outputs: dict[int, Path] = {}
    answers.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("wait"):
            _, status, usage = os.wait4(pid, 0)
            code, cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            ended = {"code": code, "cpu_s": cpu_s} | _read_output(outputs.pop(pid))
            answers.write(json.dumps(ended) + "\n")
        elif pid := os.fork():
            outputs[pid] = Path(request["output"])
            answers.write(f"{pid}\n")
        else:
            _carry_out(**request)
    for pid in outputs:
        os.kill(pid, signal.SIGKILL)


def _errors_of(output: Path) -> Path:
    return output.with_name(f"{output.name}-errors")


def _read_output(output: Path) -> dict[str, str]:
    files = {"output": output, "errors": _errors_of(output)}
    return {
        name: file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        for name, file in files.items()
    }


def _carry_out(
    output: str, program: list[str] | None = None, *, draws: bool = False, **request: Any
) -> None:
    """Be the command: never returns."""
    code = 1
    try:
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        if program:
            written = os.open(_errors_of(Path(output)), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not draws:
            vars(sys.modules["medcot.reporting.figures"])["can_draw"] = lambda: False
        if program:
            _run_program(program, **request)
        else:
            _run_command(**request)
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


def _run_command(arguments: list[str], fault: str, options: dict[str, Any]) -> None:
    from medcot.cli.main import main

    module, _, name = fault.partition(":")
    within = getattr(importlib.import_module(module), name)(**options) if fault else None
    with within or nullcontext():
        main(arguments)


def _run_program(program: list[str], folder: str, environment: dict[str, str]) -> None:
    """As Python does: a script, ``-c`` and a text, or ``-m`` and a module, and its arguments."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if home := environment.get("HF_HOME"):
        from huggingface_hub import constants

        constants.HF_HOME, constants.HF_HUB_CACHE = home, str(Path(home) / "hub")
    first, *rest = program
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = program
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve()
