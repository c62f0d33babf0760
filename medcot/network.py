"""Decides what may use the network: no library's telemetry, and nothing at all when offline.

Standard library only: ``prepare_network`` runs before any library is imported.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import MutableMapping
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from medcot.errors import InputError

OFFLINE = "MEDCOT_OFFLINE"
"""Variable that keeps every connection on this machine."""

NO_TELEMETRY = {
    # TRL's trainers report each training, and huggingface_hub asks which agent started the process.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # datasets and evaluate count each load of a script with a request of its own.
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # transformers asks a service of the hub to convert weights that are not safetensors.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    # unsloth counts machines by downloading a repository made for that.
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # W&B's client sends its own errors to Sentry, offline runs' too.
    "WANDB_ERROR_REPORTING": "false",
    # `marimo edit` asks for the newest version once a day.
    "MARIMO_SKIP_UPDATE_CHECK": "1",
}
"""Variables that stop what libraries send unasked. A variable that the user has set is kept."""

_LIBRARIES_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "WANDB_MODE": "offline",
}

_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")

HUB_CONNECT_S, HUB_READ_S = 10.0, 60.0
"""Timeouts of the hub's requests: its client has none, apart from downloads."""


class OfflineError(ConnectionError):
    """Report a connection beyond this machine that ``MEDCOT_OFFLINE`` forbids."""


def is_offline() -> bool:
    """Return whether ``MEDCOT_OFFLINE`` is on.

    Raises:
        InputError: it is neither on nor off.
    """
    value = os.environ.get(OFFLINE, "").strip().lower()
    if value not in _ON + _OFF:
        raise InputError(OFFLINE, f"found {value[:40]!r}", "expected 1 or 0")
    return value in _ON


def prepare_network(environ: MutableMapping[str, str] | None = None) -> None:
    """Turn the libraries' telemetry off and, with ``MEDCOT_OFFLINE``, the network.

    The hub's address is kept without spaces and a slash at its end: ``datasets`` would double it.
    Libraries read these variables when they are imported. Compiled clients (the hub's transfers,
    W&B's service) heed the variables alone; Python's own connections are refused besides.
    """
    environ = os.environ if environ is None else environ
    for name, value in NO_TELEMETRY.items():
        environ.setdefault(name, value)
    if endpoint := environ.pop("HF_ENDPOINT", "").strip().rstrip("/"):
        environ["HF_ENDPOINT"] = endpoint
    if is_offline():
        environ.update(_LIBRARIES_OFFLINE)
        _guard_connections()


def require_network(where: str, address: str) -> None:
    """Refuse a connection to ``address``, a URL, if it leaves this machine and may not.

    Raises:
        InputError: ``MEDCOT_OFFLINE`` is on, and the address is not of this machine.
    """
    if is_offline() and not is_loopback(urlsplit(address).hostname or ""):
        got = f"{OFFLINE} is on, and this needs the network"
        raise InputError(where, got, f"unset {OFFLINE}")


def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address, is this machine itself."""
    try:
        return ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def open_socket(host: str, port: int, *, served: str, has_token: bool) -> socket.socket:
    """Return a socket that is bound to ``host``, and does not listen yet.

    Args:
        served: What it is for, in words.

    Raises:
        InputError: a network could reach it and there is no token; no such address; port taken.
    """
    where = f"--host {host} --port {port}"
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(found[0], socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(where, _reason(error), "expected an address of this machine") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
        if not has_token and not is_loopback(str(bound.getsockname()[0])):
            raise InputError(
                f"--host {host}", f"a network could reach {served} without a token",
                "add --token-file FILE, or keep 127.0.0.1 and come by ssh -L",
            )  # fmt: skip
    except OSError as error:
        bound.close()
        raise InputError(where, _reason(error), "choose another one") from None
    except InputError:
        bound.close()
        raise
    return bound


def http_address(host: str, port: int) -> str:
    """Return the address at which this machine reaches a server that listens on ``host``."""
    bare = host.strip("[]")
    named = "127.0.0.1" if bare in ("0.0.0.0", "::", "") else bare
    return f"http://{f'[{named}]' if ':' in named else named}:{port}"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@cache
def limit_hub_requests() -> None:
    """Give each request of the hub's client a timeout; it retries a bounded number of times."""
    import httpx
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def make_client() -> httpx.Client:
        client = default_client_factory()
        client.timeout = httpx.Timeout(HUB_READ_S, connect=HUB_CONNECT_S)
        return client

    set_client_factory(make_client)


@cache
def _guard_connections() -> None:
    """Refuse every connection of Python code beyond this machine, whichever library opens it."""
    sys.addaudithook(_refuse_beyond_loopback)


_ADDRESS_AT = {
    "socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1,
    "socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0,
}  # fmt: skip
"""Which argument of an audit event holds the address or the host's name."""


def _refuse_beyond_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _ADDRESS_AT or not is_offline():
        return
    address = arguments[_ADDRESS_AT[event]]
    # Text alone is the path of a Unix socket, a number that of the kernel's own sockets.
    named = event.startswith("socket.get")
    host = address if named else address[0] if isinstance(address, tuple) else None
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if isinstance(host, str) and host and not is_loopback(host):
        raise OfflineError(f"{OFFLINE} is on: no connection to {host}")
