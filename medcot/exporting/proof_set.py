"""What an export is asked: the run's own test rows, with what the tuned model said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medcot.config.schema import RunConfig
from medcot.data.dataset import load_dataset
from medcot.data.prompts import ChatTemplate, ask, render
from medcot.data.tokenization import chat_template, encode, encode_text
from medcot.errors import InputError
from medcot.evaluation.interface import ScoredRow, rows_from_json
from medcot.records import Case
from medcot.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class ProofRow:
    """A test row: its tokens, and the loss (nats, summed over the completion) after training.

    ``single`` tells that its prompt is a question alone, without a system prompt or earlier turns.
    """

    id: str
    prompt: str
    completion: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    nll_sum: float
    single: bool = True


@dataclass(frozen=True, slots=True)
class ProofQuestion:
    """A prompt with the greedy answer that the tuned model gave in the run."""

    id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    output: str
    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class ProofSet:
    """Everything that an export is asked, and what it needs to be asked alike.

    ``template`` is the source of the run's chat template, ``end_ids`` the tokens that ended an
    answer in the run.
    """

    rows: tuple[ProofRow, ...]
    questions: tuple[ProofQuestion, ...]
    max_new_tokens: int
    template: str
    bos_token: str
    eos_token: str
    end_ids: tuple[int, ...]


def load_proof_set(
    directory: RunDirectory, tokenizer: Any, end_ids: Sequence[int], answers: int
) -> ProofSet:
    """Read the run's ``after`` rows, and their references from the data set.

    Args:
        answers: Test rows to answer in full, besides the fixed question.

    Raises:
        InputError: The run was not scored after training, or its data set has changed.
    """
    config = directory.config()
    path = directory.evaluation("after")
    scored = rows_from_json(directory.rows(path), where=str(path))
    cases = [row for row in scored if row.kind == "case" and row.nll_sum is not None]
    if not cases:
        raise InputError(
            f"--run {directory.path}",
            "it has no test rows scored after training, so nothing can be proved",
            "score it with medcot evaluate, or use --no-proof",
        )
    chat = chat_template(tokenizer)
    references = _references(config, directory, {row.id for row in cases})
    rows = [_proof_row(row, references, config, chat, tokenizer) for row in cases]
    answered = [row for row in cases if row.output is not None][:answers]
    fixed = [row for row in scored if row.kind == "fixed" and row.output is not None]
    return ProofSet(
        rows=tuple(rows),
        questions=tuple(_proof_question(row, tokenizer) for row in (*fixed, *answered)),
        max_new_tokens=config.max_new_tokens,
        template=str(getattr(tokenizer, "chat_template", None) or ""),
        bos_token=str(tokenizer.bos_token or ""),
        eos_token=str(tokenizer.eos_token),
        end_ids=tuple(sorted(end_ids)),
    )


def _references(config: RunConfig, directory: RunDirectory, ids: set[str]) -> Mapping[str, Case]:
    dataset = load_dataset(config)
    if directory.has("environment.json"):
        known = directory.read_json("environment.json")["dataset"]["fingerprint"]
        if known != dataset.fingerprint:
            raise InputError(
                f"--dataset {config.dataset}",
                "the data changed since the run was scored",
                "restore the same rows, or use --no-proof",
            )
    return {case.id: case for case in dataset.cases if case.id in ids}


def _proof_row(
    row: ScoredRow,
    references: Mapping[str, Case],
    config: RunConfig,
    chat: ChatTemplate | None,
    tokenizer: Any,
) -> ProofRow:
    where = f"evaluation/after.jsonl, row {row.id!r}"
    if row.id not in references:
        raise InputError(where, "its case is not in the data set", "restore the same rows")
    pair = render(references[row.id], config.style, chat)
    if pair.text != row.prompt:
        raise InputError(
            where,
            "its prompt is not the one of today's chat template",
            "restore the tokenizer of the run's adapter folder",
        )
    tokens = encode(tokenizer, {row.id: pair})[0]
    return ProofRow(
        row.id,
        pair.text,
        pair.completion,
        tuple(tokens.prompt_ids),
        tuple(tokens.completion_ids),
        float(row.nll_sum or 0.0),
        single=not references[row.id].turns,
    )


def _proof_question(row: ScoredRow, tokenizer: Any) -> ProofQuestion:
    return ProofQuestion(
        row.id,
        row.prompt,
        tuple(encode_text(tokenizer, row.prompt)),
        row.output or "",
        row.tokens or 0,
        bool(row.finished),
    )


def prompt_around(config: RunConfig, chat: ChatTemplate | None) -> tuple[str, str]:
    """Return the text of the run's prompt before and after the question."""
    mark = "QUESTION-GOES-HERE"
    prompt = ask(mark, config.style, config.language, chat, thinks=config.thinks)
    before, _, after = prompt.partition(mark)
    return before, after
