"""Tokenises prompt pairs, and checks the labels before every training (the template gate).

Prompt and completion are tokenised separately and joined, so the boundary never moves; training,
test loss and generation all see the same tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcot.data.chat_templates import choose_template, render_conversation
from medcot.data.prompts import CLOSE, OPEN, ChatTemplate, find_marks, opens_thought
from medcot.errors import InputError, RunFailed
from medcot.records import Prompt, Turn

IGNORED = -100
"""The label of a token without a loss (PyTorch's cross-entropy convention)."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One training row: ``prompt_ids`` are masked, ``completion_ids`` (with EOS) are labelled.

    Tokens are stored as 32-bit numbers. As Python's own they would take nine times the memory,
    which for 25,000 rows is most of a gigabyte.
    """

    id: str
    _prompt: array[int]
    _completion: array[int]

    @classmethod
    def of(
        cls, row_id: str, prompt_ids: Sequence[int], completion_ids: Sequence[int]
    ) -> TokenizedRow:
        """Build the row of these tokens."""
        return cls(row_id, array("i", prompt_ids), array("i", completion_ids))

    @classmethod
    def of_bytes(cls, row_id: str, prompt: bytes, completion: bytes) -> TokenizedRow:
        """Build the row of tokens given as bytes of 32-bit numbers."""
        return cls(row_id, array("i", prompt), array("i", completion))

    @property
    def arrays(self) -> tuple[array[int], array[int]]:
        """Return prompt and completion as they are stored."""
        return self._prompt, self._completion

    @property
    def prompt_ids(self) -> list[int]:
        """Return the tokens of the prompt."""
        return self._prompt.tolist()

    @property
    def completion_ids(self) -> list[int]:
        """Return the tokens of the completion, EOS included."""
        return self._completion.tolist()

    def __len__(self) -> int:
        return len(self._prompt) + len(self._completion)

    def as_row(self) -> dict[str, list[int]]:
        """Return ``input_ids`` and ``labels`` of equal length, as trainers take them."""
        labelled = self.completion_ids
        masked = [IGNORED] * len(self._prompt)
        return {"input_ids": self.prompt_ids + labelled, "labels": masked + labelled}


def chat_template(tokenizer: Any) -> ChatTemplate | None:
    """Return the tokenizer's own template for conversations, or None if it has none."""
    template = choose_template(getattr(tokenizer, "chat_template", None))
    if not template:
        return None
    special: Mapping[str, Any] = tokenizer.special_tokens_map

    def render(turns: Sequence[Turn], *, thinks: bool | None = None) -> str:
        return render_conversation(template, turns, special, thinks=thinks)

    return render


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokenise a prompt, with exactly one BOS if the tokenizer adds one."""
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise many prompts at once, which takes half the time of one by one."""
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False).input_ids
    if not _adds_bos(tokenizer):
        return found
    bos = tokenizer.bos_token_id
    return [ids if ids and ids[0] == bos else [bos, *ids] for ids in found]


def encode(tokenizer: Any, pairs: Mapping[str, Prompt]) -> list[TokenizedRow]:
    """Tokenise the pairs, given by row id; the completion ends with EOS.

    Raises:
        InputError: a row spells the end-of-sequence token in its text, or there is no such token.
    """
    if not pairs:
        return []
    if tokenizer.eos_token_id is None:
        raise InputError(
            "--model",
            "its tokenizer has no end token",
            "name the model's eos_token in its tokenizer_config.json",
        )
    texts = [pair.completion for pair in pairs.values()]
    completions = tokenizer(texts, add_special_tokens=False).input_ids
    prompts = encode_texts(tokenizer, [pair.text for pair in pairs.values()])
    for index, pair in enumerate(pairs.values()):
        if pair.begun:
            prompts[index] += _encode_begun(tokenizer, pair, completions[index])
    rows: list[TokenizedRow] = []
    for row_id, prompt, ids in zip(pairs, prompts, completions, strict=True):
        if tokenizer.eos_token_id in ids:
            raise InputError(
                f"--dataset, row {row_id}",
                f"found {tokenizer.eos_token!r} in the text",
                "remove the model's end-of-sequence token",
            )
        rows.append(TokenizedRow.of(row_id, prompt, [*ids, tokenizer.eos_token_id]))
    return rows


def _encode_begun(tokenizer: Any, pair: Prompt, completion: list[int]) -> list[int]:
    """Tokenise how a turn has begun, as in training, where its parts are tokenised together."""
    whole: list[int] = tokenizer(pair.begun + pair.completion, add_special_tokens=False).input_ids
    if completion and whole[-len(completion) :] == completion:
        return whole[: -len(completion)]
    begun: list[int] = tokenizer(pair.begun, add_special_tokens=False).input_ids
    return begun


ROWS_COMPARED = 256
"""Rows sampled to estimate the shared prompt prefix."""


def shared_prefix_length(rows: Sequence[TokenizedRow]) -> int:
    """Return how many leading prompt tokens the first ``ROWS_COMPARED`` rows share."""
    return prefix_length([row.prompt_ids for row in rows[:ROWS_COMPARED]])


def prefix_length(rows: Sequence[list[int]]) -> int:
    """Return how many leading tokens all ``rows`` share."""
    # The prefix shared by all rows is that of the smallest and the largest in order.
    least, greatest = min(rows), max(rows)
    for index, (one, other) in enumerate(zip(least, greatest, strict=False)):
        if one != other:
            return index
    return min(len(least), len(greatest))


def check_labels(
    tokenizer: Any, labels: Sequence[Sequence[int]], rows: Sequence[TokenizedRow]
) -> None:
    """Check that the labelled tokens are whole completions and nothing else (the template gate).

    ``labels`` is a collated batch, one sequence of token ids and ``IGNORED`` per packed row. Each
    run of labelled tokens must be the completion of one of ``rows``: with response and EOS in it,
    with the closing tag if the prompt opens a thought and without it if not, and nothing of a
    prompt.

    Raises:
        RunFailed: it is not, so the model would be trained on something else.
    """
    runs = [run for sequence in labels for run in _labelled_runs(sequence)]
    if not runs:
        raise gate_refusal("no token of the first batch would be trained on")
    for run in runs:
        # The trainer's first rows are the first of these, so few are compared unless one is wrong.
        row = next((row for row in rows if row.completion_ids == run), None)
        prompt = tokenizer.decode(row.prompt_ids) if row else OPEN
        opened, closing = opens_thought(prompt), find_marks(prompt).closes.strip()
        closed = closing in tokenizer.decode(run)
        if opened and not closed:
            raise gate_refusal(f"{closing} is missing from a trained completion")
        if closed and not opened:
            raise gate_refusal(f"{CLOSE} is in a trained completion whose prompt opens no thought")
        if run[-1] != tokenizer.eos_token_id:
            raise gate_refusal(
                f"{tokenizer.eos_token} is missing from the end of a trained completion"
            )
        if row is None:
            raise gate_refusal("the trained tokens are not those of a completion")


def gate_refusal(problem: str) -> RunFailed:
    """Return the error with which the template gate stops a training."""
    return RunFailed(
        "template check", f"{problem}.", "Nothing was trained; use another --style or --model."
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
