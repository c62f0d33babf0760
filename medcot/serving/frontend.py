"""The layer before the model server: token, prompt of the run, thought apart from the answer.

An ASGI application with the two paths of OpenAI's interface that a chat needs. It holds no model.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medcot.data.prompts import parse, parse_growing
from medcot.errors import one_line
from medcot.records import Reply
from medcot.runs.environment import NOT_MEDICAL_ADVICE
from medcot.serving.access import Access
from medcot.serving.backends import Backend
from medcot.serving.chat_request import ChatRequest, Refusal, read_chat_request
from medcot.serving.target import Target

if TYPE_CHECKING:
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

LARGEST_BODY = 1 << 20
"""Bytes of a request."""
SLOWEST_BODY_S = 30
"""Seconds in which a request must have arrived."""
MOST_AT_ONCE = 16
"""Requests that are answered or wait for it; the model server takes them in turn or together."""

PROMPT_HEADER = "x-medcot-prompt"
"""Says ``measured`` where the run measured such prompts, single questions, else ``unmeasured``."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A reply as far as it is generated; ``ending`` and ``usage`` come with the last one."""

    reply: Reply
    ending: str | None = None
    usage: Mapping[str, int] | None = None


@dataclass
class Frontend:
    """What the paths share: who is answered, with which prompt, by which server."""

    target: Target
    access: Access
    backend: Backend
    client: httpx.AsyncClient
    active: int = 0

    async def answer(
        self, request: ChatRequest, prompt: str, ids: list[int], limit: int
    ) -> AsyncGenerator[Piece]:
        """Yield the growing reply of the model server.

        Raises:
            Refusal: The server does not answer.
        """
        import httpx

        body = self.backend.write_request(request, prompt, ids, limit)
        text, ending, usage = "", None, None
        try:
            async with self.client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise _server_failed((await response.aread()).decode(errors="replace"))
                async for found in _events(response.aiter_lines()):
                    usage = found.get("usage") or usage
                    for choice in found.get("choices") or ():
                        text += choice.get("text") or ""
                        ending = choice.get("finish_reason") or ending
                    yield Piece(parse_growing(text, thinks=self.target.config.thinks))
        except httpx.HTTPError as error:
            raise _server_failed(f"{type(error).__name__}: {error}") from error
        if ending is None:
            raise _server_failed("the answer broke off")
        reply = parse(text, thinks=self.target.config.thinks)
        yield Piece(reply, "length" if ending == "length" else "stop", usage)


def make_application(target: Target, access: Access, backend: Backend) -> Starlette:
    """Return the application that clients talk to."""
    import httpx
    from starlette.applications import Starlette
    from starlette.routing import Route

    transport = httpx.AsyncHTTPTransport(uds=str(backend.socket))
    client = httpx.AsyncClient(
        transport=transport,
        base_url="http://model",
        # A long answer, or one that waits for another, is no fault.
        timeout=httpx.Timeout(None, connect=10),
        trust_env=False,
    )
    front = Frontend(target, access, backend, client)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with client:
            yield

    routes = [
        Route("/health", _health),
        Route("/v1/models", _guarded(front, _models)),
        Route("/v1/models/{name:path}", _guarded(front, _model)),
        Route("/v1/chat/completions", _guarded(front, _chat), methods=["POST"]),
        Route("/{rest:path}", _guarded(front, _nothing), methods=["GET", "POST", "PUT", "DELETE"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


Handler = Callable[[Frontend, "Request"], Any]


def _guarded(front: Frontend, handler: Handler) -> Callable[[Request], Any]:
    """Return an endpoint that asks for the token first and turns refusals into responses."""

    async def endpoint(request: Request) -> Response:
        try:
            if not front.access.allows(request.headers.get("authorization", "")):
                message = "This server needs its token as API key."
                raise Refusal(401, message, code="invalid_api_key")
            return await handler(front, request)
        except Refusal as refusal:
            return _refuse(refusal)

    return endpoint


def _refuse(refusal: Refusal) -> Response:
    from starlette.responses import JSONResponse

    headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else None
    return JSONResponse(refusal.to_json(), refusal.status, headers)


async def _health(_: Request) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"status": "ok"})


async def _models(front: Frontend, _: Request) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"object": "list", "data": [_describe(front)]})


async def _model(front: Frontend, request: Request) -> Response:
    from starlette.responses import JSONResponse

    name = request.path_params["name"]
    if name != front.target.name:
        message = f"There is no model {name!r} here; this server has {front.target.name!r}."
        raise Refusal(404, message, code="model_not_found", parameter="model")
    return JSONResponse(_describe(front))


def _describe(front: Frontend) -> dict[str, Any]:
    return {"id": front.target.name, "object": "model", "created": 0, "owned_by": "medcot"}


async def _nothing(_: Frontend, request: Request) -> Response:
    message = f"{request.method} {request.url.path} is not offered; use POST /v1/chat/completions."
    raise Refusal(404, message, code="unknown_url")


async def _chat(front: Frontend, http: Request) -> Response:
    request = read_chat_request(await _read_body(http), front.target.name)
    limit = request.max_tokens or front.target.config.max_new_tokens
    prompt, measured = front.target.write_prompt(request.turns)
    ids = front.target.encode(prompt, limit)
    if front.active >= MOST_AT_ONCE:
        raise Refusal(503, f"{MOST_AT_ONCE} requests are being answered; try later.", code="busy")
    pieces = _counted(front, front.answer(request, prompt, ids, limit))
    headers = {
        PROMPT_HEADER: "measured" if measured else "unmeasured",
        "x-medcot-note": NOT_MEDICAL_ADVICE,
        "cache-control": "no-store",
    }
    frame = Frame(front.target.name, len(ids))
    if request.stream:
        return await _stream(frame, pieces, headers, usage=request.include_usage)
    return await _whole(frame, pieces, headers, http)


async def _counted(front: Frontend, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    front.active += 1
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
    finally:
        front.active -= 1


async def _read_body(request: Request) -> bytes:
    """Return the body, as long as it is neither large nor slow.

    Raises:
        Refusal: It is.
    """
    content = bytearray()

    async def read() -> None:
        async for part in request.stream():
            content.extend(part)
            if len(content) > LARGEST_BODY:
                message = f"The request is larger than {LARGEST_BODY:,} bytes."
                raise Refusal(413, message, code="request_too_large")

    try:
        await asyncio.wait_for(read(), SLOWEST_BODY_S)
    except TimeoutError:
        message = f"The request did not arrive within {SLOWEST_BODY_S} seconds."
        raise Refusal(408, message, code="request_timeout") from None
    return bytes(content)


async def _whole(
    frame: Frame, pieces: AsyncGenerator[Piece], headers: Mapping[str, str], http: Request
) -> Response:
    """Wait for the whole reply, but not for a client that has gone."""
    from starlette.responses import JSONResponse, Response

    async def collect() -> Piece:
        async with aclosing(pieces):
            return [piece async for piece in pieces][-1]

    async def wait_for_hangup() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    answer, gone = asyncio.create_task(collect()), asyncio.create_task(wait_for_hangup())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return JSONResponse(frame.whole(answer.result()), headers=dict(headers))
        return Response(status_code=499)
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _stream(
    frame: Frame, pieces: AsyncGenerator[Piece], headers: Mapping[str, str], *, usage: bool
) -> Response:
    """Stream the reply once its first piece is there: until then a fault has its status."""
    from starlette.responses import StreamingResponse

    first = await anext(pieces)

    async def events() -> AsyncIterator[bytes]:
        shown = Reply("", "", closed=False)
        async with aclosing(pieces):
            try:
                yield _event(frame.chunk({"role": "assistant", "content": ""}))
                async for piece in _chain(first, pieces):
                    for delta in _deltas(shown, piece.reply):
                        yield _event(frame.chunk(delta))
                    shown = piece.reply
                    if piece.ending is not None:
                        yield _event(frame.chunk({}, piece.ending))
                        if usage:
                            yield _event(frame.usage_chunk(piece))
                yield b"data: [DONE]\n\n"
            except Refusal as refusal:
                yield _event(refusal.to_json())

    return StreamingResponse(events(), headers=dict(headers), media_type="text/event-stream")


async def _chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def _deltas(shown: Reply, grown: Reply) -> list[dict[str, str]]:
    """Return what is new in a reply: of the thought, of the answer."""
    new = {
        "reasoning_content": grown.thought[len(shown.thought) :],
        "content": grown.answer[len(shown.answer) :],
    }
    return [{name: text} for name, text in new.items() if text]


class Frame:
    """What surrounds the texts of one response."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._same = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens = prompt_tokens

    def chunk(self, delta: Mapping[str, str], ending: str | None = None) -> dict[str, Any]:
        """Return one event of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": ending}
        return {**self._same, "object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the event with the numbers of tokens."""
        return {
            **self._same, "object": "chat.completion.chunk", "choices": [],
            "usage": self._usage(piece),
        }  # fmt: skip

    def whole(self, piece: Piece) -> dict[str, Any]:
        """Return a whole reply."""
        message = {
            "role": "assistant",
            "content": piece.reply.answer,
            "reasoning_content": piece.reply.thought,
            "refusal": None,
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": piece.ending}
        return {
            **self._same, "object": "chat.completion", "choices": [choice],
            "usage": self._usage(piece),
        }  # fmt: skip

    def _usage(self, piece: Piece) -> dict[str, int]:
        made = int((piece.usage or {}).get("completion_tokens") or 0)
        asked = self._prompt_tokens
        return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a model server's stream.

    Raises:
        Refusal: It reports an error.
    """
    async for line in lines:
        content = line.removeprefix("data:").strip()
        if not line.startswith("data:") or content == "[DONE]":
            continue
        try:
            found = json.loads(content)
        except ValueError:
            raise _server_failed(content) from None
        if not isinstance(found, dict) or "error" in found:
            raise _server_failed(content)
        yield found


def _server_failed(why: str) -> Refusal:
    """Log what a model server said; clients learn only that it failed."""
    log.error("the model server failed: %s", one_line(why, 400))
    return Refusal(
        502, "The model server failed; the terminal of medcot serve says why.", code="server_failed"
    )
