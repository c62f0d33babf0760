"""The notebook's values, without a browser: the same as the engine's, and alive after errors."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from marimo._cli.parse_args import parse_args

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig, bounds
from medcot.data.prompts import render
from medcot.data.tokenization import chat_template, encode
from medcot.engines.bundled_model import bundled_model
from medcot.errors import InputError, RunFailed
from medcot.hardware.machine import detect_machine, named_machine
from medcot.notebook import controls, jobs, preview
from medcot.notebook.results import attempt
from medcot.pipeline.prepare import plan_only
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import make_plan
from medcot.reporting.storage import read_report, report_to_json
from medcot.runs.directory import RunDirectory
from medcot.runs.history import bundled_run, differing_fields, list_runs
from tests.support.fakes import make_tiny_model
from tests.support.paths import ROOT

NOTEBOOK = ROOT / "apps" / "tutorial.py"
SMALL = {
    "samples": 6,
    "steps": 2,
    "batch": 2,
    "save_steps": 1,
    "test_samples": 3,
    "generate_samples": 1,
    "max_new_tokens": 4,
    "mcq": ("sample",),
    "mcq_samples": 2,
}


def load_app():
    spec = importlib.util.spec_from_file_location("tutorial", NOTEBOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def told(outputs):
    return "".join(getattr(one, "text", "") for one in outputs if one is not None)


@pytest.fixture
def tiny(tmp_path):
    return make_config("demo", SMALL | {"model": str(make_tiny_model(tmp_path / "model"))})


def test_the_notebook_tells_the_engines_own_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("demo", {"rank": 8, "samples": 20, "steps": 5})
    outputs, values = load_app().run(defs={"start": controls.Start(config, "en")})
    assert values["config"] == config
    assert values["trainable"] == find_model_spec(config).lora_parameters(8) == 2_442_240
    expected = plan_only(config, detect_machine())
    assert values["plan"].tokens_per_step == expected.tokens_per_step
    assert values["plan"].epochs == expected.epochs
    page = told(outputs)
    assert "2,442,240" in page
    assert read_report(bundled_run("en").path).verdict.nll == "improved"
    assert page.count("Generated text; not medical advice") >= 2


def test_a_headless_notebook_trains_and_shows_what_it_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = controls.Start(tiny, "zh", headless=True, out=tmp_path / "trained")
    outputs, values = load_app().run(defs={"start": start})
    run = RunDirectory(tmp_path / "trained")
    assert run.stage() == "done"
    assert (run.adapter / "adapter_model.safetensors").exists()
    assert len(list(run.rows(run.events))) == 2
    assert report_to_json(values["report"]) == run.read_json("report.json")
    page = told(outputs)
    assert "这里展示的是运行 trained" in page
    assert "<marimo-" not in page, "a page without a kernel must not offer dead controls"


def test_a_headless_training_that_fails_says_so_on_the_page(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = tiny.model_copy(update={"dataset": str(tmp_path / "missing.jsonl")})
    start = controls.Start(wrong, "en", headless=True, out=tmp_path / "run")
    outputs, values = load_app().run(defs={"start": start})
    assert values["trained"] is None
    assert 'data-job="failed"' in told(outputs)


def test_a_run_without_a_report_is_not_shown_as_if_the_verdict_were_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "half"
    shutil.copytree(bundled_run("en").path, run)
    (run / "report.json").unlink()
    start = controls.read_start({"run": str(run), "headless": ""})
    page = told(load_app().run(defs={"start": start})[0])
    assert "Shown is the training of the run half" in page
    assert "It has no report yet" in page


def run_script(*options, cwd):
    command = [sys.executable, str(NOTEBOOK), "--", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_as_a_script_it_refuses_what_is_wrong_with_one_line(tmp_path):
    done = run_script("--rnk", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "medcot: --rnk: unknown option; see medcot run --help (did you mean 'rank'?)"
    ]


def test_as_a_script_it_trains_and_ends_with_the_verdict(tiny, tmp_path):
    """transformers takes a process with marimo in it for a Jupyter kernel and wants IPython."""
    small = SMALL | {"model": tiny.model, "out": tmp_path / "run", "mcq": "sample"}
    named = [(f"--{name.replace('_', '-')}", str(value)) for name, value in small.items()]
    options = [part for pair in named for part in pair]
    done = run_script("--headless", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sentence = json.loads((tmp_path / "run" / "report.json").read_text())["verdict"]["sentence"]
    assert sentence in done.stdout
    assert "not medical advice" in done.stdout


def test_wrong_data_is_explained_and_the_other_sections_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"Question": "<script>x</script>"}\n')
    config = make_config("demo", {"dataset": str(tmp_path / "bad.jsonl")})
    outputs, values = load_app().run(defs={"start": controls.Start(config, "en")})
    assert values["loaded"].failure.kind == "input"
    page = told(outputs)
    assert "That does not work" in page
    assert 'id="evidence"' in page
    assert "<script" not in page


def test_a_machine_that_is_too_small_gets_a_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("kaggle-t4", {"max_length": 131_072, "quantization": "none"})
    outputs, values = load_app().run(defs={"start": controls.Start(config, "en")})
    assert values["plan"] is None
    assert "What to do: use" in told(outputs)


def test_the_notebook_passes_marimos_strict_check_and_has_no_logic():
    command = [sys.executable, "-m", "marimo", "check", "--strict", str(NOTEBOOK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = NOTEBOOK.read_text(encoding="utf-8").split("@app.cell")[1:]
    for cell in cells:
        lines = cell.partition("\n")[2].strip().splitlines()
        name = lines[0].removeprefix("def ").partition("(")[0]
        body = [line for line in lines if not line.strip().startswith(("return", ")", "#"))]
        assert name != "_", "a cell without a name"
        shown = len([line for line in body if not line.strip().rstrip(",").isidentifier()])
        assert shown <= 20, f"{name} has {shown} lines"


@pytest.mark.parametrize("style", ["chat", "tutorial"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_quick_tokenizer_gives_the_librarys_tokens(style, language):
    from transformers import AutoTokenizer

    config = make_config("demo", {"style": style, "language": language})
    material = preview.load_material(config)
    real = AutoTokenizer.from_pretrained(bundled_model())
    pairs = {c.id: render(c, style, chat_template(real)) for c in material.dataset.cases}
    assert {row.id: row for row in encode(real, pairs)} == material.rows


@pytest.mark.parametrize(
    "changes", [{}, {"samples": 7}, {"max_length": 800}, {"style": "tutorial"}, {"samples": 1000}]
)
def test_the_preview_plans_what_the_run_will(changes):
    config = make_config("demo", changes)
    rows = preview.preview_rows(config, preview.load_material(config))
    ours = make_plan(config, named_machine("H100"), find_model_spec(config), *rows.size)
    assert ours == plan_only(config, named_machine("H100"))


def test_a_set_on_the_hub_is_planned_for_without_being_asked_for():
    config = make_config("kaggle-t4")
    material = preview.load_material(config)
    rows = preview.preview_rows(config, material)
    assert (material.own_data, material.own_tokenizer, rows.measured) == (False, False, False)
    assert rows.count == 500


def test_filters_find_every_word_in_any_case():
    cases = preview.load_material(make_config("demo", {"dataset": "sample"})).dataset.cases
    found = preview.find_cases(cases, "TAMPONADE diuretics")
    assert found
    assert all("tamponade" in f"{c.question}{c.thought}{c.response}".lower() for c in found)
    assert len(preview.find_cases(cases, "", cases[0].specialty)) < len(cases)


@pytest.mark.parametrize("field", [*controls.SLIDERS, "steps", "epochs"])
def test_every_mark_of_a_slider_is_a_value_that_its_field_takes(field):
    low, high = bounds(field)
    odd = low + (high - low) // 3
    values = controls.marks(field, odd or 0.123)
    assert values == sorted(set(values))
    assert (odd or 0.123) in values
    assert values[-1] == high
    assert field in ("learning_rate", "epochs") or values[0] == low
    for value in values:
        RunConfig.model_validate({field: value})


def test_the_command_lines_options_start_the_notebook():
    start = controls.read_start({"rank": 16, "steps": "60", "headless": "", "preset": "demo"})
    assert (start.config.rank, start.config.steps, start.headless) == (16, 60, True)
    assert controls.read_start({"language": "zh", "preset": "demo"}).interface == "zh"
    with pytest.raises(InputError, match="--rnk: unknown option"):
        controls.read_start({"rnk": "3"})
    with pytest.raises(InputError, match="--rank"):
        controls.read_start({"rank": "0", "preset": "demo"})
    with pytest.raises(InputError, match="--run"):
        controls.read_start({"run": "nowhere"})


@pytest.mark.parametrize(
    ("words", "option", "text"),
    [
        (["--", "--headless", "--preset", "demo", "--out", "2026_11_27"], "out", "2026_11_27"),
        (["--preset=demo", "--out=1e3"], "out", "1e3"),
        (["--preset", "demo", "--out", "True"], "out", "True"),
        (["--preset", "demo", "--dataset", "a=1.jsonl"], "dataset", "a=1.jsonl"),
        (["edit", "--out", "x", "--", "--preset", "demo", "--out", "007"], "out", "007"),
    ],
)
def test_texts_among_the_options_stay_as_they_were_typed(words, option, text):
    own = words[words.index("--") + 1 :] if "--" in words else words
    start = controls.read_start(parse_args(own), words)
    found = start.out if option == "out" else getattr(start.config, option)
    assert str(found) == text


def test_a_run_whose_name_looks_like_a_number_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunDirectory("2026_11_28").create(make_config("demo"))
    words = ["--run", "2026_11_28"]
    assert controls.read_start(parse_args(words), words).run == Path("2026_11_28")


def test_options_given_at_the_start_outlive_a_change_of_preset():
    start = controls.read_start({"rank": "32", "preset": "demo"})
    assert controls.starting_config(start, "kaggle-t4").rank == 32
    base = make_config("gpu-24g")
    assert controls.changed_config(base, {"rank": 4}).epochs == base.epochs


def test_one_training_at_a_time_and_a_cancelled_one_goes_on(tiny, tmp_path):
    long = tiny.model_copy(update={"steps": 500})
    job = jobs.RUNNER.start_training(long, RunDirectory(tmp_path / "run"), owner="me")
    with pytest.raises(RunFailed, match="another training"):
        jobs.RUNNER.start_training(tiny, RunDirectory(tmp_path / "other"), owner="you")
    jobs.RUNNER.cancel_training("you")
    assert not job.stop.is_set(), "only its owner may cancel it"
    while not job.events and job.state == "running":
        job.wait(0.05)
    jobs.RUNNER.cancel_training("me")
    assert job.wait(60).state == "cancelled", job.failure
    learnt = len(job.events)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    again = jobs.RUNNER.resume_training("me")
    while not again.events and again.state == "running":
        again.wait(0.05)
    jobs.RUNNER.cancel_training("me")
    assert again.wait(60).state == "cancelled", again.failure
    assert again.events[0].step >= learnt
    assert list_runs(tmp_path)[0].stage == "cancelled"


def test_a_visitor_who_is_refused_is_told_what_runs_and_how_long():
    runner = jobs.JobRunner()
    with runner.reserved():
        refused = attempt(runner.start_training, None, None).failure
    assert "another answer is being written on this server, for 0 s" in str(refused)
    job = runner._job = jobs.Job(None, None, "me")
    listener = jobs.JobListener(job)
    with runner.reserved():
        listener.stage("before")
        refused = attempt(runner.start_training, None, None).failure
        assert "(Scoring the base model)" in str(refused)
        job.began -= 60
        listener.progress(6, 30)
        refused = attempt(runner.start_training, None, None).failure
    assert re.search(r"6 of 30; about 4 min\w* left", str(refused)), refused
    assert "6 / 30" in refused.what.text("zh")


def test_a_question_that_is_too_long_is_refused_before_a_model_is_loaded(tmp_path):
    run = RunDirectory(tmp_path / "none")
    question = "x" * (jobs.LONGEST_QUESTION + 1)
    refused = attempt(jobs.RUNNER.answer_question, run, question, base=True).failure
    assert "8,001 characters" in str(refused)
    assert not jobs.RUNNER.is_training()


def test_a_failed_training_frees_the_server_and_says_what_to_do(tiny, tmp_path):
    wrong = tiny.model_copy(update={"dataset": str(tmp_path / "missing.jsonl")})
    job = jobs.RUNNER.start_training(wrong, RunDirectory(tmp_path / "run")).wait(60)
    assert job.state == "failed"
    assert "missing.jsonl" in str(job.failure)
    with jobs.RUNNER.reserved():
        assert attempt(jobs.RUNNER.start_training, tiny, RunDirectory(tmp_path / "x")).failure


def test_a_question_of_ones_own_is_answered_by_the_base_model(tiny, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create(tiny)
    seen = []
    reply = jobs.RUNNER.answer_question(
        run, "Why?", base=True, show=lambda one: seen.append(dict(one))
    )
    assert seen
    assert reply["question"] == "Why?"
    assert attempt(jobs.RUNNER.answer_question, run, " ", base=True).failure.kind == "input"
    assert "adapter" in str(attempt(jobs.RUNNER.answer_question, run, "Why?", base=False).failure)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_bundled_run_is_a_finished_demo(language):
    run = bundled_run(language)
    assert run.stage == "done"
    assert run.config.preset == "demo"
    assert run.config.language == language
    assert len(run.events) == run.config.steps
    assert "/" not in json.dumps([run.config.model, run.config.dataset])
    assert run.has_adapter
    texts = [path.read_text() for path in run.path.rglob("*.json*")]
    assert not any(re.search(r'"/\w', text) for text in texts), "a folder of one machine"
    assert differing_fields(run, run) == []
