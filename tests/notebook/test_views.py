"""What pages show: escaped whatever it is, in two whole languages, true to the numbers."""

import json
import re
import string
import threading
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.catalog import duration, say, words
from medcot.config.presets import PRESETS, make_config
from medcot.config.schema import RunConfig
from medcot.evaluation.interface import ScoredRow
from medcot.hardware.machine import named_machine
from medcot.notebook import jobs, preview
from medcot.notebook.controls import MACHINES, explain
from medcot.notebook.results import ErrorText, attempt
from medcot.notebook.views import answers, charts, evidence, pages, plans, rows, training
from medcot.notebook.views.elements import make_elements
from medcot.notebook.views.markup import table, text
from medcot.notebook.views.prose import read_prose
from medcot.planning.model_specs import SMOLLM2_135M, find_model_spec
from medcot.planning.plan import make_plan
from medcot.reporting.schema import Answer, Verdicts
from medcot.reporting.storage import read_test_losses
from medcot.runs import history
from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_case
from tests.support.paths import ROOT

APPS = ROOT / "apps"
HOSTILE = "</div><script>alert(1)</script><img src=x onerror='a'>\u202e\x00"
TAGS = re.compile(r"<(script|img|iframe|svg onload|a )", re.IGNORECASE)


@given(st.text())
def test_no_text_can_open_a_tag_or_an_entity(value):
    shown = text(value)
    assert not set("<>\"'") & set(shown)
    assert "\u202e" not in shown


def test_every_view_of_a_hostile_row_is_harmless():
    case = make_case(1, id=HOSTILE, question=HOSTILE, thought=HOSTILE, response=HOSTILE)
    reply = {"thought": HOSTILE, "answer": HOSTILE, "closed": True, "finished": False, "tokens": 3}
    answer = Answer(**reply)
    reply |= {"question": HOSTILE, "base": True}
    shown = [
        rows.show_case(case, "en"),
        rows.show_cases([case], {}, 1, 1, "zh"),
        rows.show_failure(ErrorText("input", HOSTILE, HOSTILE, HOSTILE), "en"),
        answers.show_own_answer(reply, "en"),
        answers.compare_replies(answer, replace(answer, answer=f"{HOSTILE} more"), "zh"),
    ]
    for page in shown:
        assert not TAGS.search(page)
        assert page.count("<div") == page.count("</div")


@given(st.text(), st.text())
def test_a_comparison_marks_but_never_changes_a_text(one, other):
    left, right = answers.mark_differences(one, other)
    for page, original in ((left, one), (right, other)):
        plain = re.sub(r"</?(div|ins|del)[^>]*>", "", page)
        assert plain == text("".join(answers._words(original)))


def test_a_comparison_marks_what_differs():
    left, right = answers.mark_differences("residual volume is normal", "residual volume is high")
    assert "<del>normal</del>" in left
    assert "<ins>high</ins>" in right


def test_pieces_of_tokens_put_characters_together_again():
    material = preview.load_material(make_config("demo", {"language": "zh"}))
    row = next(iter(material.rows.values()))
    pieces = list(rows.pieces_of(material.tokenizer, row.completion_ids))
    assert "".join(pieces) == material.tokenizer.decode(row.completion_ids)
    assert "\ufffd" not in "".join(pieces)


def test_both_languages_have_the_same_words_with_the_same_places():
    english, chinese = words("en"), words("zh")
    fields = {f"help_{field}" for field in RunConfig.model_fields}
    assert english.keys() == chinese.keys() - fields
    for key, value in english.items():
        places = {name for _, name, _, _ in string.Formatter().parse(value) if name}
        theirs = {name for _, name, _, _ in string.Formatter().parse(chinese[key]) if name}
        assert places == theirs, key


def test_both_languages_tell_the_same_sections_with_the_same_formulas():
    english, chinese = (read_prose(APPS, language) for language in ("en", "zh"))
    assert list(english.sections) == list(chinese.sections)
    for key in english.sections:
        formulas = [
            sorted(re.findall("<math.*?</math>", prose.body(key))) for prose in (english, chinese)
        ]
        assert formulas[0] == formulas[1], key
        assert re.search("[\u4e00-\u9fff]", chinese.body(key))


def test_every_sentence_of_the_planner_is_said_in_chinese_too():
    changes = [{}, {"packing": "off"}, {"quantization": "4bit"}, {"checkpointing": "on"}]
    changes += [{"precision": "fp16"}, {"engine": "transformers"}, {"samples": 1, "steps": 900}]
    said = set()
    for preset in PRESETS:
        for name in MACHINES[1:]:
            for gpus in (("bitsandbytes", "unsloth"), ("bitsandbytes",), ("flash_attn",), ()):
                machine = replace(named_machine(name), packages=gpus, processes=1)
                for machine_here in (machine, replace(machine, gpus=(), system="Darwin arm64")):
                    for change in changes:
                        config = make_config(preset, change)
                        shape = find_model_spec(config)
                        planned = attempt(make_plan, config, machine_here, shape, 500, 788, 2048)
                        if planned.failure:
                            said |= {planned.failure.what, planned.failure.remedy}
                        else:
                            said |= {*planned.value.reasons, *planned.value.warnings}
    assert len(said) > 40
    chinese = [one.text("zh") for one in said]
    assert [one for one in chinese if not re.search("[\u4e00-\u9fff]", one)] == []
    assert "weights" not in "".join(chinese)


def test_every_control_has_its_explanation_in_both_languages():
    for preset in ("demo", "gpu-24g"):
        for field in make_elements(make_config(preset), editing=False):
            assert explain(field, "en").endswith(".")
            assert re.search("[\u4e00-\u9fff]", explain(field, "zh"))
    assert explain("rank", "en") == "LoRA rank: the width of the update."


def test_the_lora_view_gives_the_exact_count():
    config = make_config("demo", {"rank": 8, "alpha": 32})
    page = plans.show_lora(SMOLLM2_135M, config, "en")
    assert "2,442,240" in page
    assert "32/8 = 4" in page


def test_the_memory_bar_is_as_long_as_the_machine():
    config = make_config("kaggle-t4")
    plan = make_plan(config, named_machine("T4"), find_model_spec(config), 500, 788, 2048)
    page = plans.show_plan(plan, "en")
    widths = [float(found) for found in re.findall(r"width:([\d.]+)%", page)]
    assert len(widths) == 7
    assert sum(widths) == pytest.approx(100 * plan.peak_gib / plan.limit_gib, rel=0.01)


def test_the_command_repeats_the_settings_and_quotes_them():
    config = make_config("kaggle-t4", {"rank": 32, "dataset": "my rows.jsonl"})
    line = plans.command_line(config, make_config("kaggle-t4"), "medcot kaggle run")
    assert line == ("medcot kaggle run --preset kaggle-t4 --dataset 'my rows.jsonl' --rank 32")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_evidence_shows_worse_rows_before_better_ones_and_the_disclaimer(language):
    report = evidence.report_to_show(history.bundled_run(language))
    worse = replace(report.better_rows[0], nll_after=9.0, difference=5.0)
    page = evidence.show_details(replace(report, worse_rows=(worse,)), language)
    assert page.index(say("worse_rows", language)) < page.index(say("better_rows", language))
    assert say("not_medical_advice", language) in page


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_outcome_tells_what_the_answer_must_say_and_whether_it_does(language):
    run = history.bundled_run(language)
    report = evidence.report_to_show(run)
    page = evidence.show_outcome(report, run, language)
    for finding in report.fixed_question.claims.after:
        assert escape(finding.claim) in page
        assert say(f"finding_{finding.finding}", language) in page


@pytest.mark.parametrize("verdict", ["improved", "no evidence", "worse"])
def test_a_verdict_is_said_as_the_report_has_it(verdict):
    report = evidence.report_to_show(history.bundled_run("en"))
    page = evidence.show_verdict(replace(report, verdict=Verdicts(nll=verdict)), "en")
    said = {"improved": "improved", "no evidence": "no evidence of a change", "worse": "worse"}
    assert f": {said[verdict]}</b>" in page


def test_a_figure_has_words_that_stand_for_it_and_follows_the_pages_colours():
    run = history.bundled_run("en")
    page = charts.draw_loss(run.events, "en")
    assert f"Training loss over {len(run.events)} steps" in page
    assert "currentColor" in page
    assert charts.draw_loss((), "en") == ""


def test_the_loss_of_the_test_rows_stands_beside_that_of_training(tmp_path):
    run = history.bundled_run("en")
    report = evidence.report_to_show(run)
    known = read_test_losses(RunDirectory(run.path))
    assert known == {"before": report.before.nll, "after": report.after.nll}
    for said in (f"test rows, before training: {known['before']:.3f}", "test rows, after training"):
        assert training.show_finished(run, "en").count(said) >= 2, "in the drawing and its words"
    # Of a run that trains just now, only what was scored before it.
    directory = RunDirectory(tmp_path)
    assert read_test_losses(directory) == {}
    rows = [
        ScoredRow("case", "", f"row{n}", "?", nll=n, nll_sum=n * 10, completion_tokens=10)
        for n in (1.0, 2.0)
    ]
    directory.evaluation("before").parent.mkdir()
    lines = (json.dumps(asdict(row)) + "\n" for row in rows)
    directory.evaluation("before").write_text("".join(lines))
    assert read_test_losses(directory) == {"before": 1.5}
    assert "after training" not in charts.draw_loss(run.events, "en", test={"before": 1.5})


def test_the_drawing_engine_is_started_once_and_beside_the_page():
    charts.warm_up.cache_clear()
    before = set(threading.enumerate())
    assert [charts.warm_up(), charts.warm_up()] == [None, None], "a cell would show anything else"
    started = [one for one in set(threading.enumerate()) - before if one.name == "medcot-charts"]
    assert len(started) <= 1
    for thread in started:
        thread.join(30)
        assert not thread.is_alive()


def test_long_curves_are_thinned_but_keep_their_ends():
    events = [{"step": n, "loss": 1 / n} for n in range(1, 50_001)]
    kept = charts._thinned(events)
    assert len(kept) < 700
    assert (kept[0]["step"], kept[-1]["step"]) == (1, 50_000)


def test_two_runs_are_compared_by_what_differs():
    one, other = (history.bundled_run(language) for language in ("en", "zh"))
    page = evidence.compare_runs(one, other, "en")
    assert "<code>language</code>" in page
    assert "<code>seed</code>" not in page


def test_a_table_without_a_head_has_none():
    assert "<thead" not in table(["", ""], [("a", "b")])


def test_a_run_is_laid_beside_the_bundled_one_of_its_language_and_never_beside_itself():
    english, chinese = (history.bundled_run(language) for language in ("en", "zh"))
    own = replace(english, name="mine", path=Path("mine"))
    assert history.companion(own).name == english.name
    assert history.companion(english).name == chinese.name
    assert history.companion(chinese).name == english.name


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_running_job_shows_the_whole_run_and_that_it_is_being_cancelled(language):
    job = jobs.Job(make_config("demo"), None, "me")
    listener = jobs.JobListener(job)
    listener.planned({"before": 40.0, "training": 60.0, "after": 40.0})
    listener.stage("before")
    listener.progress(0, 51)
    listener.answering(3, 16, 1204, 2560)
    page = training.show_job(job, language)
    assert say("doing_answers", language, done=3, total=16, tokens=1204) in page
    assert say("whole_run", language, share=0, time=duration(140, language))[:3] in page
    assert 'max="1"' in page
    assert "aria-label=" in page
    job.cancel()
    page = training.show_job(job, language)
    assert say("training_cancelling", language) in page
    assert "1,204" not in page
    job.state = "cancelled"
    assert not job.is_cancelling


def test_a_notebook_alone_takes_its_words_and_style_from_the_package(tmp_path):
    for language in ("en", "zh"):
        assert read_prose(tmp_path, language) == read_prose(ROOT / "apps", language)
    assert pages.own_style(ROOT / "apps") is None
    for folder in (tmp_path, None):
        assert ".mc-" in pages.own_style(folder).text
