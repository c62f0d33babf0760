"""A JSON list read element by element, so that its file may be larger than memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK = 1 << 20
"""Bytes read at a time, at first; an element that is longer doubles it."""

NEAR_END = 64
"""What ends or fails so near to the end of what was read may do so because it is cut there."""

_SPACE = re.compile(r"[ \t\n\r]*")


class BrokenList(Exception):
    """What is wrong with the text, from ``line`` on; nothing after it can be read."""

    def __init__(
        self, line: int, got: str, needs: str = "expected one JSON list of objects"
    ) -> None:
        super().__init__(got)
        self.line, self.got, self.needs = line, got, needs


def read_elements(file: BinaryIO) -> Iterator[Any]:
    """The elements of the list that ``file`` holds; bytes that are not UTF-8 become surrogates.

    Raises:
        BrokenList: no list, or broken JSON. The elements before it have been given by then.
    """
    text = _Text(file)
    if text.peek() != "[":
        raise _no_list(text)
    text.skip()
    if text.peek() == "]":
        text.skip()
    else:
        yield text.value()
        while (sign := text.peek()) == ",":
            text.skip()
            yield text.value()
        if sign != "]":
            raise text.broken("Expecting ',' delimiter")
        text.skip()
    if text.peek():
        raise _extra_data(text)


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different.

    Raises:
        ValueError: a key is there twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} twice")
    return values


def trouble(error: Exception) -> str:
    """What a JSON parser's exception says, with the column where it knows it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class _Text:
    """The text of a file from where reading stands; what was read is forgotten."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._parser = json.JSONDecoder(object_pairs_hook=once_each)
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the first character that is still here
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read(CHUNK)

    def skip(self) -> None:
        """Go past the character that was peeked at."""
        self._at += 1

    def value(self) -> Any:
        """The value that comes next."""
        self.peek()
        more = CHUNK
        while True:
            try:
                found, end = self._parser.raw_decode(self._text, self._at)
                # "1." is a number and a rest until the next digit has been read.
                if end < len(self._text) - NEAR_END or self._ended:
                    self._at = end
                    return found
            except json.JSONDecodeError as error:
                if self._ended or self._is_whole(error):
                    raise self.broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise BrokenList(
                    self._place(self._at)[0], f"broken JSON ({trouble(error)})"
                ) from None
            self._read(more)
            more *= 2

    def broken(self, message: str, at: int | None = None, needs: str = "") -> BrokenList:
        """The refusal of what stands at ``at``, or here."""
        line, column = self._place(self._at if at is None else at)
        got = f"broken JSON ({message} at column {column})"
        return BrokenList(line, got, needs) if needs else BrokenList(line, got)

    def _is_whole(self, error: json.JSONDecodeError) -> bool:
        """Whether the error is in the text rather than in its being cut."""
        cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - NEAR_END
        return not cut

    def _place(self, at: int) -> tuple[int, int]:
        line = self._line + self._text.count("\n", 0, at)
        start = self._text.rfind("\n", 0, at)
        return line, at - start if start >= 0 else self._column + at

    def _read(self, size: int) -> None:
        self._line, self._column = self._place(self._at)
        raw = self._file.read(size)
        self._ended = not raw
        self._text = self._text[self._at :] + self._decoder.decode(raw, final=self._ended)
        self._at = 0


def _no_list(text: _Text) -> BrokenList:
    """Another value than a list, or several: JSON Lines under the wrong name."""
    found = text.value()
    if text.peek():
        return _extra_data(text)
    names = {dict: "object", str: "text", bool: "true/false", type(None): "null"}
    return BrokenList(1, f"JSON {names.get(type(found), 'number')}")


def _extra_data(text: _Text) -> BrokenList:
    return text.broken(
        "Extra data", needs="expected one JSON list of objects (JSON Lines belong in a .jsonl file)"
    )
