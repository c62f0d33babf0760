"""The report: a verdict that the numbers carry, and a page on which models' texts stay text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from medcot.catalog import say
from medcot.config.presets import make_config
from medcot.data.contamination import Overlap
from medcot.errors import InputError
from medcot.evaluation.interface import EvaluationSuite, ScoredRow
from medcot.evaluation.rubric import ClaimFinding
from medcot.evaluation.scorers import make_row
from medcot.evaluation.suite import make_suite
from medcot.records import Case, Claim, Generation, Question, TokenLoss
from medcot.reporting.build import build_report
from medcot.reporting.figures import can_draw, write_figures
from medcot.reporting.markdown import escape, render_markdown
from medcot.reporting.schema import Report
from medcot.reporting.storage import report_from_json, report_to_json
from medcot.reporting.wording import word_opening

SETTING = make_config(
    "demo",
    {"test_samples": 400, "generate_samples": 12, "mcq_method": "generate", "mcq_samples": 0},
)
OPTIONS = {"A": "one", "B": "two", "C": "three", "D": "four"}
CLAIMS = (Claim("rest is advised", ("rest",), ("exercise",)),)
GOOD = "t</think>Rest.\nAnswer: B"


def case(number: int, text: str = "") -> Case:
    return Case(f"c{number:03}", text or f"Question {number}?", "t", f"Reference {number}.")


def suite_of(
    cases: int = 16, sets: Sequence[str] = (), questions: int = 40, text: str = ""
) -> EvaluationSuite:
    fixed = Case("fixed", text or "What now?", "t", "Rest.", claims=CLAIMS, reference="Rest.")
    asked = {
        name: [Question(f"q{n}", f"Which {n}?", OPTIONS, "B") for n in range(questions)]
        for name in sets
    }
    return make_suite(SETTING, [case(n, text) for n in range(cases)], fixed, asked)


def rows(
    exam: EvaluationSuite, shift: float = 0.0, right: float = 0.5, seed: int = 1, say: str = GOOD
) -> list[ScoredRow]:
    """One side: losses around 2 nats per token less ``shift``, and ``right`` of the answers."""
    chance = random.Random(seed)
    full = {one.id for one in exam.generated}
    made: list[ScoredRow] = []
    for one in exam.cases:
        tokens = 100 + int(one.id[1:]) * 7 % 90
        loss = TokenLoss(tokens * (2 + chance.gauss(0, 0.02) - shift), tokens)
        text = Generation(say, 30, True) if one.id in full else None
        made.append(replace(make_row("case", "", one.id, "p", loss, text), language_match=True))
    if exam.fixed:
        row = make_row("fixed", "", "fixed", "p", TokenLoss(20, 10), Generation(say, 30, True))
        claims = (ClaimFinding("rest is advised", "states"),)
        made.append(replace(row, claims=claims, correct=True))
    for name, asked in exam.questions.items():
        for n, question in enumerate(asked):
            row = make_row("mcq", name, question.id, "p", None, Generation(say, 30, True))
            fine = n < right * len(asked)
            made.append(replace(row, correct=fine, unparsed=not fine, unfinished=False))
    return made


def report(
    exam: EvaluationSuite,
    before: Any,
    after: Any,
    leaks: Sequence[Overlap] = (),
    withheld: Sequence[Overlap] = (),
) -> dict[str, Any]:
    """What a reader of report.json gets."""
    made = build_report(before, after, exam, SETTING, leaks=leaks, withheld=withheld)
    return json.loads(json.dumps(report_to_json(made), allow_nan=False))


def render(made: dict[str, Any]) -> str:
    """The page of a report that was written to disk and read again."""
    return render_markdown(report_from_json(made))


# --- verdicts --------------------------------------------------------------------------------


def test_a_loss_that_falls_on_every_row_is_improved() -> None:
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam, shift=0.1, seed=2))
    assert made["verdict"]["nll"] == "improved"
    assert made["paired"]["nll"]["difference"] == pytest.approx(
        made["after"]["nll"] - made["before"]["nll"]
    )
    assert made["paired"]["nll"]["high"] < 0
    assert "Test loss fell by 0.1" in made["verdict"]["sentence"]


def count_closed(exam: EvaluationSuite, before: int, after: int) -> Report:
    """A report of answers of which the first ``before`` and ``after`` close their thought."""
    full = {one.id for one in exam.generated}

    def close(closed: int, shift: float) -> list[ScoredRow]:
        made = rows(exam, shift=shift)
        names = [row.id for row in made if row.kind == "case" and row.id in full][:closed]
        return [replace(row, closed=row.id in names) if row.id in full else row for row in made]

    return build_report(close(before, 0.0), close(after, 0.1), exam, SETTING)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (0, 12, "The base model never closed its thought; the tuned one does in 12 of 12; test"),
        (12, 0, "The base model closed its thought in 12 of 12; the tuned one never does; test"),
        (2, 12, "The base model closed its thought in 2 of 12, the tuned one in 12; test"),
        (2, 3, "The base model closed its thought in 2 of 12, the tuned one in 3, which may be ch"),
        (0, 1, "never closed its thought; the tuned one does in 1 of 12, which may be chance; te"),
        (0, 0, "Neither model ever closed its thought (0 of 12 answers); test loss: improved;"),
        (5, 5, "Both models closed their thought in 5 of 12 answers; test loss: improved; right"),
    ],
)
def test_the_report_opens_with_what_came_out(before: int, after: int, says: str) -> None:
    made = count_closed(suite_of(sets=("exam",)), before, after)
    opening = word_opening(made, "en")
    assert says in opening
    assert opening.endswith("test loss: improved; right answers: no evidence.")
    assert render_markdown(made).splitlines()[2] == f"**{opening}**"
    chinese = word_opening(made, "zh")
    assert chinese.endswith("测试损失：有改善；选择题正确率：没有证据。")
    assert str(after) in chinese or not after
    assert ("偶然" in chinese) == ("chance" in opening)


def test_the_opening_keeps_to_figures_that_exist() -> None:
    bare = replace(suite_of(), cases=(), generated=(), fixed=None)
    assert word_opening(build_report([], [], bare, SETTING), "en") == ""
    scored = suite_of()
    worse = build_report(rows(scored), rows(scored, shift=-0.1), scored, SETTING)
    assert word_opening(worse, "en").endswith("of 12 answers; test loss: worse.")
    unasked = replace(scored, generated=())
    alone = build_report(rows(unasked), rows(unasked, shift=-0.1), unasked, SETTING)
    assert word_opening(alone, "en") == "Test loss: worse."


def test_a_tiny_change_has_its_digits_and_is_called_small() -> None:
    """``improved`` beside 0.000 would say two things."""
    exam = suite_of()
    before = rows(exam)
    after = [
        replace(row, nll=row.nll - 1.1e-5, nll_sum=row.nll_sum - 1.1e-5 * row.completion_tokens)
        if row.kind == "case" and row.nll and row.nll_sum and row.completion_tokens
        else row
        for row in before
    ]
    found = build_report(before, after, exam, SETTING)
    assert found.verdict.nll == "improved"
    assert "fell by 0.00001 nats" in found.verdict.sentence
    assert "0.000 " not in found.verdict.sentence
    (caution,) = [one for one in found.cautions if one.code == "caution_tiny"]
    assert "0.00055 % of what it was" in str(caution)
    page = render_markdown(found)
    assert "−0.00001" in page
    assert str(caution) in page


def test_a_loss_that_rises_is_worse() -> None:
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam, shift=-0.1, seed=2))
    assert made["verdict"]["nll"] == "worse"
    assert "Test loss rose by 0.09" in made["verdict"]["sentence"]
    assert made["better_rows"] == []
    assert len(made["worse_rows"]) == 5


def test_a_run_that_changed_nothing_is_exactly_zero_and_no_evidence() -> None:
    exam = suite_of(sets=("one", "two"))
    side = rows(exam)
    made = report(exam, side, side)
    assert made["verdict"]["nll"] == made["verdict"]["mcq"] == "no evidence"
    for name, paired in made["paired"].items():
        assert paired["difference"] == 0.0, name
        assert paired["p_value"] == 1.0, name
    assert made["better_rows"] == made["worse_rows"] == []
    assert made["needed_rows"] == {"nll": None, "mcq": None}
    assert "did not change at all" in made["verdict"]["sentence"]


def test_right_answers_that_rise_are_improved_and_that_fall_worse() -> None:
    exam = suite_of(sets=("one",), questions=100)
    low, high = rows(exam, right=0.3), rows(exam, right=0.6)
    assert report(exam, low, high)["verdict"]["mcq"] == "improved"
    assert report(exam, high, low)["verdict"]["mcq"] == "worse"
    made = report(exam, low, high)
    assert made["paired"]["mcq"]["difference"] == pytest.approx(0.3)
    assert (made["before"]["mcq"]["accuracy"], made["before"]["mcq"]["n"]) == (0.3, 100)
    assert made["before"]["mcq"]["unparsed"] == 70


def test_a_small_difference_is_no_evidence_and_says_what_would_be() -> None:
    exam = suite_of(sets=("one",), questions=40)
    made = report(exam, rows(exam, right=0.5), rows(exam, right=0.55))
    assert made["verdict"]["mcq"] == "no evidence"
    assert made["paired"]["mcq"]["detectable"] > 0.05
    assert made["needed_rows"]["mcq"] > 40
    page = render(made)
    assert "would be found four times out of five" in page
    assert f"{made['needed_rows']['mcq'] - 40} more" in page


def test_how_many_rows_are_needed_is_not_said_of_what_is_shown() -> None:
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam, shift=0.1, seed=2))
    assert made["needed_rows"]["nll"] is None


def test_several_sets_are_corrected_and_the_whole_is_one_comparison() -> None:
    exam = suite_of(sets=("a", "b", "c", "d", "e"), questions=60)
    before, after = rows(exam, right=0.5), rows(exam, right=0.5)
    after = [  # seven more right in one set: p = 0.016 alone, 0.078 among five
        replace(row, correct=bool(row.correct) or int(row.id[1:]) < 37)
        if (row.kind, row.set) == ("mcq", "c")
        else row
        for row in after
    ]
    made = report(exam, before, after)
    only = made["paired"]["mcq"]["sets"]["c"]
    assert only["p_value"] == pytest.approx(5 * 2 / 2**7)
    assert only["level"] == pytest.approx(0.99)
    assert made["verdict"]["mcq_sets"]["c"] == "no evidence"
    assert made["paired"]["mcq"]["n"] == 300
    assert "5 sets give chance 5 tries" in render(made)


def test_report_has_every_key_of_its_contract() -> None:
    exam = suite_of(sets=("one",))
    made = report(exam, rows(exam), rows(exam, shift=0.05, seed=3))
    for part in ("before", "after", "paired"):
        for key in ("nll", "mcq", "closed_rate", "finished_rate", "answer_tokens"):
            assert key in made[part], (part, key)
    for paired in made["paired"].values():
        assert {"difference", "low", "high", "p_value", "n"} <= paired.keys()
    assert {"accuracy", "n"} <= made["before"]["mcq"].keys()
    assert isinstance(made["before"]["nll"], float)
    words = {"improved", "no evidence", "worse"}
    assert {made["verdict"]["nll"], made["verdict"]["mcq"]} <= words


def test_without_questions_nothing_is_said_of_them() -> None:
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam, seed=2))
    assert "mcq" not in made["verdict"]
    assert "mcq" not in made["paired"]
    assert "multiple" not in made["verdict"]["sentence"].lower()
    assert "## Multiple choice" not in render(made)


def test_a_side_that_was_not_scored_in_full_is_refused() -> None:
    exam = suite_of()
    with pytest.raises(InputError, match=r"after\.jsonl.*3 of the rows"):
        build_report(rows(exam), rows(exam)[:-3], exam, SETTING)


def test_the_order_of_rows_on_disk_does_not_matter() -> None:
    exam = suite_of(sets=("one",))
    before, after = rows(exam), rows(exam, shift=0.01, seed=2)
    shuffled = random.Random(0).sample(after, len(after))
    assert report(exam, before, after) == report(exam, before, shuffled)


# --- the page --------------------------------------------------------------------------------


def test_the_page_has_its_parts_in_order() -> None:
    exam = suite_of(sets=("one", "two"))
    made = report(exam, rows(exam), rows(exam, shift=0.1, seed=2), leaks=[leak("x")])
    page = render(made)
    headings = re.findall(r"^##? (.*)$", page, re.MULTILINE)
    assert headings == [
        "Did the fine-tuning help?",
        "Before and after",
        "Cautions",
        "Multiple choice by set",
        "What this run could have shown",
        "The same question, before and after",
        "Rows that got better",
        "Rows that got worse",
        "Training rows left out: 1",
        "Setting",
    ]
    assert made["verdict"]["sentence"] in page
    assert "1 training row also stood in what is evaluated" in page
    assert page.count("\n### ") == 5


def leak(case_id: str, evaluation_id: str = "q1", **changes: Any) -> Overlap:
    return replace(Overlap(case_id, "one", evaluation_id, "shared text", 0.64), **changes)


def test_what_was_left_out_is_listed_and_counted() -> None:
    exam = suite_of(sets=("one",))
    leaks = [leak(f"row-{n}") for n in range(12)] + [leak("row-0", kind="same question", share=1.0)]
    withheld = [leak("c999", "q7")]
    made = report(exam, rows(exam), rows(exam), leaks, withheld)
    assert made["leaks"] == [asdict(one) for one in leaks]
    assert made["withheld"] == [asdict(one) for one in withheld]
    page = render(made)
    assert "12 training rows also stood in what is evaluated" in page  # rows, not hits
    assert "1 question of sets added after the training stood in training rows: left out" in page
    assert "| row-3 | one | q1 | text, 64 % of the shorter one |" in page
    assert "And 3 more, in `report.json`." in page
    assert "## Questions left out, as they were trained on: 1\n\n" in page
    assert "| c999 | one | q7 |" in page


def test_questions_that_changed_sides_are_counted_and_the_first_shown() -> None:
    exam = suite_of(sets=("one",), questions=40)
    before, after = rows(exam, right=0.5), rows(exam, right=0.7)
    before, after = (
        [replace(row, choice="B" if row.correct else "A") for row in side]
        for side in (before, after)
    )
    after[-40] = replace(after[-40], correct=False, choice=None)
    made = report(exam, before, after)
    changed = made["changed_questions"]
    assert (changed["became_right"]["n"], changed["became_wrong"]["n"]) == (8, 1)
    page = render(made)
    assert "8 questions became right, the first 5 of them:" in page
    assert "| one | Which 20? | B. two | A | B |" in page
    assert "1 question became wrong:\n\n" in page
    assert "| one | Which 0? | B. two | B | none |" in page
    same = report(exam, before, before)
    assert "## Questions that changed sides" not in render(same)


def test_without_a_difference_it_says_how_many_questions_five_points_would_take() -> None:
    exam = suite_of(sets=("one",), questions=40)
    side = rows(exam)
    made = report(exam, side, side)
    needed = made["paired"]["mcq"]["needed_for_5_points"]
    assert needed > 40
    page = render(made)
    assert f"To find a change of 5 points four times out of five takes about {needed:,}" in page


def by_lm_eval(side: list[ScoredRow], name: str, wrong: int = 0) -> list[ScoredRow]:
    asked = [row for row in side if row.set == name]
    return side + [
        replace(
            row,
            set=f"lm_eval/{name}",
            metric="acc",
            correct=row.correct if place >= wrong else not row.correct,
        )
        for place, row in enumerate(asked)
    ]


def test_a_set_that_lm_eval_answered_too_counts_once_and_says_how_far_they_agree() -> None:
    exam = suite_of(sets=("one",), questions=40)
    before, after = rows(exam, right=0.5), rows(exam, right=0.6)
    made = report(exam, by_lm_eval(before, "one"), by_lm_eval(after, "one", wrong=3))
    assert made["paired"]["mcq"]["n"] == made["before"]["mcq"]["n"] == 40
    assert made["before"]["mcq"]["accuracy"] == 0.5
    assert list(made["paired"]["mcq"]["sets"]) == ["one", "lm_eval/one"]
    assert made["lm_eval_agreement"] == {"one": {"before": 40, "after": 37, "n": 40}}
    assert "alike, right or wrong: 40 of 40 before and 37 of 40 after" in render(made)
    other = [
        replace(row, set=row.set.replace("lm_eval/one", "lm_eval/elsewhere"))
        for row in by_lm_eval(before, "one")
    ]
    assert report(exam, other, other)["paired"]["mcq"]["n"] == 80


def test_every_report_says_once_that_it_is_not_medical_advice() -> None:
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam))
    advice = say("research_output", "en")
    assert render(made).count(advice) == 1
    assert made["not_medical_advice"] == advice
    assert "\n" not in advice


def test_five_rows_each_way_stand_beside_their_reference_readable_ones_first() -> None:
    exam = suite_of(cases=40)
    after = rows(exam, seed=2)
    made = report(exam, rows(exam), after)
    for field, sign in (("better_rows", -1), ("worse_rows", 1)):
        assert len(made[field]) == 5
        assert all(row["difference"] * sign > 0 for row in made[field])
        read = [row["after"] is not None for row in made[field]]
        assert read == sorted(read, reverse=True)
    assert "| reference | before | after |" in render(made)
    assert escape(made["better_rows"][0]["reference"]) in render(made)


def test_truncated_answers_and_unclosed_thoughts_are_told_of() -> None:
    exam = suite_of(cases=3)
    before, after = rows(exam), rows(exam, say="no end to this thou")
    after = [row if row.output is None else replace(row, finished=False) for row in after]
    page = render(report(exam, before, after))
    assert "0 before and 4 after reached 160 tokens and were cut off" in page
    assert "No thought was closed after" in page
    assert "(no answer: the thought never closed)" in page


def test_accuracy_like_guessing_is_called_so() -> None:
    exam = suite_of(sets=("one",))
    near = report(exam, rows(exam, right=0.25), rows(exam, right=0.3))
    assert "neither before (14.2 to 40.2 %) nor after (18.1 to 45.4 %)" in render(near)
    assert "is told apart from guessing (25.0 %)" in render(near)
    far = report(exam, rows(exam, right=0.9), rows(exam, right=0.95))
    assert "guessing (" not in render(far)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=http://evil.example/x.png onerror=alert(1)>",
    "![tracker](http://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "http://evil.example and www.evil.example and <http://evil.example>",
    "| a | b |\n| -- | -- |",
    "# A heading\n\n## Did the fine-tuning help?\n\n**Yes, improved.**",
    "```\nfence\n```",
    "~~~\nfence",
    "> quote\n- list\n1. list",
    "$$\\href{javascript:alert(1)}{x}$$ &lt;b&gt; &amp;",
    "</td></tr></table><h1>x</h1>",
    "back\\slash \\| pipe `code` *star* _line_ [ref]: http://evil.example",
    "line\u2028separator\u0000null\x1b[31mred\r\ncarriage",
]


def rendered(page: str) -> tuple[set[str], str]:
    """The tags of the page as a Markdown reader with HTML and bare links makes them; its text."""
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(page)
    return set(re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", html)), html


OURS = {"h1", "h2", "h3", "p", "em", "strong", "blockquote", "ul", "li", "code", "br", "hr"} | {
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_models_and_data_stay_text(text: str) -> None:
    exam = suite_of(cases=16, sets=(f"set {text}",), text=text)
    say = f"{text}</think>{text}\n{text}"
    made = report(exam, rows(exam, say=say), rows(exam, shift=0.05, seed=2, say=say))
    tags, html = rendered(render(made))
    assert tags <= OURS
    assert all(sign.isprintable() or sign == "\n" for sign in html)
    plain = suite_of(cases=16, sets=("set",))
    other = report(plain, rows(plain), rows(plain, shift=0.05, seed=2))
    assert html.count("<h2") == rendered(render(other))[1].count("<h2")
    assert html.count("<tr") == rendered(render(other))[1].count("<tr")
    assert html.count("<td") == rendered(render(other))[1].count("<td")


def test_bare_links_are_not_made_live() -> None:
    assert "http:" not in escape("see http://evil.example or HTTPS://evil.example")
    assert "www." not in escape("see www.evil.example")


# --- figures ---------------------------------------------------------------------------------

EVENTS = [{"step": n, "loss": 3 / n} for n in range(1, 13)]


@pytest.mark.skipif(not can_draw(), reason="altair and vl-convert are not installed")
def test_figures_are_written_and_shown(tmp_path: Path) -> None:
    exam = suite_of(sets=("one", "two"))
    made = report(exam, rows(exam), rows(exam, shift=0.1, seed=2))
    written = write_figures(report_from_json(made), EVENTS, tmp_path)
    names = ["loss.svg", "differences.svg", "accuracy.svg"]
    assert [one.file for one in written] == [f"figures/{name}" for name in names]
    page = render(made | {"figures": [asdict(one) for one in written]})
    for name in names:
        path = tmp_path / "figures" / name
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        assert "nats per token" in path.read_text() or "percentage points" in path.read_text()
        assert f"(figures/{name})" in page
        chinese = path.with_name(f"{path.stem}-zh.svg").read_text(encoding="utf-8")
        assert say(f"figure_{path.stem}", "zh") in chinese


@pytest.mark.skipif(not can_draw(), reason="altair and vl-convert are not installed")
def test_no_figure_is_drawn_of_nothing(tmp_path: Path) -> None:
    exam = make_suite(SETTING, [], None, {})
    made = report(exam, [], [])
    assert write_figures(report_from_json(made), [], tmp_path) == ()
    assert made["verdict"]["nll"] == "no evidence"
    assert "## Figures" not in render(made)


def test_without_the_packages_there_is_a_report_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medcot.reporting.figures.can_draw", lambda: False)
    exam = suite_of()
    made = report(exam, rows(exam), rows(exam))
    assert write_figures(report_from_json(made), EVENTS, tmp_path) == ()
    assert "## Figures" not in render(made)


# --- answers that cannot be read, and claims of test rows -------------------------------------


def test_unread_answers_stand_as_a_rate_with_a_caution_where_it_changes() -> None:
    exam = suite_of(sets=["exam"])
    before, after = rows(exam, right=0.5), rows(exam, right=0.9, seed=2)
    made = report(exam, before, after)
    page = render(made)
    assert "20 stated no clear letter, 50.0 %" in page
    assert "4 stated no clear letter, 10.0 %" in page
    assert "about how answers are written" in page
    assert "about how answers are written" not in render(report(exam, before, rows(exam)))


def test_claims_of_test_rows_are_counted_before_and_after() -> None:
    exam = suite_of()

    def claim(made: list[ScoredRow], stated: int) -> list[ScoredRow]:
        found = (ClaimFinding("rest is advised", "states"),)
        full = [row.id for row in made if row.kind == "case" and row.output]
        return [
            replace(row, claims=found, correct=row.id in full[:stated]) if row.id in full else row
            for row in made
        ]

    made = report(exam, claim(rows(exam), 2), claim(rows(exam, seed=2), 11))
    assert made["before"]["claims_rate"] == pytest.approx(2 / 12)
    assert made["paired"]["claims_rate"]["p_value"] < 0.05
    assert "states every claim" in render(made)
    assert "claims_rate" not in report(exam, rows(exam), rows(exam, seed=2))["paired"]
