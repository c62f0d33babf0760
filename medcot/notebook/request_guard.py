"""Decides which requests reach the notebook: an ASGI layer around marimo's application.

Browsers let any page send requests and open websockets to any address, and a site's name can be
made to point here (DNS rebinding). So ``Host`` has to be a name of this server and ``Origin`` has
to be this server; see ``SECURITY.md``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from medcot.catalog import say

LARGEST_BODY = 2**20
"""Bytes of one request. The largest that the page sends is a question of some thousand letters."""

LOGIN = "/login"
WRONG_TOKEN_S = 1.0
"""Seconds until a wrong token is answered, against guessing."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Browsers keep to these for whatever this server sends: no page frames it, none learns its address.
_PROTECTIONS = (
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_LOGIN_PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>medcot</title></head>
<body style="font: 1rem sans-serif; margin: 4rem auto; max-width: 24rem">
<form method="post" action="{action}"><p>{asked}</p><p>{refused}</p>
<p><input type="password" name="token" autofocus autocomplete="current-password">
<button>OK</button></p></form></body></html>
"""


class RequestGuard:
    """Passes on requests for this server's names, from its own pages, of visitors it has let in.

    A visitor is recognised by a signed cookie that no script can read and that no other site's page
    makes the browser send. Without a token, whoever opens the page gets one; with a token, whoever
    types it. The notebook finds the visitor and ``options`` in its request's ``meta``.
    """

    def __init__(
        self,
        application: Application,
        *,
        names: Collection[str] = (),
        token: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Guard ``application``.

        Args:
            application: What is served to those who are let in.
            names: Values of ``Host`` (``NAME`` or ``NAME:PORT``) that are answered, besides
                loopback's and the address that the connection came in on, with the server's port.
            token: What a visitor has to type; None to let everybody in.
            options: The options of the notebook's start.
        """
        self._application = application
        self._names = frozenset(name.lower() for name in names)
        self._token, self._options = token, dict(options or {})
        self._key = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it before the application learns of it."""
        if scope["type"] not in ("http", "websocket"):
            return await self._application(scope, receive, send)
        if refusal := self._find_refusal(scope):
            return await _refuse(scope, receive, send, *refusal)
        visitor = self._visitor(scope)
        if scope["type"] == "http" and scope["path"] == LOGIN and self._token is not None:
            return await self._log_in(scope, receive, send)
        headers = list(_PROTECTIONS)
        if visitor is None:
            if self._token is not None:
                return await self._send_to_login(scope, receive, send)
            visitor = secrets.token_hex(16)
            # Only the page's own address gives a cookie: what it loads at once would give several.
            if scope["path"] == "/":
                headers.append((b"set-cookie", self._cookie(scope, visitor)))
        scope["meta"] = {"visitor": visitor, "options": self._options}
        try:
            return await self._application(scope, _bounded(receive), _with_headers(send, headers))
        except RequestTooLarge:
            return await _refuse(scope, receive, send, 413, "error_body_size")

    def _find_refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the catalog's key of why the request is refused, if it is."""
        hosts, origins = _header(scope, b"host"), _header(scope, b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in self._served_hosts(scope):
            return 421, "error_host"
        if any(not _is_same(origin, hosts[0]) for origin in origins):
            return 403, "error_origin"
        if _is_foreign_fetch(scope):
            return 403, "error_origin"
        declared = _header(scope, b"content-length")
        if declared and not (declared[0].isdecimal() and int(declared[0][:20]) <= LARGEST_BODY):
            return 413, "error_body_size"
        return None

    def _served_hosts(self, scope: Scope) -> frozenset[str]:
        address, port = scope.get("server") or ("", None)
        # An IPv4 connection to a socket for both has its address in IPv6's notation.
        reached = str(address).removeprefix("::ffff:")
        reached = f"[{reached}]" if ":" in reached else reached
        own = {f"{name}:{port}" for name in (*LOOPBACK_NAMES, reached)}
        if port == 80:
            own |= {*LOOPBACK_NAMES, reached}
        return self._names | own

    def _cookie_name(self, scope: Scope) -> str:
        # Cookies are shared by all ports of a host.
        return f"medcot-{(scope.get('server') or ('', 0))[1]}"

    def _cookie(self, scope: Scope, visitor: str) -> bytes:
        secure = "; Secure" if scope.get("scheme") in ("https", "wss") else ""
        value = f"{visitor}.{self._signature(visitor)}"
        rest = f"Path=/; HttpOnly; SameSite=Strict{secure}"
        return f"{self._cookie_name(scope)}={value}; {rest}".encode()

    def _signature(self, visitor: str) -> str:
        return hmac.new(self._key, visitor.encode(), hashlib.sha256).hexdigest()

    def _visitor(self, scope: Scope) -> str | None:
        """Return the visitor whom this server gave the request's cookie, if it has one."""
        for header in _header(scope, b"cookie"):
            try:
                found = SimpleCookie(header).get(self._cookie_name(scope))
            except CookieError:
                continue
            visitor, _, signature = found.value.partition(".") if found else ("", "", "")
            if visitor and hmac.compare_digest(
                signature.encode("latin-1", "replace"), self._signature(visitor).encode()
            ):
                return visitor
        return None

    async def _send_to_login(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/":
            return await _answer(send, 303, "", (b"location", _login_path(scope)))
        return await _refuse(scope, receive, send, 401, "error_token")

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = None
        if scope["method"] == "POST":
            try:
                body = await _read(_bounded(receive))
            except RequestTooLarge:
                return await _refuse(scope, receive, send, 413, "error_body_size")
            given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
            if _is_equal(given, self._token or ""):
                cookie = self._cookie(scope, secrets.token_hex(16))
                place = (scope.get("root_path") or "").encode() + b"/"
                return await _answer(send, 303, "", (b"location", place), (b"set-cookie", cookie))
            await asyncio.sleep(WRONG_TOKEN_S)
        page = _LOGIN_PAGE.format(
            action=escape(_login_path(scope).decode()),
            asked=_in_both_languages("token_asked"),
            refused="" if given is None else _in_both_languages("error_wrong_token"),
        )
        kind = (b"content-type", b"text/html; charset=utf-8")
        return await _answer(send, 200 if given is None else 401, page, kind)


class RequestTooLarge(Exception):
    """Ends a request whose body is larger than ``LARGEST_BODY``."""


def _bounded(receive: Receive) -> Receive:
    """Return ``receive`` that raises once it has passed on more than ``LARGEST_BODY`` bytes."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        if message["type"] == "http.request":
            received += len(message.get("body", b""))
            if received > LARGEST_BODY:
                raise RequestTooLarge
        return message

    return receive_bounded


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    replaced = {name for name, _ in _PROTECTIONS}

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [one for one in message.get("headers", ()) if one[0].lower() not in replaced]
            message["headers"] = [*kept, *headers]
        await send(message)

    return send_with_headers


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, key: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        # Before it is accepted: the server answers 403, and nothing is sent over it.
        return await send({"type": "websocket.close", "code": 1008, "reason": say(key, "en")})
    return await _answer(send, status, say(key, "en") + "\n")


async def _answer(send: Send, status: int, body: str, *headers: tuple[bytes, bytes]) -> None:
    named = {name for name, _ in headers}
    if b"content-type" not in named:
        headers = (*headers, (b"content-type", b"text/plain; charset=utf-8"))
    sent = [*_PROTECTIONS, (b"cache-control", b"no-store"), (b"connection", b"close"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body.encode()})


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_same(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _is_foreign_fetch(scope: Scope) -> bool:
    """Return whether another site's page loads this as its image, script or frame.

    Browsers send no ``Origin`` then. A link that somebody follows is no such request.
    """
    site, mode, target = (
        (_header(scope, name) or [""])[0]
        for name in (b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest")
    )
    if site in ("", "none", "same-origin"):
        return False
    return not (mode == "navigate" and target == "document" and scope.get("method") == "GET")


def _is_equal(given: str, expected: str) -> bool:
    """Compare in a time that tells neither how many letters are right nor how many there are."""
    digests = (
        hashlib.sha256(value.encode("utf-8", "replace")).digest() for value in (given, expected)
    )
    return hmac.compare_digest(*digests)


def _in_both_languages(key: str) -> str:
    return f"{escape(say(key, 'en'))}<br>{escape(say(key, 'zh'))}"


def _login_path(scope: Scope) -> bytes:
    return ((scope.get("root_path") or "") + LOGIN).encode()
