"""The maintained servers that run a model, and how each is started and asked.

All of them complete a given prompt (``/v1/completions``) and listen on a Unix socket in a folder
of their own, which nobody else may enter. So they need no token, and no port that others can see.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from medcot.catalog import Message
from medcot.credentials import SERVE_TOKEN
from medcot.data.prompts import MARK_TOKENS
from medcot.engines.loading import locate
from medcot.errors import InputError, RunFailed, nearest, one_line
from medcot.hardware.machine import detect_machine
from medcot.serving.chat_request import ChatRequest
from medcot.serving.target import Target
from medcot.terminal import show_line

BackendName = Literal["auto", "vllm", "transformers", "llama.cpp"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

MODEL = "model"
"""The name of the model between the two processes."""

LLAMA_SERVER = "llama-server"
SLOTS = 2
"""Answers that llama.cpp gives at once; each takes memory for a whole context."""

VLLM_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""The run's precision as vLLM names it."""

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
    takes_tokens: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of every request."""

    def write_request(
        self, request: ChatRequest, prompt: str, ids: Sequence[int], limit: int
    ) -> dict[str, Any]:
        """Return the body of the request for a completion; greedy unless it says otherwise."""
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": list(ids) if self.takes_tokens else prompt,
            "max_tokens": limit,
            "temperature": request.temperature,
            "stream": True,
            **self.options,
        }
        given = {"top_p": request.top_p, "seed": request.seed}
        return body | {name: value for name, value in given.items() if value is not None}


def parse_backend(name: str) -> BackendName:
    """Return the server of that name.

    Raises:
        InputError: There is none.
    """
    for one in BACKENDS:
        if one == name:
            return one
    got = f"found {name!r}{nearest(name, list(BACKENDS))}"
    raise InputError("--backend", got, f"expected one of {', '.join(BACKENDS)}")


def choose_backend(target: Target, folder: Path, wanted: BackendName = "auto") -> Backend:
    """Return the server for a target; its socket will be in ``folder``.

    ``auto`` takes llama.cpp for a GGUF; for all else vLLM where it is installed, there is a GPU and
    it can load the model as the run had it, or else transformers.

    Raises:
        InputError: A library is missing, or the server cannot run the model.
    """
    require_serving()
    place = folder / "model.sock"
    if target.kind == "gguf":
        return _choose_llama(target, place, wanted)
    if wanted == "llama.cpp":
        raise _unfit(wanted, "it runs GGUF files only", "export one: medcot export --to gguf")
    why_not = _why_not_vllm(target)
    if wanted == "vllm" and why_not:
        raise _unfit(wanted, why_not, "use --backend transformers")
    if wanted in ("auto", "vllm") and not why_not:
        return _vllm(target, place)
    return _transformers(target, place)


def require_serving() -> None:
    """Check that the libraries of the ``serve`` extra are installed.

    Raises:
        InputError: They are not.
    """
    missing = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        needs = "install them: pip install 'medcot[serve]'"
        raise InputError("medcot serve", f"{', '.join(missing)} not installed", needs)


def _unfit(name: str, why: str, needs: str) -> InputError:
    return InputError(f"--backend {name}", why, needs)


def _transformers(target: Target, place: Path) -> Backend:
    words = (target.kind, str(target.path.resolve()), str(target.directory.path.resolve()))
    module = "medcot.serving.transformers_process"
    return Backend(
        title=f"transformers {version('transformers')}",
        command=(sys.executable, "-P", "-m", module, *words, str(place)),
        socket=place,
    )


def _choose_llama(target: Target, place: Path, wanted: BackendName) -> Backend:
    """Return ``llama-server`` where it is installed, else the same server from xllamacpp."""
    if wanted not in ("auto", "llama.cpp"):
        raise _unfit(wanted, "the export is a GGUF file", "use --backend llama.cpp")
    file, context = str(target.path.resolve()), target.context
    if (program := shutil.which(LLAMA_SERVER)) is not None:
        size = ("--ctx-size", str(context * SLOTS), "--parallel", str(SLOTS))
        command = (program, "--model", file, "--host", str(place), *size, "--no-webui")
        title = LLAMA_SERVER
    elif find_spec("xllamacpp") is not None:
        script = str(Path(__file__).with_name("llama_process.py"))
        numbers = (str(context), str(SLOTS), str(_threads()))
        # -P: this folder's modules must not stand in for those of other packages.
        command = (sys.executable, "-P", script, file, str(place), *numbers)
        title = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    else:
        needs = "install it: pip install 'medcot[serve]'"
        raise InputError("medcot serve", "llama.cpp's server is not installed", needs)
    # The tags are special tokens in some models; llama.cpp would leave those out.
    options = {"preserved_tokens": list(MARK_TOKENS)}
    return Backend(title, command, place, takes_tokens=True, options=options)


def _why_not_vllm(target: Target) -> str:
    """Return why vLLM does not run a target, or an empty string."""
    if find_spec("vllm") is None:
        return "vLLM is not installed"
    if not detect_machine().gpus:
        return "this machine has no GPU"
    if target.kind == "merged":
        return ""
    if not target.directory.has("plan.json"):
        return "the run has no plan.json, which says the precision of its base"
    quantization = str(target.directory.read_json("plan.json").get("quantization", "none"))
    if quantization != "none":
        return f"the base of this run is in {quantization}, which vLLM makes otherwise"
    return ""


def _vllm(target: Target, place: Path) -> Backend:
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    options = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    model, words = str(target.path.resolve()), ("--served-model-name", MODEL)
    if target.kind != "merged":
        found = locate(target.config.model, target.config.model_revision)
        precision = str(target.directory.read_json("plan.json").get("precision", ""))
        rank = max(8, 1 << (target.config.rank - 1).bit_length())
        model = found.source
        words = (
            *("--served-model-name", "base", "--dtype", VLLM_DTYPES.get(precision, "float32")),
            *(("--revision", found.revision) if found.revision else ()),
            *("--enable-lora", "--max-lora-rank", str(rank)),
            *("--lora-modules", f"{MODEL}={target.adapter.resolve()}"),
        )
    size = ("--max-model-len", str(target.context))
    return Backend(
        title=f"vLLM {version('vllm')}",
        command=(
            *(sys.executable, "-P", "-m", "vllm.entrypoints.cli.main", "serve", model),
            *("--uds", str(place), *words, *size),
        ),
        socket=place,
        takes_tokens=True,
        environment=environment,
        options=options,
    )


def _threads() -> int:
    return max(1, min(os.cpu_count() or 1, int(os.environ.get("OMP_NUM_THREADS") or 16)))


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
