"""Serves a target until a signal: model server, frontend, and what is said at the start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medcot.catalog import Message
from medcot.credentials import SERVE_TOKEN
from medcot.errors import InputError
from medcot.network import OFFLINE, http_address, is_loopback, is_offline, open_socket
from medcot.runs.environment import NOT_MEDICAL_ADVICE
from medcot.serving.access import Access, decide_access
from medcot.serving.backends import (
    Backend,
    BackendName,
    choose_backend,
    ended_by_itself,
    private_folder,
    running,
)
from medcot.serving.target import Target

if TYPE_CHECKING:
    import socket
    import subprocess

    from starlette.applications import Starlette

Say = Callable[[str], None]
Announce = Callable[[dict[str, str]], None]
"""Takes ``address``, ``model`` and ``token`` or where it is, once the model answers."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen, and where the token is."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    backend: BackendName = "auto"


def serve(
    target: Target, options: ServeOptions, say: Say, announce: Announce | None = None
) -> None:
    """Answer clients until SIGINT or SIGTERM; the model server ends with this process.

    Args:
        announce: Takes the facts for a program; a new token is then not said.

    Raises:
        InputError: The options do not allow it, or a library is missing; nothing was started.
        RunFailed: The model server ended.
    """
    if is_offline() and not is_loopback(options.host):
        got = f"{OFFLINE} is on, and this would listen beyond this machine"
        raise InputError(f"--host {options.host}", got, f"keep 127.0.0.1, or unset {OFFLINE}")
    access = decide_access(options.token_file)
    served = "the model"
    with (
        private_folder() as folder,
        open_socket(options.host, options.port, served=served, has_token=access.given) as bound,
    ):
        backend = choose_backend(target, folder, options.backend)
        # From now on the port is taken, and connections wait until the model is there.
        bound.listen()
        say(str(Message("serve_loading", {"model": target.name, "server": backend.title})))
        try:
            with running(backend, folder) as process:
                address = f"{http_address(options.host, int(bound.getsockname()[1]))}/v1"
                _introduce(target, options, access, address, say, announce)
                _answer(target, access, backend, process, bound)
                if process.poll() is not None:
                    raise ended_by_itself(backend, folder / "server.log")
        except KeyboardInterrupt:
            say(str(Message("serve_stopped")))


def _introduce(
    target: Target,
    options: ServeOptions,
    access: Access,
    address: str,
    say: Say,
    announce: Announce | None,
) -> None:
    facts = {"address": address, "model": target.name}
    say(str(Message("serve_ready", dict(facts))))
    if options.token_file is not None:
        facts["token_file"] = str(options.token_file)
        say(str(Message("serve_token_file", {"file": facts["token_file"]})))
    elif access.given:
        facts["token_variable"] = SERVE_TOKEN
        say(str(Message("serve_token_given", {"variable": SERVE_TOKEN})))
    else:
        facts["token"] = access.token
        if announce is None:
            say(str(Message("serve_token_made", {"token": access.token})))
    say(NOT_MEDICAL_ADVICE)
    if announce is not None:
        announce(facts)


def _answer(
    target: Target,
    access: Access,
    backend: Backend,
    process: subprocess.Popen[bytes],
    bound: socket.socket,
) -> None:
    """Run the frontend until a signal or the end of the model server."""
    import uvicorn

    from medcot.serving.frontend import make_application

    application: Starlette = make_application(target, access, backend)
    config = uvicorn.Config(
        application, log_level="error", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)

    def stop_with_model() -> None:
        process.wait()
        server.should_exit = True

    threading.Thread(target=stop_with_model, daemon=True).start()
    server.run(sockets=[bound])
