"""Selects the training rows: the first that overlap no evaluation set and are not too long.

From some thousands of rows on the selection is cached, under a key of all that it depends on.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.case_list import CaseSubset
from medcot.data.contamination import EvaluationTexts, Overlap, OverlapFinder
from medcot.data.prompts import ChatTemplate, render
from medcot.data.store import entries_folder, hash_code, hash_parts
from medcot.data.tokenization import TokenizedRow, chat_template, encode, encode_texts
from medcot.data.tokenized import StoredRows
from medcot.errors import InputError
from medcot.records import Case, Dropped, Prompt

ROWS_AT_ONCE = 1024
"""Cases compared and tokenised at a time."""

CACHED_FROM = 2_000
"""Rows from which on a selection goes to a file and into the cache; fewer take a second."""

_PROBE = "Fever for 3 days, 体温 38.5 °C: β-lactam? \n\n</think>"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A case that may be trained on: its tokens, or what it shares with evaluation sets."""

    id: str
    row: TokenizedRow | None
    overlaps: Sequence[Overlap] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows to train on, and those left out before the last of them was found.

    ``note`` says what was written to disk, and is "" if nothing was.
    """

    rows: Sequence[TokenizedRow]
    dropped: tuple[Dropped, ...]
    overlaps: tuple[Overlap, ...]
    note: str = ""


def select_rows(candidates: Iterable[Candidate], samples: int, max_length: int) -> Selection:
    """Take the first ``samples`` candidates without overlaps, of at most ``max_length`` tokens.

    Candidates after the last one taken are not looked at, and not counted as left out.
    """
    chooser = _Chooser(samples, max_length)
    rows = tuple(chooser.take(candidates))
    return Selection(rows, tuple(chooser.dropped), tuple(chooser.overlaps))


def select_training_rows(
    cases: CaseSubset,
    fingerprint: str,
    texts: EvaluationTexts,
    config: RunConfig,
    tokenizer: Any,
) -> Selection:
    """Select ``config.samples`` of ``cases``, in their order; many come from the cache if there.

    ``fingerprint`` is that of the data set that ``cases`` belong to.

    Raises:
        InputError: the style needs a chat template, or a row spells the end token.
        RunFailed: the disk is full.
    """
    candidates = _read_candidates(cases, texts, config, tokenizer)
    if min(config.samples, len(cases)) < CACHED_FROM:
        return select_rows(candidates, config.samples, config.max_length)
    name = _name_entry(cases, fingerprint, texts, config, tokenizer)
    if name and (found := _load(name)):
        return found
    chooser = _Chooser(config.samples, config.max_length)
    rows = StoredRows.write(chooser.take(candidates))
    dropped, overlaps = tuple(chooser.dropped), tuple(chooser.overlaps)
    facts = {"dropped": [row.to_json() for row in dropped], "overlaps": list(map(asdict, overlaps))}
    note = ""
    if name and len(rows) and rows.save(name, facts):
        size = rows.path.stat().st_size / 2**20
        note = (
            f"The tokens of {len(rows)} rows are kept for the next run ({size:,.0f} MiB in"
            f" {entries_folder()}, which may be removed at any time)."
        )
    return Selection(rows, dropped, overlaps, note)


def explain_nothing_left(config: RunConfig, selection: Selection) -> InputError:
    """Return the error for an empty selection: rows too long, or else all in an evaluation set."""
    if not selection.dropped and selection.overlaps:
        first = selection.overlaps[0]
        values: dict[str, str | int | float] = {
            "rows": len({overlap.case_id for overlap in selection.overlaps}),
            "row": first.case_id,
            "question": first.evaluation_id,
            "set": first.set_name,
            "share": first.share,
        }
        got, needs = Message("error_all_leaked", values), Message("needs_other_rows")
        return InputError(f"--dataset {config.dataset}", got, needs)
    reasons = (row.reason for row in selection.dropped)
    lengths = [reason.values["length"] for reason in reasons if isinstance(reason, Message)]
    shortest = min((length for length in lengths if isinstance(length, int)), default=0)
    got = Message("error_all_too_long", {"tokens": shortest})
    needs = Message("needs_at_least", {"least": shortest})
    return InputError(f"--max-length {config.max_length}", got, needs)


def require_chat(config: RunConfig, tokenizer: Any) -> ChatTemplate | None:
    """Return the tokenizer's chat template, or None if it has none and the style needs none.

    Raises:
        InputError: the style is ``chat`` and the tokenizer has no template.
    """
    chat = chat_template(tokenizer)
    if config.style == "chat" and chat is None:
        raise InputError("--style chat", "the model has no chat template", "use --style tutorial")
    return chat


def tokenize_cases(
    cases: Iterable[Case], config: RunConfig, tokenizer: Any
) -> dict[str, TokenizedRow]:
    """Render the cases as ``config.style`` says and tokenise them; rows by case id.

    Raises:
        InputError: the style needs a chat template, or a row spells the end token.
    """
    chat = require_chat(config, tokenizer)
    pairs: dict[str, Prompt] = {case.id: render(case, config.style, chat) for case in cases}
    return {row.id: row for row in encode(tokenizer, pairs)}


class _Chooser:
    """The choice of rows from a stream of candidates, and what it has left out so far."""

    def __init__(self, samples: int, max_length: int) -> None:
        self.samples, self.max_length = samples, max_length
        self.dropped: list[Dropped] = []
        self.overlaps: list[Overlap] = []

    def take(self, candidates: Iterable[Candidate]) -> Iterator[TokenizedRow]:
        count = 0
        for candidate in candidates:
            row = candidate.row
            if candidate.overlaps or row is None:
                self.overlaps += candidate.overlaps
            elif len(row) > self.max_length:
                # A row is never cut: half an answer teaches the model to stop halfway.
                values = {"length": len(row), "longest": self.max_length}
                reason = Message("too_long", values)
                self.dropped.append(Dropped(candidate.id, reason))
            else:
                yield row
                count += 1
                if count == self.samples:
                    return


def _read_candidates(
    cases: Sequence[Case], texts: EvaluationTexts, config: RunConfig, tokenizer: Any
) -> Iterator[Candidate]:
    finder = OverlapFinder(texts)
    for start in range(0, len(cases), ROWS_AT_ONCE):
        part = cases[start : start + ROWS_AT_ONCE]
        found: dict[str, list[Overlap]] = {}
        for overlap in finder.find(part):
            found.setdefault(overlap.case_id, []).append(overlap)
        rows = tokenize_cases((case for case in part if case.id not in found), config, tokenizer)
        for case in part:
            yield Candidate(case.id, rows.get(case.id), found.get(case.id, ()))


def _load(name: str) -> Selection | None:
    if (found := StoredRows.load(name, needs=("dropped", "overlaps"))) is None:
        return None
    rows, facts = found
    dropped = tuple(map(Dropped.from_json, facts["dropped"]))
    return Selection(rows, dropped, tuple(Overlap(**one) for one in facts["overlaps"]))


def _name_entry(
    cases: CaseSubset,
    fingerprint: str,
    texts: EvaluationTexts,
    config: RunConfig,
    tokenizer: Any,
) -> str:
    """Name the entry by all that decides the selection; "" if the tokenizer cannot be compared.

    The tokens of a probe stand for what the tokenizer's Python side adds to its content.
    """
    content = _content_of(tokenizer)
    if content is None:
        return ""
    chat = chat_template(tokenizer) if config.style == "chat" else None
    probe = render(Case("", _PROBE, _PROBE, _PROBE), config.style, chat)
    ids = [*encode_texts(tokenizer, [probe.text]), tokenizer(_PROBE).input_ids]
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token)
    numbers = (config.samples, config.max_length, config.style, ids, special)
    return "tokens-" + hash_parts(
        fingerprint,
        cases.indices.tobytes(),
        json.dumps(texts),
        json.dumps(numbers),
        content,
        probe.text,
        hash_code(),
        version("tokenizers"),
        unicodedata.unidata_version,
    )


def _content_of(tokenizer: Any) -> str | None:
    """Return all of a fast tokenizer (vocabulary, merges, rules) as text; None for a slow one."""
    for name in ("backend_tokenizer", "backend"):
        read = getattr(getattr(tokenizer, name, None), "to_str", None)
        if read is not None:
            return read()
    return None
