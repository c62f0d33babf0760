"""Normalises texts for comparison and finds text that is unfit to train on or to score."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from medcot.data.prompts import CLOSE, OPEN

_FOLDED = {code: " " for code in range(0x3100) if unicodedata.category(chr(code))[0] in ("P", "Z")}
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
"""Chinese characters, for a class of a regular expression."""

_BESIDE_HAN = re.compile(rf"(?<=[{HAN}]) | (?=[{HAN}])")

# Two-byte UTF-8 read as Latin-1 (Ã©, but not the end of «MAÇÃ»), typographic signs read as
# Windows-1252 (â€™), a byte order mark or U+FFFD read so, UTF-8 read as GBK, and Chinese read as
# Windows-1252: at least two characters of it, because one such triple also occurs in French (é…”).
_CP1252 = r"[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MISREAD = r"Â[\x80-\xbf]|Ã[\x80-\xba\xbc-\xbf]|â€|ï»¿|ï¿½|锟斤拷|(?:[ä-é]" + _CP1252 + "{2}){2}"
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
# What chats write around turns and thoughts: <|im_start|>, <|channel|>, <start_of_turn>.
_MARK = r"<[|｜](?=\D)[^\s<>|｜]{1,40}[|｜]>|<(?:start|end)_of_turn>"
_BROKEN = r"[\ufffd\ud800-\udfff]"

# One character class scans several times faster than the alternatives of _UNFIT, which are tried
# only from the first suspicious character on.
_SUSPICIOUS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ud800-\udfff<ÂÃâïä-é锟]")
_UNFIT = re.compile(
    rf"(?P<misread>{_MISREAD})|(?P<control>{_CONTROL})|(?P<broken>{_BROKEN})"
    rf"|(?P<tag>{OPEN}|{CLOSE})|(?P<mark>{_MARK})"
)


class Flaw(NamedTuple):
    """A defect of a text, in words that a terminal can print, and what is expected instead."""

    got: str
    needs: str


def normalise(text: str) -> str:
    """Return the form in which two questions are compared.

    NFKC, casefolded, with every run of whitespace and punctuation as one space, and none next to
    a Chinese character. Signs that carry meaning (+ < > = °) stay.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    folded = " ".join(plain.translate(_FOLDED).split())
    return folded if folded.isascii() else _BESIDE_HAN.sub("", folded)


def find_flaw(text: str) -> Flaw | None:
    """Return the first thing in ``text`` that must not reach a tokenizer, or None."""
    suspect = _SUSPICIOUS.search(text)
    found = _UNFIT.search(text, suspect.start()) if suspect else None
    if found is None:
        return None
    where = f"at character {found.start() + 1}"
    code = ord(found[0][0])
    match found.lastgroup:
        case "tag":
            return Flaw(f"the tag {found[0]} {where}", "text without reasoning tags")
        case "mark":
            return Flaw(f"the mark {found[0]} {where}", "text without the marks of a chat")
        case "control":
            return Flaw(f"control character U+{code:04X} {where}", "plain text")
        case "misread":
            return Flaw(f"{found[0]!a} {where}: UTF-8 read as another encoding", "UTF-8 text")
        case _:
            return _explain_code(code, where)


def _explain_code(code: int, where: str) -> Flaw:
    if 0xDC80 <= code <= 0xDCFF:
        return Flaw(f"byte 0x{code - 0xDC00:02x} {where}, which is not UTF-8", "UTF-8 text")
    if code == 0xFFFD:
        return Flaw(f"replacement character U+FFFD {where}: lost in decoding", "UTF-8 text")
    return Flaw(f"lone surrogate U+{code:04X} {where}", "UTF-8 text")


def printable(text: str) -> str:
    """Escape everything in ``text`` that a terminal or a UTF-8 stream cannot show."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
