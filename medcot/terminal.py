"""Shows text on a terminal: whatever it holds and whatever the terminal can show.

Texts come from data, files, models and other libraries. They must neither steer the terminal nor
end a run because its encoding lacks a character.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata

LONGEST_LINE = 2000
"""Characters of a line that is shown; the rest is cut."""

_NEAREST = "medcot-nearest"
"""The name of :func:`_nearest` as an error handler of codecs."""

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, and C1: they steer terminals
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the order in which text is shown
    "\u2028\u2029\ufeff\ud800-\udfff\U000e0000-\U000e007f]"  # break lines, or cannot be seen
)

_LIKE = {
    "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "·": ".", "•": "*", "→": "->",
    "≤": "<=", "≥": ">=", "±": "+/-", "“": '"', "”": '"', "‘": "'", "’": "'",
    "，": ", ", "。": ". ", "；": "; ", "：": ": ", "（": " (", "）": ") ",
    "━": "=", "╸": "=", "╺": "-",
}  # fmt: skip
"""What is shown for signs of our own sentences where an encoding lacks them: a minus sign that
became a question mark would change a number."""


def escape_controls(text: str) -> str:
    r"""Escape what steers a terminal, reorders text or cannot be encoded.

    Line feeds, tabs and every visible character stay. The escapes, such as ``\u202e``, are JSON's.
    """
    return _UNSAFE.sub(_escaped, text)


def show_line(line: object) -> str:
    """Return one line, or several, safe for a terminal and none longer than ``LONGEST_LINE``."""
    return "\n".join(map(_cut, escape_controls(str(line)).split("\n")))


def say(line: object = "", *, err: bool = False) -> None:
    """Print a line, or several, to stdout or stderr."""
    write(f"{show_line(line)}\n", err=err)


def write(text: str, *, err: bool = False) -> None:
    """Write text as it comes, such as a growing answer, and flush."""
    tolerate_encodings()
    stream = sys.stderr if err else sys.stdout
    stream.write(escape_controls(text))
    stream.flush()


def write_json(value: object) -> None:
    """Print ``value`` as JSON, with escapes where stdout lacks a character."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value, indent=2, default=str)
    write(f"{text}\n")


def tolerate_encodings() -> None:
    """Let stdout and stderr show something like the characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors != _NEAREST:
            reconfigure(errors=_NEAREST)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(rf"\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """Return what is shown in place of characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_like, missing)), error.end


def _like(char: str) -> str:
    plain = _LIKE.get(char) or unicodedata.normalize("NFKD", char)
    return "".join(one for one in plain if one.isascii()) or "?"


codecs.register_error(_NEAREST, _nearest)
