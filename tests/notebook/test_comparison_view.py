"""The paired table of two runs on a page."""

import pytest

from medcot.notebook.views.comparison import show_paired
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
