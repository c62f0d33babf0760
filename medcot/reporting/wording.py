"""Words a report: its verdict and cautions as messages, its numbers in one format.

Both renderers use these. A message is a code with values that the catalog words in English and
Chinese; ``report.json`` keeps the codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import reduce
from typing import Literal, get_args

from medcot.catalog import Message, say
from medcot.evaluation.abilities import AbilityKind
from medcot.evaluation.suite import SetAccuracy, Summary
from medcot.reporting.schema import (
    ChoiceEndpoint,
    Measure,
    Report,
    SeedComparison,
    VerdictMessages,
)
from medcot.stats.crossed import CrossedDifference
from medcot.stats.paired import PairedDifference, Verdict
from medcot.stats.power import ENOUGH_ROWS

TINY_SHARE = 0.005
"""A change of the loss below this share of it is called small, however sure its direction is."""
FLOOR_SHARE = 0.2
"""A share of general items passed before, below which hardly anything could be lost."""

UNREAD_SHARE = 0.05
"""A change of the share of unread answers from which a report warns of it."""

_IN_NATS = ("nll", "thought_gain", "thought_harm")


def state_verdict(report: Report) -> VerdictMessages:
    """State what may be said of the loss, of right answers, and of what the training cost.

    The last two are said only if there were questions or general items.
    """
    mcq, abilities, seeds = report.paired.mcq, report.paired.abilities, report.seeds
    if seeds and seeds.nll:
        loss = tuple(_state_recipe("nll", seeds.nll, report.verdict.nll, seeds))
    else:
        loss = (_state_loss(report),)
    if seeds and seeds.mcq:
        choice = tuple(_state_recipe("mcq", seeds.mcq, report.verdict.mcq, seeds))
    else:
        choice = tuple(_state_choice(report, mcq)) if mcq else ()
    return VerdictMessages(
        nll=loss,
        mcq=choice,
        abilities=tuple(_state_cost(report, abilities)) if abilities else (),
    )


def find_cautions(report: Report) -> tuple[Message, ...]:
    """Find what a reader of the comparison should keep in mind."""
    return (
        *_size_cautions(report),
        *_length_cautions(report),
        *_data_cautions(report),
        *_chance_cautions(report),
        *_letter_cautions(report),
        *_unread_cautions(report),
        *_floor_cautions(report),
    )


def word_verdict(report: Report, language: str) -> str:
    """Word the verdict: in English the sentence that ``report.json`` holds."""
    if language == "en":
        return report.verdict.sentence
    return "".join(one.text(language) for one in report.verdict.messages.all())


def word_opening(report: Report, language: str) -> str:
    """Word what came out in one sentence, from the figures that there are; nothing without any.

    It counts the answers whose thought was closed, and repeats the verdicts.
    """
    clauses = [*_state_closed_thoughts(report), *_name_verdicts(report)]
    if not clauses:
        return ""
    joined = reduce(lambda one, two: Message("opening_and", {"first": one, "second": two}), clauses)
    return say("opening", language, clauses=joined)


def _state_closed_thoughts(report: Report) -> Iterator[Message]:
    paired = report.paired.of("closed_rate")
    if paired is None:
        return
    n = paired.n
    before, after = (round(n * (side.closed_rate or 0)) for side in (report.before, report.after))
    if before == after:
        case = "as_often" if after else "never"
    else:
        case = "only_after" if not before else "changed" if after else "only_before"
    found = Message(f"closed_{case}", {"before": before, "after": after, "n": n})
    may_be_chance = before != after and paired.verdict("higher") == "no evidence"
    yield Message("closed_uncertain", {"closed": found}) if may_be_chance else found


def _name_verdicts(report: Report) -> Iterator[Message]:
    for name in report.paired.endpoints():
        called = (getattr(report.verdict, name) or "no evidence").replace(" ", "_")
        yield Message(f"opening_{name}", {"verdict": Message(f"called_{called}")})


def state_power(report: Report, language: str) -> Iterator[Message]:
    """State what a run of this size could have shown, whatever it did show."""
    for name, paired in report.paired.endpoints().items():
        shared = {"n": paired.n, "unit": Message(f"unit_{name}")}
        measure = Message(f"measure_{name}")
        if several := _find_recipe(report, name):
            # What the kept adapter's rows need alone would leave the seeds out.
            if several.detectable is not None:
                size = format_size(name, several.detectable, language)
                values = {"measure": measure, "size": size, "seeds": len(several.by_seed)}
                yield Message("detectable_seeds", shared | values)
            continue
        if (least := paired.detectable) is not None:
            size = format_size(name, least, language)
            few = name == "nll" and paired.n < ENOUGH_ROWS
            code = "detectable_few" if few else "detectable"
            yield Message(code, shared | {"measure": measure, "size": size})
        if (needed := paired.needed_rows) is not None:
            counts = {"needed": needed, "more": needed - paired.n}
            size = format_size(name, paired.difference, language)
            yield Message("needed", shared | counts | {"size": size})
        elif isinstance(paired, ChoiceEndpoint):
            needed = paired.needed_for_5_points or 0
            if needed > paired.n:
                counts = {"needed": needed, "more": needed - paired.n}
                yield Message("needed_for_5_points", shared | counts)


def _find_recipe(report: Report, name: str) -> CrossedDifference | None:
    """Return what several seeds show of a measure, where the verdict on it is about the recipe."""
    found = {"nll": report.seeds.nll, "mcq": report.seeds.mcq} if report.seeds else {}
    return found.get(name)


def state_validation(report: Report) -> Iterator[Message]:
    """State which step's adapter was kept, by the loss of the validation rows."""
    found = report.facts.validation
    if found is None or not found.losses:
        return
    losses = {one.step: one.loss for one in found.losses}
    best = min(losses, key=losses.__getitem__)
    shared = {"rows": count_things("validation_row", found.rows), "steps": found.steps}
    values = shared | {"best": best, "loss": _nats(losses[best])}
    if best == found.steps:
        yield Message("validation_best_last", values)
    else:
        last = {"last": _nats(list(losses.values())[-1])}
        code = "validation_best" if found.kept_step == best else "validation_not_best"
        yield Message(code, values | last)
    if found.stopped_early:
        later = sum(step > best for step in losses)
        yield Message("validation_stopped", {"steps": found.steps, "n": later})


def _state_recipe(
    name: Literal["nll", "mcq"],
    found: CrossedDifference,
    verdict: Verdict | None,
    seeds: SeedComparison,
) -> Iterator[Message]:
    """State what several trainings say together, and how many of them say so by themselves."""
    own = [getattr(one, f"{name}_verdict") for one in seeds.runs]
    size, evidence = _size(name, abs(found.difference)), verdict in ("improved", "worse")
    said = (verdict or "no evidence") if evidence or float(size) else "same"
    by = Message(f"by_{name}", {"size": size})
    yield Message(
        f"seeds_{said.replace(' ', '_')}",
        {
            "n": len(own),
            "measure": Message(f"measure_short_{name}"),
            "moved": Message("moved_down" if found.difference < 0 else "moved_up"),
            "by": by,
            "rows": Message(f"on_{name}", {"n": found.n}),
            "span": _state_span(found, name),
        },
    )
    counts = {"improved": own.count("improved"), "worse": own.count("worse"), "n": len(own)}
    differ = Message(f"by_{name}", {"size": _size(name, found.deviation)})
    yield Message(
        "seeds_counts_worse" if counts["worse"] else "seeds_counts", counts | {"deviation": differ}
    )


def state_seeds(report: Report, language: str) -> Iterator[Message]:
    """State p and the smallest change that so many rows and seeds show, for each measure."""
    seeds = report.seeds
    both: tuple[tuple[Literal["nll", "mcq"], CrossedDifference | None], ...] = (
        (("nll", seeds.nll), ("mcq", seeds.mcq)) if seeds else ()
    )
    for name, found in both:
        if found is None or seeds is None:
            continue
        shared = {"measure": Message(f"measure_{name}"), "p": format_p(found.p_value)}
        yield Message("seeds_p", shared)
        if found.detectable is not None:
            size = format_size(name, found.detectable, language)
            yield Message("seeds_detectable", {"n": len(seeds.runs), "size": size})


def _size(name: Literal["nll", "mcq"], value: float) -> str:
    return _nats(value) if name == "nll" else f"{100 * value:.1f}"


def seed_rows(report: Report, language: str) -> Iterator[tuple[str, ...]]:
    """Format a row for each training: seed, validation loss, changes, verdicts, whether kept."""
    for one in report.seeds.runs if report.seeds else ():
        cells: list[str] = []
        both: tuple[tuple[Measure, PairedDifference | None, Verdict | None], ...] = (
            ("nll", one.nll, one.nll_verdict), ("mcq", one.mcq, one.mcq_verdict),
        )  # fmt: skip
        for name, paired, verdict in both:
            if paired is not None and verdict is not None:
                cells += [
                    format_change(name, paired.difference, language),
                    format_interval(name, paired, language),
                    say(f"called_{verdict.replace(' ', '_')}", language),
                ]
            else:
                cells += ["", "", ""]
        loss = format_value("nll", one.validation_loss)
        yield (str(one.seed), loss, *cells, say("seed_kept", language) if one.kept else "")


def _state_loss(report: Report) -> Message:
    nll = report.paired.nll
    if nll is None:
        return Message("loss_unscored")
    rows = count_things("test_row", nll.n)
    if nll.difference == 0:
        return Message("loss_same", {"rows": rows})
    moved = Message("moved_down" if nll.difference < 0 else "moved_up")
    by = _nats(abs(nll.difference))
    code = f"loss_{report.verdict.nll.replace(' ', '_')}"
    return Message(code, {"moved": moved, "by": by, "rows": rows, "span": _state_span(nll)})


def _state_span(nll: PairedDifference, name: Literal["nll", "mcq"] = "nll") -> Message | str:
    """State the interval by its size where the direction is sure, else with signs."""
    if nll.low is None or nll.high is None:
        return ""
    if nll.low * nll.high <= 0:
        low, high = (_signed(name, end) for end in (nll.low, nll.high))
    else:
        low, high = (_size(name, end) for end in sorted((abs(nll.low), abs(nll.high))))
    return Message("span", {"low": low, "high": high})


def _state_choice(report: Report, mcq: ChoiceEndpoint) -> Iterator[Message]:
    if not mcq.n:
        yield Message("choice_unscored")
        return
    before, after = (100 * (side.value("mcq") or 0.0) for side in (report.before, report.after))
    verdict = report.verdict.mcq or "no evidence"
    if verdict != "no evidence":
        yield Message(f"choice_{verdict}", {"before": before, "after": after, "n": mcq.n})
        return
    if mcq.difference == 0:
        yield Message("choice_same", {"after": after, "n": mcq.n})
    else:
        yield Message("choice_no_evidence", {"before": before, "after": after, "n": mcq.n})
    if mcq.detectable is None:
        yield Message("choice_shows_nothing")
    else:
        yield Message("choice_shows", {"least": 100 * mcq.detectable})


def _floor_cautions(report: Report) -> Iterator[Message]:
    """Say that a model that passes few general items can hardly lose any."""
    before = report.before.abilities
    if before and (before.accuracy or 0.0) < FLOOR_SHARE:
        yield Message("caution_floor", {"before": 100 * (before.accuracy or 0.0), "n": before.n})


def _state_cost(report: Report, abilities: ChoiceEndpoint) -> Iterator[Message]:
    """State whether the general items that pass became fewer."""
    before, after = (
        round((side.value("abilities") or 0.0) * abilities.n)
        for side in (report.before, report.after)
    )
    counts = {"before": before, "after": after, "n": abilities.n}
    verdict = (report.verdict.abilities or "no evidence").replace(" ", "_")
    same = abilities.difference == 0
    yield Message("cost_same" if same else f"cost_{verdict}", counts)
    if verdict == "no_evidence" and abilities.detectable is not None:
        yield Message("cost_shows", {"least": 100 * abilities.detectable})


def _size_cautions(report: Report) -> Iterator[Message]:
    """Say how small a change is that is shown and yet tiny beside the loss itself."""
    nll = (report.seeds and report.seeds.nll) or report.paired.nll
    before = report.before.nll
    if nll is None or not before or report.verdict.nll == "no evidence":
        return
    share = abs(nll.difference) / before
    if share < TINY_SHARE:
        yield Message("caution_tiny", {"share": 100 * share})


def _length_cautions(report: Report) -> Iterator[Message]:
    cut = report.truncated
    if cut.before or cut.after:
        values = {"of": cut.of, "before": cut.before, "after": cut.after}
        yield Message("caution_truncated", values | {"limit": cut.max_new_tokens})
    if report.before.closed_rate == 0:
        yield Message("caution_not_closed_before")
    if report.after.closed_rate == 0:
        yield Message("caution_not_closed_after")


def _data_cautions(report: Report) -> Iterator[Message]:
    if report.leaks:
        rows = len({leak.case_id for leak in report.leaks})
        yield Message("caution_leaks", {"rows": count_things("training_row", rows)})
    if report.withheld:
        questions = count_things("question", len(report.withheld))
        yield Message("caution_withheld", {"questions": questions})
    if report.facts.dataset and report.facts.dataset.synthetic:
        yield Message("caution_synthetic")
    if report.config.thought in ("shuffled", "another"):
        yield Message("caution_thoughts_changed")
    if report.config.generates_to_score:
        yield Message("caution_answer_loss")


def _chance_cautions(report: Report) -> Iterator[Message]:
    """Find sets on which neither side can be told from guessing."""
    if not report.before.mcq or not report.after.mcq:
        return
    for name, chance in report.chance.items():
        before, after = report.before.mcq.sets[name], report.after.mcq.sets[name]
        if _holds(before, chance) and _holds(after, chance):
            values = {"set": name, "chance": 100 * chance}
            values |= {"before_low": _percent(before.low), "before_high": _percent(before.high)}
            values |= {"after_low": _percent(after.low), "after_high": _percent(after.high)}
            yield Message("caution_chance", values)


def _letter_cautions(report: Report) -> Iterator[Message]:
    """Say that the letters alone would have given another verdict on the same adapter."""
    found, mcq = report.letter_bias, report.paired.mcq
    if found and mcq and found.verdict_as_given != "no evidence" == mcq.verdict("higher"):
        values = {"before": 100 * found.rate_before, "after": 100 * found.rate_after}
        yield Message("caution_letters", values)


def _unread_cautions(report: Report) -> Iterator[Message]:
    """Say that answers became easier or harder to read, which counts as right or wrong ones."""
    before, after = report.before.mcq, report.after.mcq
    if before and after and abs(after.unread - before.unread) >= UNREAD_SHARE:
        yield Message(
            "caution_unread", {"before": 100 * before.unread, "after": 100 * after.unread}
        )


def state_letter_bias(report: Report, language: str) -> Iterator[str]:
    """State how often the model chose its favourite letter, and what that did to the exam."""
    if not (found := report.letter_bias):
        return
    yield say(
        "letter_bias",
        language,
        letter_before=found.before.letter,
        letter_after=found.after.letter,
        before=100 * found.before.share,
        after=100 * found.after.share,
        n=found.before.readings,
        expected=100 * found.expected,
        right_before=100 * found.rate_before,
        right_after=100 * found.rate_after,
        verdict=Message(f"called_{found.verdict_as_given.replace(' ', '_')}"),
    )


def state_thought(report: Report, language: str) -> Iterator[str]:
    """State what the model's thought and a wrong one do to the right answer, before and after."""
    for measure in ("thought_gain", "thought_harm"):
        found = report.paired.of(measure)
        if found is None:
            continue
        called = "same" if found.difference == 0 else found.verdict("higher").replace(" ", "_")
        yield say(
            measure,
            language,
            before=format_change("nll", report.before.value(measure) or 0.0, language),
            after=format_change("nll", report.after.value(measure) or 0.0, language),
            n=found.n,
            found=Message(f"thought_{called}"),
        )


def _holds(accuracy: SetAccuracy, chance: float) -> bool:
    low, high = accuracy.low, accuracy.high
    return low is not None and high is not None and low <= chance <= high


def _percent(value: float | None) -> float:
    return 100 * (value or 0.0)


def count_things(noun: str, n: int) -> Message:
    """Return ``n`` of a noun of the catalog, such as ``test_row``: "1 test row", "12 test rows"."""
    return Message(f"n_{noun}" if n == 1 else f"n_{noun}s", {"n": n})


def compare_values(
    report: Report,
    measure: Measure,
    paired: PairedDifference,
    language: str,
    *,
    of_set: str | None = None,
) -> tuple[str, str, str, str, str, str]:
    """Format a row of the comparison: before, after, difference, interval, p and n.

    ``of_set`` names the question set, or kind of item, that is meant instead of the whole.
    """
    before, after = (
        _set_value(side, measure, of_set) if of_set else side.value(measure)
        for side in (report.before, report.after)
    )
    return (
        format_value(measure, before),
        format_value(measure, after),
        format_change(measure, paired.difference, language),
        format_interval(measure, paired, language),
        format_p(paired.p_value),
        str(paired.n),
    )


def cost_by_kind(report: Report, language: str) -> list[list[str]]:
    """Format what the training cost as rows: kind, the comparison's cells, verdict."""
    items = report.paired.abilities
    if items is None:
        return []
    rows: list[list[str]] = []
    for kind, paired in items.sets.items():
        found = (report.verdict.ability_kinds or {})[kind].replace(" ", "_")
        values = compare_values(report, "abilities", paired, language, of_set=kind)
        called = say(f"called_{found}", language)
        rows.append([name_kind(kind, language), *values, called])
    return rows


def name_kind(kind: str, language: str) -> str:
    """Name a kind of general item; a task of lm_eval keeps its own name."""
    return say(f"ability_{kind}", language) if kind in get_args(AbilityKind) else kind


def _set_value(side: Summary, measure: Measure, of_set: str) -> float | None:
    found = side.abilities if measure == "abilities" else side.mcq
    return found.sets[of_set].accuracy if found else None


def format_value(measure: Measure, value: float | None) -> str:
    """Format one side's value; nothing for None."""
    if value is None:
        return ""
    if measure in _IN_NATS:
        return f"{value:.3f}"
    return f"{value:.0f}" if measure.endswith("tokens") else format_percent(value)


def format_change(measure: Measure, value: float, language: str = "en") -> str:
    """Format a signed difference with its unit and a typographic minus; a zero has no sign."""
    if value == 0:
        return "0"
    if measure in _IN_NATS or measure.endswith("tokens"):
        return _signed(measure, value)
    return say("points", language, n=_signed(measure, value))


def format_size(measure: Measure, value: float, language: str = "en") -> str:
    """Format the size of a difference without its sign."""
    if measure == "nll":
        return _nats(abs(value))
    return say("points", language, n=f"{100 * abs(value):.1f}")


def format_interval(measure: Measure, paired: PairedDifference, language: str = "en") -> str:
    """Format the interval of a difference, without a unit."""
    if paired.low is None or paired.high is None:
        return say("too_few_rows", language)
    low, high = (_signed(measure, end) for end in (paired.low, paired.high))
    return say("from_to", language, low=low, high=high)


def format_p(value: float) -> str:
    """Format a p-value."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")


def format_percent(value: float | None) -> str:
    """Format a rate; nothing for None."""
    return "" if value is None else f"{100 * value:.1f} %"


def _nats(size: float) -> str:
    """Format a size in nats: three decimals, or one significant digit where these would be zero."""
    return f"{size:.3f}" if size >= 0.0005 or size == 0 else f"{Decimal(f'{size:.1g}'):f}"


def _signed(measure: Measure, value: float) -> str:
    if value == 0:
        return "0"
    if measure in _IN_NATS:
        written = f"{'-' if value < 0 else '+'}{_nats(abs(value))}"
    else:
        written = f"{value:+.0f}" if measure.endswith("tokens") else f"{100 * value:+.1f}"
    return written.replace("-", "−")
