"""Builds the report from the rows before and after: pairs, verdict, statistical power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import Literal, TypeVar

from medcot.config.schema import RunConfig
from medcot.data.contamination import Overlap
from medcot.errors import InputError, RunFailed
from medcot.evaluation.interface import BY_LM_EVAL, EvaluationSuite, ScoredRow, ThoughtLosses
from medcot.evaluation.suite import is_counted, list_sets, order_rows, summarise
from medcot.records import Question
from medcot.reporting.examples import (
    Pairs,
    compare_fixed_question,
    select_changed_questions,
    select_lost_abilities,
    select_rows,
)
from medcot.reporting.schema import (
    Agreement,
    ChoiceEndpoint,
    Comparisons,
    Detectable,
    Endpoint,
    Facts,
    LetterBias,
    LetterShare,
    NeededRows,
    Report,
    RowLoss,
    Truncated,
    Verdicts,
)
from medcot.reporting.seeds import SeedRows, compare_seeds, judge_recipe
from medcot.reporting.wording import find_cautions, state_verdict
from medcot.stats import paired, power
from medcot.stats.crossed import CrossedDifference
from medcot.stats.paired import PairedDifference, Verdict

FEW_POINTS = 0.05
"""Change of accuracy, 5 points, for which the needed number of questions is always given."""

T = TypeVar("T")
Better = Literal["lower", "higher"]


def build_report(
    before: Sequence[ScoredRow],
    after: Sequence[ScoredRow],
    suite: EvaluationSuite,
    config: RunConfig,
    facts: Facts = Facts(),  # noqa: B008 - frozen
    *,
    leaks: Sequence[Overlap] = (),
    withheld: Sequence[Overlap] = (),
    seeds: Sequence[SeedRows] = (),
) -> Report:
    """Compare the two sides. Differences are after minus before: a fall of ``nll`` is good.

    ``leaks`` are training rows that an evaluation set holds too, ``withheld`` questions that were
    trained on. With ``seeds``, the trainings of one recipe, the verdicts are about the recipe.

    Raises:
        InputError: a side lacks some of the suite's rows.
    """
    before, after = _complete(before, suite, "before"), _complete(after, suite, "after")
    pairs = _pair(before, after)
    _require_comparable(pairs)
    compared = _compare(pairs, before, suite, config.seed)
    verdict = _reach_verdicts(compared)
    compared = _drop_needless_sizes(compared, verdict)
    several = compare_seeds(before, seeds, suite, config.seed) if seeds else None
    if several:
        verdict = judge_recipe(several, verdict)
    loss, mcq, abilities = compared.nll, compared.mcq, compared.abilities
    better, worse = select_rows(pairs, suite)
    report = Report(
        verdict=verdict,
        before=summarise(before, suite),
        after=summarise(after, suite),
        paired=compared,
        detectable=Detectable(
            _detectable(loss, several and several.nll),
            _detectable(mcq, several and several.mcq),
            abilities and abilities.detectable,
        ),
        needed_rows=NeededRows(
            None if several else loss and loss.needed_rows,
            None if several else mcq and mcq.needed_rows,
            abilities and abilities.needed_rows,
        ),
        better_rows=better,
        worse_rows=worse,
        changed_questions=select_changed_questions(pairs, suite),
        lost_abilities=select_lost_abilities(pairs, suite),
        letter_bias=_find_letter_bias(pairs),
        fixed_question=compare_fixed_question(pairs, suite),
        lm_eval_agreement=_compare_with_lm_eval(before, after, suite),
        truncated=_count_truncated(before, after, config),
        leaks=tuple(leaks),
        withheld=tuple(withheld),
        chance={name: _guess(asked) for name, asked in suite.questions.items()},
        differences=tuple(
            RowLoss(b.id, b.nll or 0.0, a.nll or 0.0) for b, a in pairs if b.kind == "case"
        ),
        config=config,
        facts=facts,
        seeds=several,
    )
    messages = state_verdict(report)
    sentence = " ".join(map(str, messages.all()))
    return replace(
        report,
        verdict=replace(verdict, sentence=sentence, messages=messages),
        cautions=find_cautions(report),
    )


def _detectable(kept: Endpoint | None, recipe: CrossedDifference | None) -> float | None:
    """Return the change that this run could have shown: of the recipe, if it has several seeds."""
    return recipe.detectable if recipe else kept and kept.detectable


def _complete(rows: Sequence[ScoredRow], suite: EvaluationSuite, side: str) -> list[ScoredRow]:
    ordered, missing = order_rows(rows, suite)
    if missing:
        raise InputError(
            f"evaluation/{side}.jsonl",
            f"{missing} of the rows to compare are missing",
            "score them with medcot evaluate --run",
        )
    return ordered


def _pair(before: Sequence[ScoredRow], after: Sequence[ScoredRow]) -> Pairs:
    """Pair the rows that both sides have, in the order of ``before``."""
    found = {row.row_key: row for row in after}
    return [(row, found[row.row_key]) for row in before if row.row_key in found]


def _require_comparable(pairs: Pairs) -> None:
    """Refuse rows whose prompts or keys differ, and scores that are no finite number."""
    for before, after in pairs:
        for name in ("prompt", "key"):
            if getattr(before, name) != getattr(after, name):
                raise InputError(
                    f"evaluation/after.jsonl, {before.kind} {before.id!r}",
                    f"its {name} is not the one of evaluation/before.jsonl",
                    "score both again in a new run with the same questions and chat template",
                )
        if len(before.letters) != len(after.letters):
            raise InputError(
                f"evaluation/after.jsonl, {before.kind} {before.id!r}",
                f"read in {len(after.letters)} orders of its options, before in"
                f" {len(before.letters)}",
                "score both again in a new run, or set mcq_orders as it was",
            )
        for side, row in (("before", before), ("after", after)):
            losses = (row.nll, row.nll_sum, *(row.option_losses or {}).values())
            if not all(loss is None or isfinite(loss) for loss in losses):
                raise RunFailed(
                    "report",
                    f"evaluation/{side}.jsonl, {row.kind} {row.id!r}: the loss is not finite.",
                    "The weights that gave it are destroyed: start a new run with a lower"
                    " --learning-rate.",
                )


def _compare(
    pairs: Pairs, before: Sequence[ScoredRow], suite: EvaluationSuite, seed: int
) -> Comparisons:
    cases = [(b, a) for b, a in pairs if b.kind == "case"]
    answered = [(b, a) for b, a in cases if b.output is not None and a.output is not None]

    def applies(read: Callable[[ScoredRow], float | None]) -> bool:
        """Tell whether any row has the measure: without thoughts none is closed or has tokens."""
        return any(read(row) is not None for pair in answered for row in pair)

    def rate(read: Callable[[ScoredRow], bool | None]) -> PairedDifference | None:
        if not applies(read):
            return None
        return paired.compare_rates(*_sides(answered, lambda row: bool(read(row))))

    def mean(read: Callable[[ScoredRow], float | None]) -> PairedDifference | None:
        if not applies(read):
            return None
        return paired.compare_means(*_sides(answered, lambda row: read(row) or 0), seed=seed)

    def thought(read: Callable[[ThoughtLosses], float]) -> PairedDifference | None:
        tested = [(b.thought_losses, a.thought_losses) for b, a in cases]
        both = [(read(b), read(a)) for b, a in tested if b and a]
        return paired.compare_means([b for b, _ in both], [a for _, a in both], seed=seed)

    names = list_sets(before, suite)
    asked = [pair for pair in pairs if pair[0].kind == "mcq"]
    items = [pair for pair in pairs if pair[0].kind == "ability"]
    kinds = list(dict.fromkeys(before.set for before, _ in items))
    return Comparisons(
        nll=_compare_losses(cases, seed),
        closed_rate=rate(lambda row: row.closed),
        finished_rate=rate(lambda row: row.finished),
        repetition_rate=rate(lambda row: row.repeats),
        language_match_rate=rate(lambda row: row.language_match),
        answer_tokens=mean(lambda row: row.answer_tokens),
        thought_tokens=mean(lambda row: row.thought_tokens),
        claims_rate=paired.compare_rates(
            *_sides([pair for pair in answered if pair[0].claims], lambda row: bool(row.correct))
        ),
        thought_gain=thought(lambda losses: losses.gain),
        thought_harm=thought(lambda losses: losses.harm),
        mcq=_compare_sets(asked, [pair for pair in asked if is_counted(pair[0], suite)], names)
        if names
        else None,
        abilities=_compare_sets(items, items, kinds) if items else None,
    )


def _compare_losses(cases: Pairs, seed: int) -> Endpoint | None:
    before, after = _sides(cases, lambda row: row.nll_sum or 0.0)
    tokens, _ = _sides(cases, lambda row: row.completion_tokens or 0)
    found = paired.compare_means(before, after, tokens, seed=seed)
    return found and Endpoint(
        **asdict(found),
        detectable=power.detectable_mean(before, after, tokens),
        needed_rows=power.rows_for_mean(before, after, tokens),
    )


def _compare_sets(asked: Pairs, counted: Pairs, names: list[str]) -> ChoiceEndpoint:
    """Compare all ``counted`` items together, decided on beforehand, and each set of ``asked``,
    corrected for number."""
    level = paired.corrected_level(len(names))
    per_set = {
        name: paired.compare_rates(*_grades([p for p in asked if p[0].set == name]), level)
        for name in names
    }
    sets = paired.correct_p_values({name: one for name, one in per_set.items() if one})
    before, after = _grades(counted)
    together = paired.compare_rates(before, after)
    if together is None:
        return ChoiceEndpoint(0.0, None, None, 1.0, 0, sets=sets)
    return ChoiceEndpoint(
        **asdict(together),
        detectable=power.detectable_rate(before, after),
        needed_rows=power.rows_for_rate(before, after),
        needed_for_5_points=power.rows_to_find(before, after, FEW_POINTS),
        sets=sets,
    )


def _sides(pairs: Pairs, read: Callable[[ScoredRow], T]) -> tuple[list[T], list[T]]:
    return [read(b) for b, _ in pairs], [read(a) for _, a in pairs]


def _grades(pairs: Pairs) -> tuple[list[bool], list[bool]]:
    return _sides(pairs, lambda row: bool(row.correct))


def _reach_verdicts(compared: Comparisons) -> Verdicts:
    verdict = Verdicts(nll=_reach_verdict(compared.nll, "lower"))
    if mcq := compared.mcq:
        sets = {name: _reach_verdict(one, "higher") for name, one in mcq.sets.items()}
        verdict = replace(verdict, mcq=_reach_verdict(mcq, "higher"), mcq_sets=sets)
    if items := compared.abilities:
        kinds = {name: _reach_verdict(one, "higher") for name, one in items.sets.items()}
        found = _reach_verdict(items, "higher")
        verdict = replace(verdict, abilities=found, ability_kinds=kinds)
    return verdict


def _reach_verdict(found: PairedDifference | None, better: Better) -> Verdict:
    return found.verdict(better) if found and found.n else "no evidence"


def _drop_needless_sizes(compared: Comparisons, verdict: Verdicts) -> Comparisons:
    """Omit the required sample size when the difference is already significant."""
    if compared.nll and verdict.nll != "no evidence":
        compared = replace(compared, nll=replace(compared.nll, needed_rows=None))
    if compared.mcq and verdict.mcq != "no evidence":
        compared = replace(compared, mcq=replace(compared.mcq, needed_rows=None))
    if compared.abilities and verdict.abilities != "no evidence":
        compared = replace(compared, abilities=replace(compared.abilities, needed_rows=None))
    return compared


def _compare_with_lm_eval(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow], suite: EvaluationSuite
) -> dict[str, Agreement]:
    """Count, for each set that lm_eval scored too, how often it graded a question as medcot did."""
    found: dict[str, Agreement] = {}
    for name in suite.questions:
        alike = [_agree(rows, name) for rows in (before, after)]
        if all(alike):
            found[name] = Agreement(sum(alike[0]), sum(alike[1]), len(alike[1]))
    return found


def _agree(rows: Sequence[ScoredRow], name: str) -> list[bool]:
    """List, for each question of a set that both graded, whether the grades are equal."""
    ours = {row.id: row.correct_as_given for row in rows if row.kind == "mcq" and row.set == name}
    theirs = [row for row in rows if row.kind == "mcq" and row.set == BY_LM_EVAL + name]
    return [row.correct == ours[row.id] for row in theirs if row.id in ours]


def _find_letter_bias(pairs: Pairs) -> LetterBias | None:
    """Find how often each letter was chosen; None if no question was read in several orders."""
    read = [(b, a) for b, a in pairs if len(b.letters) > 1]
    if not read:
        return None
    before, after = _sides(read, lambda row: row.correct_as_given)
    as_given = paired.compare_rates(before, after)
    assert as_given is not None
    letters = {letter for b, _ in read for letter in b.option_losses or {}}
    shares = [1 / len(b.option_losses or letters) for b, _ in read for _ in b.letters]
    most_before, most_after = (_count_letters(side) for side in zip(*read, strict=True))
    return LetterBias(
        before=most_before,
        after=most_after,
        expected=sum(shares) / len(shares),
        rate_before=sum(before) / len(before),
        rate_after=sum(after) / len(after),
        as_given=as_given,
        verdict_as_given=as_given.verdict("higher"),
    )


def _count_letters(rows: Sequence[ScoredRow]) -> LetterShare:
    found = Counter(letter for row in rows for letter in row.letters)
    letter, count = max(sorted(found.items()), key=lambda one: one[1])
    return LetterShare(letter, count / found.total(), found.total())


def _count_truncated(
    before: Sequence[ScoredRow], after: Sequence[ScoredRow], config: RunConfig
) -> Truncated:
    """Count the outputs that reached the token limit."""
    return Truncated(
        before=sum(row.finished is False for row in before),
        after=sum(row.finished is False for row in after),
        of=sum(row.output is not None for row in after),
        max_new_tokens=config.max_new_tokens,
    )


def _guess(asked: Sequence[Question]) -> float:
    """Return the accuracy of guessing."""
    return sum(1 / len(question.options) for question in asked) / len(asked)
