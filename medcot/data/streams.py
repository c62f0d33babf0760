"""Opens data files as bytes, also compressed ones, and finds the encoding of a table's text.

What a compressed file unpacks to is bounded: a file may be a bomb, some kilobytes of gigabytes.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from medcot.data.arrow import load_arrow
from medcot.data.parquet_limits import HIGHEST_RATIO
from medcot.data.text import HAN
from medcot.errors import InputError, one_line

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed files, and what their content is called."""

PACKABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""Formats that are read from compressed files, too."""

LARGEST_UNPACKED = 1 << 28
"""Bytes that any compressed file may unpack to. More than that may be at most ``HIGHEST_RATIO``
times as large as the file."""

BLOCK = 1 << 20
"""Bytes read at a time, and bytes of the sample by which an encoding is told."""


def format_of(name: str | PurePath) -> str:
    """Return the suffix that tells a file's format, in small letters: ``.csv`` for ``a.csv.gz``."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return suffix
    inner = PurePath(path.stem).suffix.lower()
    return inner if inner in PACKABLE else suffix


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading; a compressed one gives what it unpacks to.

    Raises:
        OSError: it cannot be read. InputError: while reading, if compressed data are damaged or
            unpack to far more than texts do.
    """
    kind = COMPRESSED.get(path.suffix.lower(), "")
    if not kind:
        return path.open("rb")
    return io.BufferedReader(_Unpacked(path, kind), BLOCK)


class _Unpacked(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.most = max(LARGEST_UNPACKED, HIGHEST_RATIO * path.stat().st_size)
        self.size = 0
        self.file: Any = gzip.GzipFile(path) if kind == "gzip" else _open_zstd(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's size; 0 at the end."""
        try:
            data = self.file.read(len(buffer))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            got = f"found damaged {self.kind} data ({one_line(str(error), 80)})"
            raise InputError(str(self.path), got, "compress the file again") from None
        self.size += len(data)
        if self.size > self.most:
            got = f"found a file that unpacks to over {self.most:,} bytes"
            needs = f"expected texts, at most {HIGHEST_RATIO} times as large; unpack it yourself"
            raise InputError(str(self.path), got, needs)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self.file.close()
        super().close()


def _open_zstd(path: Path) -> Any:
    pa = load_arrow()
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def find_encoding(path: Path) -> str:
    """Return the encoding of a table: UTF-8, or one in which Excel saves.

    UTF-16 is told by its byte order mark, or by the zeros of a header in ASCII. Text that is not
    UTF-8 is Windows-1252 if its characters beyond ASCII mostly stand alone, as in European words,
    Mac OS Roman if only that gives words, or GB18030 if they come in pairs that are common Chinese
    characters. Anything else counts as UTF-8, whose wrong bytes are reported with their rows.
    """
    state = path.stat()
    return _find_encoding(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _find_encoding(path: Path, _size: int, _modified: int) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_bytes(path) as file:
        block = file.read(BLOCK)
        if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        for start, name in ((0, "utf-16-be"), (1, "utf-16-le")):
            zeros = block[start:64:2].count(0)
            if zeros and zeros >= _MOST * len(block[start:64:2]):
                return name
        while block:
            try:
                if not decoder.decode(block, final=len(block) < BLOCK).isascii():
                    return "utf-8"
            except UnicodeDecodeError:
                return _classify(block + file.read(BLOCK))
            block = file.read(BLOCK)
    return "utf-8"


_UTF_8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]+")
_CHINESE = re.compile(f"[\u2014-\u2026\u3000-\u303f{HAN}\uff00-\uffef]")
_EUROPEAN = re.compile("[\u00a0-\u024f\u02c6\u02dc\u2013-\u203a\u20ac\u2122]")
_COMMON_LEADS = frozenset((0xA1, 0xA3, *range(0xB0, 0xD8)))
"""First bytes of signs and of the 3,755 common characters in GB 2312. Cyrillic small letters, which
come in runs too, have others."""

_NO_WORD = re.compile(
    r"(?<=[^\W\d_])[\u00a1-\u00ac\u00ae-\u00bf\u02c6\u02dc\u2020-\u2022\u2030\u20ac\u2122"
    r"\u03c0\u2200-\u22ff\u25ca](?=[^\W\d_])"
    r"|(?<=[a-zß-öø-ÿ])[ŠŒŽŸÀ-ÖØ-Þ]"
)
"""What does not occur within a word: a sign between letters, and a capital after a small letter."""

_MOST = 0.8


def _classify(sample: bytes) -> str:
    runs = _HIGH.findall(sample)
    count = sum(map(len, runs))
    if sum(map(len, _UTF_8.findall(sample))) > 0.6 * count:
        return "utf-8"  # with some broken bytes
    if sum(len(run) == 1 for run in runs) >= _MOST * len(runs):
        spelt = (one for one in ("cp1252", "mac_roman") if _decodes(sample, one, _EUROPEAN))
        return next(spelt, "utf-8")
    pairs = [lead for run in runs for lead in run[: len(run) // 2 * 2 : 2]]
    common = sum(lead in _COMMON_LEADS for lead in pairs)
    if common >= _MOST * len(pairs) and _decodes(sample, "gb18030", _CHINESE):
        return "gb18030"
    return "utf-8"


def _decodes(sample: bytes, encoding: str, usual: re.Pattern[str]) -> bool:
    """Tell whether a sample decodes to characters that are mostly of a usual kind."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    others = [char for char in text if not char.isascii()]
    if usual is _EUROPEAN and len(_NO_WORD.findall(text)) > (1 - _MOST) / 2 * len(others):
        return False
    return sum(usual.match(char) is not None for char in others) >= _MOST * len(others)
