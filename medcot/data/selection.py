"""Which rows are trained on, as tokens: the first that neither leak nor are too long.

Of some thousands of rows the choice stays in the cache, under a key of all that it depends on.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Protocol

from medcot.config.schema import RunConfig
from medcot.data.case_store import Picked
from medcot.data.contamination import Leak, LeakFinder
from medcot.data.dataset import drop_overlong
from medcot.data.disk_cache import data_cache, find_entry, key_of, remove_entry, source_of
from medcot.data.prompts import render
from medcot.data.token_store import TokenRows
from medcot.data.tokenization import Encoded, chat_template, encode, encode_texts
from medcot.errors import InputError
from medcot.records import Case, Dropped, Prompt

ROWS_AT_ONCE = 1024

CACHED_FROM = 2_000
"""Rows from which on a choice goes to a file and into the cache; fewer are made in a second."""

CODE = (
    "data/arrow_file", "data/contamination", "data/dataset", "data/prompts", "data/selection",
    "data/text", "data/token_store", "data/tokenization",
)  # fmt: skip
"""The modules that decide what an entry holds."""

_PROBE = "Fever for 3 days, 体温 38.5 °C: β-lactam? \n\n</think>"


@dataclass(frozen=True, slots=True)
class Choice:
    """The rows to train on, and those left out before the last of them was found.

    ``note`` tells what was written to disk, "" where nothing was.
    """

    rows: Sequence[Encoded]
    dropped: tuple[Dropped, ...]
    leaks: tuple[Leak, ...]
    note: str = ""


class _Rows(Protocol):
    """Where chosen rows go."""

    def __len__(self) -> int: ...
    def extend(self, rows: Sequence[Encoded], /) -> None: ...


def choose_rows(
    cases: Picked,
    fingerprint: str,
    texts: Mapping[str, Sequence[tuple[str, str]]],
    config: RunConfig,
    tokenizer: Any,
) -> Choice:
    """The first ``config.samples`` of ``cases`` that may be trained on, as tokens.

    ``fingerprint`` is that of the data set that ``cases`` are picked from; ``texts`` are the
    evaluation's, set name to (id, question) pairs.

    Raises:
        InputError: the style needs a chat template, or a row spells the end token.
    """
    if min(config.samples, len(cases)) < CACHED_FROM:
        few: list[Encoded] = []
        dropped, leaks = _choose(cases, texts, config, tokenizer, few)
        return Choice(tuple(few), dropped, leaks)
    name = _name(cases, fingerprint, texts, config, tokenizer)
    return (_known(name) if name else None) or _make(cases, texts, config, tokenizer, name)


def _known(name: str) -> Choice | None:
    folder = find_entry(name)
    if folder is None:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        rows, facts = TokenRows.kept(folder)
        dropped = tuple(Dropped(**row) for row in facts["dropped"])
        return Choice(rows, dropped, tuple(Leak(**leak) for leak in facts["leaks"]))
    remove_entry(folder)
    return None


def _make(
    cases: Picked,
    texts: Mapping[str, Sequence[tuple[str, str]]],
    config: RunConfig,
    tokenizer: Any,
    name: str,
) -> Choice:
    rows = TokenRows()
    dropped, leaks = _choose(cases, texts, config, tokenizer, rows)
    rows.finish()
    facts = {
        "dropped": [asdict(row) for row in dropped],
        "leaks": [asdict(leak) for leak in leaks],
    }
    note = ""
    if name and len(rows) and rows.keep(name, facts):
        size = rows.path.stat().st_size / 2**20
        note = (
            f"The tokens of {len(rows)} rows are kept for the next run ({size:,.0f} MiB in"
            f" {data_cache()}, which may be removed at any time)."
        )
    return Choice(rows, dropped, leaks, note)


def _choose(
    cases: Sequence[Case],
    texts: Mapping[str, Sequence[tuple[str, str]]],
    config: RunConfig,
    tokenizer: Any,
    kept: _Rows,
) -> tuple[tuple[Dropped, ...], tuple[Leak, ...]]:
    """Put the rows into ``kept``; those left out for their length, and for what they share."""
    finder = LeakFinder(texts)
    dropped: list[Dropped] = []
    leaks: list[Leak] = []
    for start in range(0, len(cases), ROWS_AT_ONCE):
        part = cases[start : start + ROWS_AT_ONCE]
        found = finder.find(part)
        leaked = {leak.case_id for leak in found}
        rows, overlong = _encode_cases(
            [case for case in part if case.id not in leaked], config, tokenizer
        )
        place = {case.id: index for index, case in enumerate(part)}
        # Only what stands before the last row taken was left out; the rest was not looked at.
        taken = rows[: config.samples - len(kept)]
        kept.extend(taken)
        full = len(kept) == config.samples
        end = place[taken[-1].id] if full else len(part)
        dropped.extend(row for row in overlong if place[row.id] < end)
        leaks.extend(leak for leak in found if place[leak.case_id] < end)
        if full:
            break
    return tuple(dropped), tuple(leaks)


def _encode_cases(
    cases: Sequence[Case], config: RunConfig, tokenizer: Any
) -> tuple[tuple[Encoded, ...], tuple[Dropped, ...]]:
    chat = chat_template(tokenizer) if config.style == "chat" else None
    if config.style == "chat" and chat is None:
        raise InputError("--style chat", "the model has no chat template", "use --style tutorial")
    pairs: dict[str, Prompt] = {case.id: render(case, config.style, chat) for case in cases}
    rows = {row.id: row for row in encode(tokenizer, pairs)}
    kept, overlong = drop_overlong(cases, lambda case: len(rows[case.id]), config.max_length)
    return tuple(rows[case.id] for case in kept), overlong


def _name(
    cases: Picked,
    fingerprint: str,
    texts: Mapping[str, Sequence[tuple[str, str]]],
    config: RunConfig,
    tokenizer: Any,
) -> str:
    """The entry's name by all that decides the choice; "" for a tokenizer that cannot be compared.

    What the tokenizer makes of a probe stands for what its Python side adds to its content.
    """
    content = _content_of(tokenizer)
    if content is None:
        return ""
    chat = chat_template(tokenizer) if config.style == "chat" else None
    probe = render(Case("", _PROBE, _PROBE, _PROBE), config.style, chat)
    ids = [*encode_texts(tokenizer, [probe.text]), tokenizer(_PROBE).input_ids]
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token)
    numbers = (config.samples, config.max_length, config.style, ids, special)
    code = source_of(*CODE)
    return "tokens-" + key_of(
        fingerprint,
        cases.positions.tobytes(),
        json.dumps(texts),
        json.dumps(numbers),
        content,
        probe.text,
        code,
        version("tokenizers"),
        unicodedata.unidata_version,
    )


def _content_of(tokenizer: Any) -> str | None:
    """Everything a fast tokenizer is: vocabulary, merges, normalisation. None for a slow one."""
    for name in ("backend_tokenizer", "backend"):
        read = getattr(getattr(tokenizer, name, None), "to_str", None)
        if read is not None:
            return read()
    return None
