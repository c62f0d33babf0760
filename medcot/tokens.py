"""From prompt pairs to tokens, and the gate that every training passes.

Prompt and completion are tokenised apart and joined, so the border never moves; training, test
loss and generation all see the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcot.errors import InputError, RunFailed
from medcot.prompts import CLOSE, ChatTemplate
from medcot.records import Prompt

IGNORED = -100
"""The label of a token that is not trained on (PyTorch's cross-entropy convention)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training row: ``prompt_ids`` are read, ``completion_ids`` (with EOS) are learnt."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def as_row(self) -> dict[str, list[int]]:
        """``input_ids`` and ``labels`` of equal length, as trainers take them."""
        masked = [IGNORED] * len(self.prompt_ids)
        return {
            "input_ids": self.prompt_ids + self.completion_ids,
            "labels": masked + self.completion_ids,
        }


def chat_template(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's own template for a user's turn, or None where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def user_turn(message: str) -> str:
        turns = [{"role": "user", "content": message}]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    return user_turn


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a prompt, with exactly one BOS where the tokenizer is used with one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if _adds_bos(tokenizer) and (not ids or ids[0] != tokenizer.bos_token_id):
        return [tokenizer.bos_token_id, *ids]
    return ids


def encode(tokenizer: Any, pairs: Mapping[str, Prompt]) -> list[Encoded]:
    """Tokens of the pairs, by row id; the completion ends with EOS.

    Raises:
        InputError: a row spells the end-of-sequence token in its text.
    """
    if not pairs:
        return []
    texts = [pair.completion for pair in pairs.values()]
    completions = tokenizer(texts, add_special_tokens=False).input_ids
    rows: list[Encoded] = []
    for (row_id, pair), ids in zip(pairs.items(), completions, strict=True):
        if tokenizer.eos_token_id in ids:
            raise InputError(
                f"--dataset, row {row_id}",
                f"{tokenizer.eos_token!r} in the text",
                "text without it",
            )
        rows.append(
            Encoded(row_id, encode_text(tokenizer, pair.text), [*ids, tokenizer.eos_token_id])
        )
    return rows


def check_labels(tokenizer: Any, labels: Sequence[Sequence[int]], rows: Sequence[Encoded]) -> None:
    """The template gate: what the trainer would learn from is whole completions, nothing else.

    ``labels`` is a collated batch, one sequence of token ids and ``IGNORED`` per packed row. Each
    run of labelled tokens must be the completion of one of ``rows``: with the closing tag,
    response and EOS in it, and nothing of a prompt.

    Raises:
        RunFailed: it is not; training would teach something else than was asked for.
    """
    known = {tuple(row.completion_ids) for row in rows}
    runs = [run for sequence in labels for run in _labelled_runs(sequence)]
    if not runs:
        raise gate_refusal("no token of the first batch would be trained on")
    for run in runs:
        text = tokenizer.decode(run)
        if CLOSE not in text:
            raise gate_refusal(f"{CLOSE} is missing from a trained completion")
        if run[-1] != tokenizer.eos_token_id:
            raise gate_refusal(
                f"{tokenizer.eos_token} is missing from the end of a trained completion"
            )
        if tuple(run) not in known:
            raise gate_refusal("the trained tokens are not those of a completion")


def gate_refusal(problem: str) -> RunFailed:
    """Why the gate lets no training begin."""
    return RunFailed(
        "template check", f"{problem}.", "Choose another --style or --model; nothing was trained."
    )


def _labelled_runs(sequence: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for label in sequence:
        if label != IGNORED:
            runs[-1].append(int(label))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _adds_bos(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("x").input_ids
    return bool(ids) and ids[0] == tokenizer.bos_token_id
