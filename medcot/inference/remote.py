"""Asks a running ``medcot serve``, or another server with its interface, one question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from medcot.catalog import Message
from medcot.credentials import SERVE_TOKEN, serve_token
from medcot.errors import InputError, RunFailed, one_line
from medcot.inference.ask import StreamedReply
from medcot.network import is_loopback, require_network

CONNECT_S = 10
SILENCE_S = 600
"""Seconds that a server may say nothing, such as while it answers others."""


def ask_server(
    url: str, question: str, max_new_tokens: int | None = None
) -> Iterator[StreamedReply]:
    """Yield the reply of the server at ``url`` as it grows; the last one is the whole reply.

    Raises:
        InputError: The question is empty, there is no such server, or it refuses.
        RunFailed: The answer broke off.
    """
    if not question.strip():
        raise InputError("QUESTION", Message("error_empty_text"), Message("needs_question"))
    address = read_address(url)
    require_network("--server", address)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_new_tokens is not None:
        body["max_tokens"] = max_new_tokens
    yield from _grow(_events(address, body))


def read_address(url: str) -> str:
    """Return the address of the chat, from that of a server with or without ``/v1``.

    Raises:
        InputError: It is no address.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
            path = parts.path.rstrip("/").removesuffix("/v1")
            return f"{parts.scheme}://{parts.netloc}{path}/v1/chat/completions"
    except ValueError:
        pass
    raise InputError(f"--server {url}", "it is no address", "expected http://127.0.0.1:8000")


def _grow(events: Iterator[dict[str, Any]]) -> Iterator[StreamedReply]:
    thought, answer, ending, tokens = "", "", "", 0

    def reply(*, finished: bool) -> StreamedReply:
        return StreamedReply(thought, answer, bool(answer), finished, tokens, tokens)

    for event in events:
        tokens = int((event.get("usage") or {}).get("completion_tokens") or tokens)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            thought += delta.get("reasoning_content") or ""
            answer += delta.get("content") or ""
            ending = choice.get("finish_reason") or ending
        yield reply(finished=True)
    if not ending:
        raise RunFailed("ask", Message("ask_broke_off"), Message("needs_ask_again"))
    yield reply(finished=ending != "length")


def _events(address: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import httpx

    token = serve_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    where = f"--server {address.removesuffix('/v1/chat/completions')}"
    near = is_loopback(urlsplit(address).hostname or "")
    limits = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    try:
        with (
            # A proxy for the network is none for this machine.
            httpx.Client(timeout=limits, trust_env=not near) as client,
            client.stream("POST", address, json=body, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise _refused(where, response.status_code, response.read())
            for line in response.iter_lines():
                content = line.removeprefix("data:").strip()
                if line.startswith("data:") and content != "[DONE]":
                    yield _read_event(content)
    except httpx.ConnectError:
        needs = "start it: medcot serve"
        raise InputError(where, "nothing answers there", needs) from None
    except httpx.HTTPError as error:
        raise RunFailed(
            "ask",
            Message(
                "ask_server_failed", {"why": one_line(f"{type(error).__name__}: {error}", 200)}
            ),
            Message("needs_ask_again"),
        ) from None


def _read_event(content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "error" in found:
        raise RunFailed(
            "ask",
            Message("ask_server_failed", {"why": one_line(content, 200)}),
            Message("needs_ask_again"),
        )
    return found


def _refused(where: str, status: int, content: bytes) -> InputError:
    if status == 401:
        needs = f"set {SERVE_TOKEN} to the token that medcot serve told"
        return InputError(where, "it does not accept the token", needs)
    try:
        why = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        why = content.decode(errors="replace")
    return InputError(where, f"status {status}: {one_line(str(why))}", "ask something else")
