"""The maintained servers that run a model, and how each is started and asked.

All of them complete a given prompt (``/v1/completions``) and listen on a Unix socket in a folder
of their own, which nobody else may enter. So they need no token, and no port that others can see.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.credentials import SERVE_TOKEN
from medcot.errors import InputError, RunFailed, one_line
from medcot.serving.chat_request import ChatRequest
from medcot.serving.target import Target
from medcot.terminal import show_line

GRACE_S = 1.0
"""Seconds that a model server has to end by itself."""

POLL_S = 0.1
"""Seconds between two looks whether the model is loaded."""


@dataclass(frozen=True)
class Backend:
    """A model server. ``takes_tokens`` tells that its prompts are tokens instead of text."""

    title: str
    command: tuple[str, ...]
    socket: Path
    model: str
    takes_tokens: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of every request."""

    def write_request(
        self, request: ChatRequest, prompt: str, ids: Sequence[int], limit: int
    ) -> dict[str, Any]:
        """Return the body of the request for a completion; greedy unless it says otherwise."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(ids) if self.takes_tokens else prompt,
            "max_tokens": limit,
            "temperature": request.temperature,
            "stream": True,
            **self.options,
        }
        given = {"top_p": request.top_p, "seed": request.seed}
        return body | {name: value for name, value in given.items() if value is not None}


def choose_backend(target: Target, folder: Path) -> Backend:
    """Return the server for a target; its socket will be in ``folder``.

    Raises:
        InputError: A library is missing.
    """
    return _transformers(target, folder / "model.sock")


def _transformers(target: Target, place: Path) -> Backend:
    require_serving()
    from importlib.metadata import version

    words = (target.kind, str(target.path.resolve()), str(target.directory.path.resolve()))
    return Backend(
        title=f"transformers {version('transformers')}",
        command=(
            sys.executable, "-P", "-m", "medcot.serving.transformers_process", *words, str(place)
        ),
        socket=place,
        model="model",
    )  # fmt: skip


def require_serving() -> None:
    """Check that the libraries of the ``serve`` extra are installed.

    Raises:
        InputError: They are not.
    """
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        needs = "install them: pip install 'medcot[serve]'"
        raise InputError("medcot serve", f"{', '.join(missing)} not installed", needs)


@contextmanager
def private_folder() -> Generator[Path]:
    """Yield a folder for the socket, which only this user may enter; it goes at the end."""
    with tempfile.TemporaryDirectory(prefix="medcot-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def running(backend: Backend, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """Start a model server, wait until the model is loaded, and end it at last.

    Raises:
        RunFailed: It ended by itself.
    """
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            backend.command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=_environment(backend),
            # Its own group: an interrupt reaches this process, which then ends that one.
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            _wait_until_ready(process, backend, log)
            yield process
        finally:
            _end(process)


def _environment(backend: Backend) -> dict[str, str]:
    """Return this process's environment without the clients' token, which the server needs not."""
    kept = {name: value for name, value in os.environ.items() if name != SERVE_TOKEN}
    return {**kept, **backend.environment}


def ended_by_itself(backend: Backend, log: Path) -> RunFailed:
    """Return the error of a model server that ended, with its last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    why = show_line(one_line(lines[-1], 300)) if lines else "-"
    values = {"server": backend.title, "why": why}
    return RunFailed("serve", Message("serve_ended", values), Message("needs_serve_memory"))


def _wait_until_ready(process: subprocess.Popen[bytes], backend: Backend, log: Path) -> None:
    import httpx

    transport = httpx.HTTPTransport(uds=str(backend.socket))
    with httpx.Client(transport=transport, base_url="http://model", timeout=5) as client:
        while process.poll() is None:
            with suppress(httpx.HTTPError):
                if _listens(backend.socket) and client.get("/health").is_success:
                    return
            time.sleep(POLL_S)
    raise ended_by_itself(backend, log)


def _listens(place: Path) -> bool:
    """Return whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(place))
        except OSError:
            return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    process.wait()


def _end_with_parent() -> None:
    """Let Linux end this process when the one that started it is gone, however it ended."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
