"""Reads a request for a chat completion; whatever the run's prompt cannot carry is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from medcot.errors import one_line
from medcot.records import Role, Turn

MOST_TURNS = 200
MOST_TOKENS = 32_768
"""Longest answer that a request may ask for; ``medcot ask`` has the same limit."""

_ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
}  # fmt: skip

_UNSUPPORTED: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "stop": ([], ""),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
}
"""Parameters that would change the answer and are not supported, with the values that do not."""


class Refusal(Exception):
    """Report a request that gets no answer, as OpenAI's clients expect it.

    ``code`` and ``parameter`` are for programs, the message is for people.
    """

    def __init__(self, status: int, message: str, *, code: str, parameter: str = "") -> None:
        self.status, self.code, self.parameter = status, code, parameter
        super().__init__(one_line(message, 400))

    def to_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.parameter or None,
                "code": self.code,
            }
        }


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that can be answered. ``max_tokens`` is None for the run's own limit."""

    turns: tuple[Turn, ...]
    stream: bool
    include_usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float | None
    seed: int | None

    @property
    def question(self) -> str:
        """Return the last message, which is the user's."""
        return self.turns[-1].content


def read_chat_request(content: bytes, model: str) -> ChatRequest:
    """Read the body of a request for the served ``model``.

    Raises:
        Refusal: It is damaged, of another model, or asks for something that is not supported.
    """
    body = _read_object(content)
    asked = body.get("model")
    if asked not in (None, "", model):
        message = f"There is no model {asked!r} here; this server has {model!r}."
        raise Refusal(404, message, code="model_not_found", parameter="model")
    for name, harmless in _UNSUPPORTED.items():
        if body.get(name) is not None and body[name] not in harmless:
            raise _wrong(name, f"{name} is not supported here; leave it out.", "unsupported_value")
    limits = [body[one] for one in ("max_completion_tokens", "max_tokens") if body.get(one)]
    options = body.get("stream_options")
    return ChatRequest(
        turns=_read_turns(body.get("messages")),
        stream=_read_flag(body, "stream"),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        max_tokens=_read_whole("max_tokens", limits[0], 1, MOST_TOKENS) if limits else None,
        temperature=_read_number(body, "temperature", 0.0, 2.0) or 0.0,
        top_p=_read_number(body, "top_p", 0.0, 1.0),
        seed=None if (seed := body.get("seed")) is None else _read_whole("seed", seed, 0, 2**32),
    )


def _read_object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refusal(400, "The body is not a JSON object.", code="invalid_json")
    return cast("dict[str, Any]", body)


def _read_turns(messages: Any) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "messages is empty; it needs the user's question.")
    if len(messages) > MOST_TURNS:
        raise _wrong("messages", f"messages has {len(messages):,} turns; at most {MOST_TURNS}.")
    turns = [_read_turn(one, at) for at, one in enumerate(cast("list[Any]", messages))]
    # Clients send an empty system prompt where the user has set none.
    kept = tuple(one for one in turns if one.role != "system" or one.content.strip())
    if not kept or kept[-1].role != "user":
        raise _wrong("messages", "The last message is not the user's.")
    if not kept[-1].content.strip():
        raise _wrong("messages", "The last message is empty; it needs the user's question.")
    return kept


def _read_turn(message: Any, at: int) -> Turn:
    where = f"messages[{at}]"
    if not isinstance(message, dict):
        raise _wrong(where, f"{where} is not an object with role and content.")
    found = cast("dict[str, Any]", message)
    role = found.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", f"{where} has the role {role!r}, which is not supported.")
    return Turn(_ROLES[role], _read_content(found.get("content"), f"{where}.content"))


def _read_content(content: Any, where: str) -> str:
    """Return a message's text, which comes whole or in parts."""
    if isinstance(content, str):
        return _encodable(content, where)
    if isinstance(content, list):
        parts = [cast("dict[str, Any]", one) for one in content if isinstance(one, dict)]
        texts = [one.get("text") for one in parts if one.get("type") == "text"]
        if len(texts) == len(content) and all(isinstance(one, str) for one in texts):
            return _encodable("\n".join(map(str, texts)), where)
    raise _wrong(where, f"{where} is not text; the model reads nothing else.")


def _encodable(text: str, where: str) -> str:
    """Refuse half a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(where, f"{where} holds half a surrogate pair, which is no text.") from None
    return text


def _read_flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, f"{name} is {value!r}; expected true or false.")
    return bool(value)


def _read_whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"{name} is {value!r}; expected a whole number from {low} to {high}.")
    return value


def _read_number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(name, f"{name} is {value!r}; expected a number from {low:g} to {high:g}.")
    return float(value)


def _wrong(parameter: str, message: str, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, code=code, parameter=parameter)
