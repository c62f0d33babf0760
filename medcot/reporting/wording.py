"""The report's sentences and numbers: the verdict and its cautions as a person says them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from medcot.evaluation.suite import SetAccuracy
from medcot.reporting.schema import ChoiceEndpoint, Measure, Report
from medcot.stats.paired import PairedDifference

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#!~$&])")


def say_verdict(report: Report) -> str:
    """The verdict in one or two sentences, directions in words."""
    said = [_say_loss(report)]
    if report.paired.mcq:
        said.append(_say_choice(report, report.paired.mcq))
    return " ".join(said)


def _say_loss(report: Report) -> str:
    nll = report.paired.nll
    if nll is None:
        return "No test row was scored, so nothing is known of the test loss."
    rows = count(nll.n, "test row")
    if nll.difference == 0:
        return f"Test loss did not change at all on {rows}: no evidence of an effect."
    moved = "fell" if nll.difference < 0 else "rose"
    by = f"by {abs(nll.difference):.3f} nats per token on {rows}{_span(nll)}"
    match report.verdict.nll:
        case "improved":
            return f"Test loss {moved} {by}: improved."
        case "worse":
            return f"Test loss {moved} {by}: worse."
        case _:
            return f"Test loss {moved} {by}, which may be chance: no evidence."


def _say_choice(report: Report, mcq: ChoiceEndpoint) -> str:
    if not mcq.n:
        return "No multiple-choice question was answered both times."
    before, after = (
        show_percent(side.mcq and side.mcq.accuracy) for side in (report.before, report.after)
    )
    asked = f"of {mcq.n} multiple-choice questions"
    match report.verdict.mcq:
        case "improved":
            return f"Right answers rose from {before} to {after} {asked}: improved."
        case "worse":
            return f"Right answers fell from {before} to {after} {asked}: worse."
        case _ if mcq.difference == 0:
            return f"Right answers stayed at {after} {asked}: no evidence.{_reach(mcq)}"
        case _:
            went = f"Right answers went from {before} to {after} {asked}, which may be chance"
            return f"{went}: no evidence.{_reach(mcq)}"


def _reach(mcq: ChoiceEndpoint) -> str:
    if mcq.detectable is None:
        return " So few questions could have shown no change at all."
    least = show_size("mcq", mcq.detectable)
    return f" Only a change of {least} or more would likely have shown with so many questions."


def _span(paired: PairedDifference) -> str:
    if paired.low is None or paired.high is None:
        return ""
    low, high = sorted((abs(paired.low), abs(paired.high)))
    if paired.low * paired.high <= 0:
        return f" (95 % interval {show_interval('nll', paired)})"
    return f" (95 % interval {low:.3f} to {high:.3f})"


def say_cautions(report: Report) -> Iterator[str]:
    """What to keep in mind when reading the table, as a section; nothing where there is nothing."""
    lines = [*_caution_of_length(report), *_caution_of_data(report), *_caution_of_chance(report)]
    if lines:
        yield "## Cautions"
        yield "\n".join(f"- {line}" for line in lines)


def _caution_of_length(report: Report) -> Iterator[str]:
    cut = report.truncated
    if cut.before or cut.after:
        yield (
            f"Of {cut.of} generated answers, {cut.before} before and {cut.after} after"
            f" reached {cut.max_new_tokens} tokens and were cut off (`--max-new-tokens`)."
        )
    for side, summary in (("before", report.before), ("after", report.after)):
        if summary.closed_rate == 0:
            yield f"No thought was closed {side}: there is no answer to read on that side."


def _caution_of_data(report: Report) -> Iterator[str]:
    if leaks := report.leaks:
        rows = count(len({leak.case_id for leak in leaks}), "training row")
        yield f"{rows} also stood in what is evaluated, and had no part in training."
    if withheld := report.withheld:
        questions = count(len(withheld), "question")
        yield f"{questions} of sets added after the training stood in training rows: left out."
    if report.facts.dataset and report.facts.dataset.synthetic:
        yield "The rows are synthetic samples, not clinically reviewed."


def _caution_of_chance(report: Report) -> Iterator[str]:
    """Sets on which a side is not told apart from guessing."""
    for name, chance in report.chance.items():
        sides = [side.mcq.sets[name] for side in (report.before, report.after) if side.mcq]
        if sides and all(_holds(one, chance) for one in sides):
            yield (
                f"On {escape(name)}, neither before ({_within(sides[0])}) nor after"
                f" ({_within(sides[1])}) is told apart from guessing ({show_percent(chance)})."
            )


def _holds(accuracy: SetAccuracy, chance: float) -> bool:
    low, high = accuracy.low, accuracy.high
    return low is not None and high is not None and low <= chance <= high


def _within(accuracy: SetAccuracy) -> str:
    return f"{100 * (accuracy.low or 0.0):.1f} to {show_percent(accuracy.high)}"


def count(number: int, noun: str) -> str:
    """``number`` of ``noun`` in words, as "1 row" or "1,200 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def show_value(name: Measure, value: float | None) -> str:
    if value is None:
        return ""
    if name == "nll":
        return f"{value:.3f}"
    return f"{value:.0f}" if name.endswith("tokens") else show_percent(value)


def show_change(name: Measure, value: float) -> str:
    """A signed difference, with a typographic minus."""
    if value == 0:
        return "0"
    if name == "nll":
        text = f"{value:+.3f}"
    else:
        text = f"{value:+.0f}" if name.endswith("tokens") else f"{100 * value:+.1f} points"
    return text.replace("-", "−")


def show_size(name: Measure, value: float) -> str:
    return f"{abs(value):.3f}" if name == "nll" else f"{100 * abs(value):.1f} points"


def show_interval(name: Measure, paired: PairedDifference) -> str:
    if paired.low is None or paired.high is None:
        return "too few rows"
    low, high = (show_change(name, end) for end in (paired.low, paired.high))
    return f"{low.removesuffix(' points')} to {high.removesuffix(' points')}"


def show_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}".rstrip("0").rstrip(".")


def show_percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def escape(text: str) -> str:
    """``text`` so that Markdown and a terminal show it as it is, on one line: no link, image, tag
    or control sequence."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    safe = _SPECIAL.sub(r"\\\1", " ".join(printable.split()))
    return re.sub(r"(?i)\b(https?|ftp)(:)|\b(www)(\.)", _unlinked, safe)


def _unlinked(found: re.Match[str]) -> str:
    return f"{found[1]}\\{found[2]}" if found[1] else f"{found[3]}\\{found[4]}"
