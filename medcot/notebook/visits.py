"""Tells a page of the notebook whose it is, and with which options its server was started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4


class Request(Protocol):
    """What marimo tells a notebook of the request that opened it."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the server's own layers added: see `request_guard`."""
        ...


def visitor_of(request: Request | None) -> str:
    """Return who opened the page; without medcot's server, a new visitor for every page."""
    known = request.meta.get("visitor") if request is not None else None
    return str(known or uuid4().hex)


def options_of(request: Request | None, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the server's start, or ``given``, those of marimo's command line."""
    known = request.meta.get("options") if request is not None else None
    return given if known is None else known
