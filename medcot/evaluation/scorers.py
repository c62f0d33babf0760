"""Scores a batch of items: asks the model, parses the outputs, and grades them as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from medcot.data import prompts
from medcot.evaluation import answer_extraction, option_orders, output_checks, rubric
from medcot.evaluation.abilities import Ability, ask_ability, is_passed, read_answer
from medcot.evaluation.interface import Kind, ModelTools, ScoredRow, ThoughtLosses
from medcot.records import Case, Generation, Language, Prompt, Question, Style, TokenLoss

_NO_THOUGHTS: Mapping[str, str] = {}

CaseOfKind = tuple[Kind, Case]
"""A case, and whether it is a test row (``case``) or the ``fixed`` one."""


def score_cases(
    cases: Sequence[CaseOfKind],
    style: Style,
    tools: ModelTools,
    *,
    answered: bool,
    answer_alone: bool = False,
    wrong_thoughts: Mapping[str, str] = _NO_THOUGHTS,
) -> Iterator[ScoredRow]:
    """Score cases by the loss of their reference and, if ``answered``, by a generated answer.

    With ``answer_alone`` the loss is that of the reference's answer, after the thought that the
    model writes itself. Test rows in ``wrong_thoughts`` also tell whether the thought is used.
    """
    asked = [prompts.render(case, style, tools.chat) for _, case in cases]
    texts: Sequence[Generation | None] = [None] * len(cases)
    if answered or (answer_alone and any(case.thought for _, case in cases)):
        texts = tools.generate([prompt.text for prompt in asked])
    losses = tools.score(_after_own_thoughts(cases, asked, texts) if answer_alone else asked)
    if not answered:
        texts = [None] * len(cases)
    rows = [
        make_row(
            kind, "", case.id, prompt.text, loss, text, case.language, thinks=bool(case.thought)
        )
        for (kind, case), prompt, loss, text in zip(cases, asked, losses, texts, strict=True)
    ]
    used = _score_thoughts(cases, rows, tools, wrong_thoughts) if answered else {}
    for (kind, case), scored in zip(cases, rows, strict=True):
        row = replace(scored, thought_losses=used.get(case.id) if kind == "case" else None)
        if case.claims and row.answer is not None:
            checked = rubric.check_claims(row.answer, case.claims)
            row = replace(row, claims=tuple(checked), correct=rubric.states_all(checked))
        yield row


def _after_own_thoughts(
    cases: Sequence[CaseOfKind], asked: Sequence[Prompt], texts: Sequence[Generation | None]
) -> list[Prompt]:
    """Return the answers alone, each after the model's thought; one not closed is closed for it."""
    return [
        prompts.render_answer(case, prompt, prompts.parse(text.text).thought)
        if text is not None and case.thought
        else prompt
        for (_, case), prompt, text in zip(cases, asked, texts, strict=True)
    ]


def _score_thoughts(
    cases: Sequence[CaseOfKind],
    rows: Sequence[ScoredRow],
    tools: ModelTools,
    wrong_thoughts: Mapping[str, str],
) -> dict[str, ThoughtLosses]:
    """Score the reference answers after an empty, the model's own, the right and a wrong thought.

    A thought that the model did not close is closed for it.
    """
    tested = [
        (case, row)
        for (kind, case), row in zip(cases, rows, strict=True)
        if kind == "case" and case.id in wrong_thoughts
    ]
    thoughts = [
        thought
        for case, row in tested
        for thought in ("", row.thought or "", case.thought, wrong_thoughts[case.id])
    ]
    pairs = [
        Prompt(prompts.close_thought(row.prompt, thought), f"\n\n{case.response.strip()}")
        for (case, row), thought in zip(
            (one for one in tested for _ in range(4)), thoughts, strict=True
        )
    ]
    losses = iter(tools.score(pairs) if pairs else ())
    return {case.id: ThoughtLosses(*(next(losses).mean for _ in range(4))) for case, _ in tested}


def score_by_likelihood(
    questions: Sequence[Question], name: str, tools: ModelTools, orders: int = 1
) -> Iterator[ScoredRow]:
    """Choose the option whose letter has the lowest loss after the cue; of equals, the first.

    The loss is averaged over cyclic orders of the options, as many as ``orders`` says (0: all). In
    all of them each option stands once at each letter, so that a preference for a letter drops out.
    """
    turns = [option_orders.list_orders(question, orders) for question in questions]
    flat = [turned for turned_ones in turns for turned in turned_ones]
    cues = [prompts.choice_cue(turned) for turned in flat]
    offered = [answer_extraction.option_continuations(turned) for turned in flat]
    scored = iter(tools.score_options(list(zip(cues, offered, strict=True))))
    for question, turned_ones in zip(questions, turns, strict=True):
        readings = [[loss.total for loss in next(scored)] for _ in turned_ones]
        by_letter = option_orders.average_losses(list(question.options), readings)
        letter = min(by_letter, key=lambda one: round(by_letter[one], 9))
        row = make_row("mcq", name, question.id, prompts.choice_cue(question))
        yield replace(
            _grade(row, question, letter, finished=True),
            option_losses=by_letter,
            letters=option_orders.list_letters(list(question.options), readings),
        )


def score_by_reasoning(
    questions: Sequence[Question],
    name: str,
    style: Style,
    tools: ModelTools,
    *,
    thinks: bool = True,
) -> Iterator[ScoredRow]:
    """Let the model answer in free text, reasoning if it ``thinks``, and read the letter."""
    asked = [
        prompts.ask_choice(question, style, tools.chat, thinks=thinks) for question in questions
    ]
    for question, prompt, text in zip(questions, asked, tools.generate(asked), strict=True):
        row = make_row(
            "mcq", name, question.id, prompt, None, text, question.language, thinks=thinks
        )
        letter = answer_extraction.extract_letter(
            row.answer or "", question.options, question.language
        )
        yield _grade(row, question, letter, finished=text.finished)


def score_abilities(items: Sequence[Ability], tools: ModelTools) -> Iterator[ScoredRow]:
    """Let the model answer general items, and check each answer by the item's rule.

    A truncated answer fails, whatever it says: it was not done.
    """
    asked = [ask_ability(item, tools.chat) for item in items]
    for item, prompt, text in zip(items, asked, tools.generate(asked), strict=True):
        yield replace(
            make_row("ability", item.kind, item.id, prompt),
            output=text.text,
            answer=read_answer(text.text),
            tokens=text.tokens,
            finished=text.finished,
            repeats=output_checks.has_loop(text.text),
            unfinished=not text.finished,
            correct=text.finished and is_passed(item, text.text),
        )


def _grade(row: ScoredRow, question: Question, letter: str | None, *, finished: bool) -> ScoredRow:
    """Grade a choice. A truncated answer is wrong whatever letter it states: it was not done."""
    return replace(
        row,
        choice=letter,
        key=question.answer,
        correct=finished and letter == question.answer,
        unparsed=finished and letter is None,
        unfinished=not finished,
    )


def make_row(
    kind: Kind,
    name: str,
    identity: str,
    prompt: str,
    loss: TokenLoss | None = None,
    text: Generation | None = None,
    language: Language | None = None,
    *,
    thinks: bool = True,
) -> ScoredRow:
    """Make a row from the item's loss and output, where it has them.

    ``language`` is what the output should be in; without it, that is not checked. Without
    ``thinks`` no thought was asked for: whether one was closed is not measured.
    """
    row = ScoredRow(kind, name, identity, prompt)
    if loss:
        row = replace(row, nll=loss.mean, nll_sum=loss.total, completion_tokens=loss.tokens)
    if text is None:
        return row
    reply = prompts.parse(text.text, thinks=thinks)
    thought, answer = output_checks.divide_tokens(text.tokens, reply.thought, reply.answer)
    spoken = reply.answer or text.text
    return replace(
        row,
        output=text.text,
        thought=reply.thought,
        answer=reply.answer,
        tokens=text.tokens,
        thought_tokens=thought if thinks else None,
        answer_tokens=answer,
        closed=reply.closed if thinks else None,
        finished=text.finished,
        repeats=output_checks.has_loop(text.text),
        language_match=output_checks.is_in_language(spoken, language) if language else None,
    )
