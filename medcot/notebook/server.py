"""Serves the notebook: to this machine, or to a network with a token.

Around marimo's application stands :class:`~medcot.notebook.request_guard.RequestGuard`, which
decides who is answered. Trainings run in this process, one at a time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import click

from medcot.credentials import prepare_credentials, read_token_file, redacted_output
from medcot.errors import InputError, RunFailed
from medcot.hardware.host_memory import keep_heap_small
from medcot.network import http_address, open_socket
from medcot.notebook.controls import read_start
from medcot.notebook.jobs import RUNNER
from medcot.notebook.request_guard import Application, RequestGuard
from medcot.notebook.static_pages import NOTEBOOK
from medcot.terminal import say

LARGEST_MESSAGE = 2**16
"""Bytes of one websocket message. The page sends none: it speaks by HTTP requests."""

LAST_STEP_S = 60
"""Seconds that a training has to keep its work when the server stops."""


def make_application(
    options: Sequence[str], names: Collection[str] = (), token: str | None = None
) -> Application:
    """Return the guarded notebook as an ASGI application.

    Raises:
        InputError: the notebook's options are wrong.
    """
    named = parse_options(options)
    read_start(named)
    import marimo

    notebook = marimo.create_asgi_app(quiet=True, skew_protection=True)
    served: Any = notebook.with_app(path="", root=str(NOTEBOOK)).build()
    return RequestGuard(served, names=names, token=token, options=named)


def parse_options(words: Sequence[str]) -> dict[str, str | list[str]]:
    """Return ``--name value`` and ``--name=value`` by name; a repeated one is a list.

    Raises:
        InputError: a word that belongs to no option.
    """
    found: dict[str, list[str]] = {}
    waiting: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.setdefault(name, []).append(value)
            waiting = None if equals else name
        elif waiting:
            found[waiting][-1], waiting = word, None
        else:
            raise InputError(f"{word!r}", "it belongs to no option", "expected --name value")
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def serve(application: Application, bound: socket.socket) -> None:
    """Answer requests on ``bound`` until a signal; a training then keeps its work and stops."""
    import uvicorn

    config = uvicorn.Config(
        application,
        log_level="error",
        ws_max_size=LARGEST_MESSAGE,
        # As marimo's own server has it: pages ask rarely and stay open.
        timeout_keep_alive=300,
        ws_ping_interval=1,
        ws_ping_timeout=60,
        timeout_graceful_shutdown=1,
    )
    try:
        with _termination_as_interrupt():
            uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass
    finally:
        _end_training()


@contextmanager
def _termination_as_interrupt() -> Generator[None]:
    """Make SIGTERM raise KeyboardInterrupt, as SIGINT does.

    uvicorn raises the signals that it was sent once more when it has shut down: by its default,
    SIGTERM would end the process before a training has written down that it was cancelled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals, and gets them.
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _end_training() -> None:
    job = RUNNER.current_job()
    if job is None or not RUNNER.is_training():
        return
    say("medcot: the training stops after its step; finished work is kept", err=True)
    job.cancel()
    job.wait(LAST_STEP_S)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option(
    "--port", default=2718, show_default=True, type=click.IntRange(0, 65_535), help="0: a free one"
)
@click.option("--token-file", metavar="FILE", help="file with the token that visitors type")
@click.option(
    "--name", "names", multiple=True, metavar="NAME[:PORT]",
    help="answer to this name, too: of a proxy, a tunnel or a network (repeatable)",
)  # fmt: skip
@click.option("--headless", is_flag=True, help="open no browser")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF A RUN]")
def command(
    host: str,
    port: int,
    token_file: str | None,
    names: tuple[str, ...],
    options: tuple[str, ...],
    *,
    headless: bool,
) -> None:
    """Serve the notebook and open it in the browser."""
    token = read_token_file(token_file) if token_file else None
    application = make_application(options, names, token)
    with open_socket(host, port, served="the notebook", has_token=token is not None) as bound:
        address = http_address(host, int(bound.getsockname()[1]))
        say(f"medcot: the notebook is at {address} (Ctrl-C stops it)")
        if not headless:
            # The socket holds the browser's request until the server answers it.
            bound.listen()
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        serve(application, bound)
    _leave()


def _leave() -> None:
    """End the process at once: the session of an open page is a thread that never ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command; wrong input is one line and exit code 2."""
    keep_heap_small()
    given = None if arguments is None else list(arguments)
    with redacted_output():
        _run_command(given)


def _run_command(arguments: list[str] | None) -> None:
    try:
        prepare_credentials()
        command.main(arguments, prog_name="medcot app", standalone_mode=False)
    except InputError as error:
        say(f"medcot: {error}", err=True)
        sys.exit(2)
    except click.UsageError as error:
        say(f"medcot: {error.format_message()}", err=True)
        sys.exit(2)
    except RunFailed as error:
        say(f"medcot: {error}", err=True)
        sys.exit(1)
    except click.Abort:
        say("medcot: stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
