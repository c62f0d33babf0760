"""The paired table of two runs: what is compared, what is left out and said, what is refused."""

import json
from dataclasses import replace

import pytest

from medcot.cli.main import main
from medcot.comparing.rows import compare_sides
from medcot.comparing.sides import choose_sides
from medcot.comparing.wording import describe_comparison
from medcot.errors import InputError
from medcot.evaluation.scorers import make_row
from medcot.reporting.schema import MEASURES
from medcot.runs.directory import RunDirectory
from medcot.stats.paired import compare_means
from tests.support.scored_runs import CASES, LOWER, case, choice, make_scored_run


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that makes a run of a name with scored rows."""

    def make(name, after, before=(), **options):
        return make_scored_run(tmp_path / name, after, before, **options)

    return make


def compare(*runs):
    return compare_sides(*choose_sides(runs))


def test_the_loss_of_two_runs_is_compared_in_pairs(make_run):
    found = compare(make_run("a", CASES, rank=16), make_run("b", list(reversed(LOWER)), rank=4))
    losses = found.measures[0]
    expected = compare_means(
        [row.nll_sum for row in CASES], [row.nll_sum for row in LOWER], [10] * 12, seed=3407
    )
    assert losses.measure == "nll"
    assert losses.paired == expected
    assert losses.second - losses.first == pytest.approx(expected.difference)
    assert losses.verdict == "improved"
    assert found.rows == 12
    of_a_report = {"mcq", "abilities", "thought_gain", "thought_harm", "claims_rate"}
    assert [one.measure for one in found.measures] == [
        one for one in MEASURES if one not in of_a_report
    ]
    assert ("rank", 16, 4) in found.settings
    text = "\n".join(describe_comparison(found))
    assert "a against b, over 12 shared test rows and 0 shared questions" in text
    assert "Test loss (nats per token): b is better than a." in text
    assert "rank: 16, and 4" in text
    assert "another seed" in text


def test_general_items_of_two_runs_are_compared(make_run):
    def with_items(passed):
        items = [make_row("ability", "knowledge", f"i{n}", "p") for n in range(30)]
        return [*CASES, *(replace(row, correct=n < passed) for n, row in enumerate(items))]

    found = compare(make_run("a", with_items(25)), make_run("b", with_items(8)))
    (items,) = [one for one in found.measures if one.measure == "abilities"]
    assert items.verdict == "worse"
    assert (round(items.first * 30), round(items.second * 30)) == (25, 8)


@pytest.mark.parametrize(
    "row",
    [replace(make_row("ability", "knowledge", "i", "p"), correct=True), choice(1, correct=True)],
)
def test_general_items_and_generated_choices_with_another_limit_are_not_compared(make_run, row):
    runs = [
        make_run(name, [row], mcq_method="generate", max_new_tokens=limit)
        for name, limit in (("a", 64), ("b", 96))
    ]
    found = compare(*runs)
    assert not found.measures
    assert "compare_other_limit" in [note.code for note in found.notes]


def test_the_better_one_is_named_whichever_comes_first(make_run):
    found = compare(make_run("a", LOWER), make_run("b", CASES))
    assert "a is better than b" in "\n".join(describe_comparison(found))
    same = compare(make_run("c", CASES), make_run("d", CASES))
    assert "no evidence that d and c differ" in "\n".join(describe_comparison(same))
    assert "没有证据表明 d 与 c 有差别" in "\n".join(describe_comparison(same, "zh"))


def test_one_run_is_compared_with_its_base(make_run):
    found = compare(make_run("a", LOWER, before=CASES))
    assert (found.first, found.second, found.measures[0].verdict) == ("base", "tuned", "improved")
    assert found.settings == ()
    assert "another seed" not in "\n".join(describe_comparison(found))


def test_right_answers_are_compared_without_those_of_lm_eval(make_run):
    mine = [choice(n, n < 2) for n in range(20)]
    theirs = [choice(n, n < 18) for n in range(20)]
    again = choice(99, True, set="lm_eval/sample")
    found = compare(make_run("a", [*CASES, *mine, again]), make_run("b", [*LOWER, *theirs, again]))
    mcq = next(one for one in found.measures if one.measure == "mcq")
    assert (mcq.first, mcq.second, mcq.paired.n, mcq.verdict) == (0.1, 0.9, 20, "improved")
    assert found.questions == 20


def test_only_shared_rows_are_compared_and_the_others_counted(make_run):
    found = compare(make_run("a", CASES), make_run("b", [*LOWER[:9], case(77, 9.0)]))
    assert found.rows == 9
    text = "\n".join(describe_comparison(found))
    assert "3 rows that only a has are left out." in text
    assert "1 rows that only b has" in text


def test_what_means_something_else_is_left_out_and_said(make_run):
    first = make_run("a", [*CASES, choice(1, True)])
    limit = compare(first, make_run("b", LOWER, max_new_tokens=99))
    assert [one.measure for one in limit.measures] == ["nll"]
    assert "Answers are not compared: their limits are" in "\n".join(describe_comparison(limit))
    other = [replace(row, completion_tokens=9) for row in LOWER]
    tokens = compare(first, make_run("c", other))
    assert "nll" not in [one.measure for one in tokens.measures]
    assert "other tokens" in "\n".join(describe_comparison(tokens))
    asked = [*LOWER, choice(1, True)]
    method = compare(first, make_run("d", asked, mcq_method="generate"))
    assert "mcq" not in [one.measure for one in method.measures]
    assert "other methods (likelihood, generate)" in "\n".join(describe_comparison(method))


def test_runs_that_were_asked_otherwise_are_refused_by_name(make_run):
    first = make_run("a", CASES)
    other = [replace(row, prompt="### Question") for row in LOWER]
    with pytest.raises(InputError) as refused:
        compare(first, make_run("b", other, style="tutorial"))
    assert "row 'case-0': its prompt is not that of a (style is 'tutorial', there 'chat')" in str(
        refused.value
    )
    with pytest.raises(InputError, match="none of its test rows is one of a"):
        compare(first, make_run("c", [case(n, 1.0) for n in range(50, 60)]))
    keyed = make_run("d", [choice(1, True)])
    with pytest.raises(InputError, match="its key is not that of d"):
        compare(keyed, make_run("e", [choice(1, True, key="B")]))


def test_a_run_that_is_not_scored_or_destroyed_is_refused(make_run):
    first = make_run("a", CASES)
    with pytest.raises(InputError, match="it was not scored after training; score it: medcot ev"):
        compare(first, make_run("b", []))
    with pytest.raises(InputError, match="it was not scored before training"):
        compare(first)
    with pytest.raises(InputError, match="its loss is not finite"):
        compare(first, make_run("c", [replace(LOWER[0], nll=float("nan"))]))


def test_sides_are_two_runs_or_one(make_run, tmp_path):
    first = make_run("a", CASES)
    with pytest.raises(InputError, match="it is named twice"):
        choose_sides([first, RunDirectory(tmp_path / "x" / ".." / "a")])
    with pytest.raises(InputError, match="found 3 runs"):
        choose_sides([first, first, first])
    alike = make_run("x/a", CASES)
    assert [one.label for one in choose_sides([first, alike])] == [str(first.path), str(alike.path)]


def test_the_command_prints_the_table_or_facts(make_run, capsys):
    runs = [make_run("a", CASES), make_run("b", LOWER)]
    options = [word for run in runs for word in ("--run", str(run.path))]
    main(["compare", *options])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["Measure", "a", "b", "Difference", "95", "%", "interval", "p", "n"]
    assert lines[3].startswith("test loss (nats per token)")
    assert lines[3].split()[5:8] == ["2.550", "2.222", "−0.327"]
    main(["compare", *options, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["paired"]["nll"]["verdict"] == "improved"
    assert facts["paired"]["nll"]["n"] == 12
    assert facts["first"] == "a"
