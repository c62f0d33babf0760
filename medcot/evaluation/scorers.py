"""From a handful of items to their rows: asked of the model, taken apart, and graded."""

from __future__ import annotations

from collections.abc import Iterator

from medcot.data import prompts
from medcot.evaluation import answer_extraction, output_checks, rubric
from medcot.evaluation.interface import ModelTools, Row
from medcot.records import (
    Case,
    Generation,
    Question,
    Style,
    TokenLoss,
)


def ask_cases(
    cases: list[Case], kind: str, answered: bool, style: Style, tools: ModelTools
) -> Iterator[Row]:
    asked = [prompts.render(case, style, tools.chat) for case in cases]
    losses = tools.score(asked)
    texts = tools.generate([prompt.text for prompt in asked]) if answered else [None] * len(cases)
    for case, prompt, loss, text in zip(cases, asked, losses, texts, strict=True):
        row = make_row(kind, "", case.id, prompt.text, loss, text)
        if text is not None:
            row["language_match"] = output_checks.speaks(row["answer"] or text.text, case.language)
        if case.claims and text is not None:
            checked = rubric.check_claims(row["answer"], case.claims)
            row["claims"] = [{"claim": one.claim, "finding": one.finding} for one in checked]
            row["correct"] = rubric.passes(checked)
        yield row


def ask_by_likelihood(questions: list[Question], name: str, tools: ModelTools) -> Iterator[Row]:
    """The letter that the model finds likeliest after the cue; the first of equals."""
    cues = [prompts.choice_cue(question) for question in questions]
    offered = [answer_extraction.continuations(question) for question in questions]
    scored = tools.score_options(list(zip(cues, offered, strict=True)))
    for question, cue, losses in zip(questions, cues, scored, strict=True):
        totals = [loss.total for loss in losses]
        letter = list(question.options)[totals.index(min(totals))]
        row = make_row("mcq", name, question.id, cue)
        by_letter = dict(zip(question.options, totals, strict=True))
        yield row | _graded(question, letter, finished=True) | {"option_losses": by_letter}


def ask_by_reasoning(
    questions: list[Question], name: str, style: Style, tools: ModelTools
) -> Iterator[Row]:
    asked = [prompts.ask_choice(question, style, tools.chat) for question in questions]
    for question, prompt, text in zip(questions, asked, tools.generate(asked), strict=True):
        row = make_row("mcq", name, question.id, prompt, text=text)
        row["language_match"] = output_checks.speaks(row["answer"] or text.text, question.language)
        letter = answer_extraction.extract_letter(
            row["answer"], question.options, question.language
        )
        yield row | _graded(question, letter, finished=text.finished)


def _graded(question: Question, letter: str | None, finished: bool) -> Row:
    """An answer that was cut off is wrong even where a letter stands in it: it was not its last."""
    return {
        "choice": letter,
        "key": question.answer,
        "correct": finished and letter == question.answer,
        "unparsed": finished and letter is None,
        "unfinished": not finished,
    }


def make_row(
    kind: str,
    name: str,
    identity: str,
    prompt: str,
    loss: TokenLoss | None = None,
    text: Generation | None = None,
) -> Row:
    """One line of ``evaluation/*.jsonl``. What was not asked for is None."""
    row: Row = {"kind": kind, "set": name, "id": identity, "prompt": prompt}
    row |= {"output": None, "thought": None, "answer": None, "correct": None}
    row |= {"nll": None, "nll_sum": None, "completion_tokens": None}
    row |= {"tokens": None, "closed": None, "finished": None, "repeats": None}
    if loss:
        row |= {"nll": loss.mean, "nll_sum": loss.total, "completion_tokens": loss.tokens}
    if text:
        reply = prompts.parse(text.text)
        thought, answer = output_checks.share_tokens(text.tokens, reply.thought, reply.answer)
        row |= {"output": text.text, "thought": reply.thought, "answer": reply.answer}
        row |= {"tokens": text.tokens, "thought_tokens": thought, "answer_tokens": answer}
        row |= {"closed": reply.closed, "finished": text.finished}
        row["repeats"] = output_checks.loops(text.text)
    return row
