"""The layer that a page trains by hand: its numbers are the library's own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from medcot.config.presets import make_config
from medcot.engines.loading import load_base
from medcot.inference.ask import inference_plan
from medcot.inference.loglikelihood import _score_ids, never_stop
from medcot.notebook import controls, lesson, preview
from medcot.notebook.views import lessons
from medcot.notebook.views.evidence import report_to_show
from medcot.notebook.views.prose import cell_sources
from medcot.runs.history import bundled_run
from medcot.stats.paired import compare_means
from tests.notebook.test_app import NOTEBOOK, load_app, told
from tests.support.fakes import make_tiny_model


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = make_tiny_model(tmp_path_factory.mktemp("lesson") / "model")
    return make_config("demo", {"model": str(model), "samples": 8, "rank": 4, "test_samples": 4})


def test_the_layer_gives_the_loss_that_the_whole_model_gives(config):
    from torch.nn.functional import cross_entropy

    material = preview.load_material(config)
    rows = list(material.rows.values())[:3]
    layer = lesson.prepare_layer(config, rows)
    whole = load_base(config, inference_plan(config))
    expected = _score_ids(
        whole, [(row.prompt_ids, row.completion_ids[: lesson.LONGEST]) for row in rows], never_stop
    )
    for row, loss in zip(rows, expected, strict=True):
        kept = layer.rows[row.id]
        logits = layer.head(layer.norm(kept.residual + kept.inputs @ layer.weight.T))
        found = cross_entropy(logits, kept.targets, reduction="sum").item()
        assert found == pytest.approx(loss.total, rel=1e-4)
        assert len(kept.targets) == loss.tokens


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pairs_of_a_run_give_the_difference_of_its_report(language):
    run = bundled_run(language)
    report = report_to_show(run)
    pairs = lesson.read_pairs(run, report)
    assert len(pairs) == report.paired.nll.n
    tokens = sum(pair.tokens for pair in pairs)
    change = sum(pair.after - pair.before for pair in pairs) / tokens
    assert change == pytest.approx(report.paired.nll.difference, abs=2e-3)


def test_a_run_whose_test_rows_are_not_known_any_more_has_no_pairs():
    """Any other mean over its rows would not be the one that its report states."""
    run = bundled_run("en")
    report = report_to_show(run)
    lost, *others = report.differences
    changed = replace(report, differences=(replace(lost, id="lost"), *others))
    assert lesson.read_pairs(run, changed) == []


def test_the_interval_shrinks_with_the_number_of_rows():
    pairs = tuple(
        lesson.PairedLoss(str(n), 100.0 + n % 7, 90.0 + (n * 3) % 11, 50) for n in range(40)
    )
    curve = lessons.interval_curve(pairs)
    assert [one.n for one in curve][::15] == [2, 40]
    assert curve[-1].high - curve[-1].low < curve[4].high - curve[4].low
    page = lessons.show_interval(pairs, compare_means([2.0, 3.0], [1.0, 1.5]), "en")
    assert "by the number of test rows" in page


def test_the_lesson_runs_from_the_layer_to_an_answer(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "start": controls.Start(config, "en"),
        "lesson_opened": True,
        "offer_lesson": None,
        "load_small": None,
        "practise": SimpleNamespace(value=True),
    }
    outputs, values = load_app().run(defs=given)
    assert len(values["with_it"]) == 2
    assert values["with_it"][0] != values["with_it"][1], "two seeds are two adapters"
    run = values["practised"].value
    assert run is not None, values["practised"].failure
    assert (run.adapter / "adapter_model.safetensors").exists()
    page = told(outputs)
    assert "became likelier by this one step" in page
    assert "The adapter is in" in page
    assert page.count("Generated text; not medical advice") >= 3


def test_the_lesson_has_twelve_to_fifteen_cells_with_prose_before_each():
    source = NOTEBOOK.read_text(encoding="utf-8")
    visible = source.count("\n@app.cell\n")
    assert 12 <= visible <= 15
    for cell in source.split("\n@app.cell\n")[1:]:
        name = cell.removeprefix("def ").partition("(")[0]
        before = source.partition(f"\n@app.cell\ndef {name}(")[0].rpartition("@app.cell")[2]
        assert f'code="{name}"' in source, f"no prose tells of {name}"
        assert "tell(" in before or "show(" in before


def test_the_code_of_a_cell_is_shown_without_its_frame():
    shown = cell_sources(NOTEBOOK.read_text(encoding="utf-8"))["give_the_verdict"]
    assert shown.startswith("# A direction only if")
    assert "return" not in shown
    assert shown.splitlines()[-1].startswith("show(")
