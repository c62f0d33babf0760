"""The paired table of two runs on a page."""

import pytest

from medcot.comparing import answers
from medcot.inference.ask import StreamedReply
from medcot.notebook import jobs
from medcot.notebook.results import attempt
from medcot.notebook.views import pages
from medcot.notebook.views.answers import show_own_answer
from medcot.notebook.views.comparison import show_paired
from medcot.runs.directory import RunDirectory
from medcot.runs.history import bundled_run, read_run
from tests.support.scored_runs import CASES, LOWER, make_scored_run


@pytest.fixture
def runs(tmp_path):
    made = {"a": (CASES,), "b<i>": (LOWER, CASES), "empty": ((),)}
    found = {}
    for name, rows in made.items():
        found[name] = read_run(make_scored_run(tmp_path / name, *rows).path)
    return found


def test_two_runs_are_shown_in_pairs_in_both_languages(runs):
    page = show_paired(runs["a"], runs["b<i>"], "en")
    assert "b&lt;i&gt; is better than a." in page
    assert "<i>" not in page
    assert '<span class="mc-number">2.222</span>' in page
    assert "another seed" in page
    assert "b&lt;i&gt; 优于 a" in show_paired(runs["a"], runs["b<i>"], "zh")


def test_one_run_twice_is_its_base_against_its_tuned_model(runs):
    page = show_paired(runs["b<i>"], runs["b<i>"], "en")
    assert "tuned is better than base" in page


def test_runs_that_cannot_be_compared_say_why(runs):
    page = show_paired(runs["a"], runs["empty"], "en")
    assert "it was not scored after training" in page
    assert show_paired(runs["a"], bundled_run("en"), "en") == ""


def test_both_models_answer_one_question_and_stand_side_by_side(runs, monkeypatch):
    """The page shows them as they grow, the second one in its place from the beginning."""

    def ask(_directory, _question, *, base, max_new_tokens):
        for said in ("Flu", "Flu or <i>cold</i>" if base else "Flu."):
            yield StreamedReply("A cough", said, True, True, 3, 9)

    monkeypatch.setattr(answers, "ask", ask)
    directory = RunDirectory(runs["a"].path)
    directory.adapter.mkdir()
    (directory.adapter / "adapter_config.json").write_text("{}")
    seen = []
    reply = jobs.RUNNER.answer_both(
        directory, "Why?", show=lambda one: pages.show_growing(seen.append, one)
    )
    growing = [page.text for page in seen]
    assert [page.count("A cough") for page in growing] == [1, 1, 2, 2]
    assert all(page.count("…") == (at < 2) for at, page in enumerate(growing))
    page = show_own_answer(reply, "en")
    assert page.index("Base model") < page.index("Tuned model")
    assert "<i>" not in page
    assert "medical advice" in page
    long = "x" * (jobs.LONGEST_QUESTION + 1)
    assert "8,001 characters" in str(attempt(jobs.RUNNER.answer_both, directory, long).failure)
