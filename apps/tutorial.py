"""The literate notebook: `marimo edit apps/tutorial.py`, `marimo run`, or a script.

It defines no logic of its own: cells call medcot, and show what it gives.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="compact", app_title="medcot", css_file="tutorial.css")

with app.setup(hide_code=True):
    import sys
    from functools import partial
    from pathlib import Path

    import marimo as mo

    from medcot.catalog import say
    from medcot.config.presets import PRESETS, make_config
    from medcot.data.prompts import render
    from medcot.data.tokenization import encode
    from medcot.notebook import controls as c
    from medcot.notebook import jobs, kaggle_panel, preview, script_mode, visits
    from medcot.notebook.results import attempt
    from medcot.notebook.views import (
        answers,
        charts,
        evidence,
        pages,
        plans,
        rows,
        training,
    )
    from medcot.notebook.views.elements import make_elements
    from medcot.notebook.views.prose import read_prose
    from medcot.planning.model_specs import find_model_spec
    from medcot.planning.plan import make_plan
    from medcot.runs import history
    from medcot.runs.directory import RunDirectory, new_run_path

    RUNS = Path("runs")
    RUNNER = jobs.RUNNER


@app.cell(hide_code=True)
def read_arguments():
    # Everything that the notebook can be told: the command line's options after `--`.
    script_mode.hide_secrets()
    _given = visits.options_of(mo.app_meta().request, mo.cli_args().to_dict())
    _started = attempt(c.read_start, _given, sys.argv[1:])
    script_mode.refuse(_started.failure)
    mo.stop(_started.failure, pages.failure(_started.failure, "en"))
    start = _started.value
    return (start,)


@app.cell(hide_code=True)
def load_charts():
    # Importing altair takes a second: a thread does it while the first cells run.
    charts.warm_up()
    return


@app.cell(hide_code=True)
def choose_language(start):
    interface = mo.ui.radio(
        {"English": "en", "中文": "zh"},
        value={"en": "English", "zh": "中文"}[start.interface],
        inline=True,
    )
    return (interface,)


@app.cell(hide_code=True)
def read_words(interface):
    prose = read_prose(mo.notebook_dir(), interface.value)
    language = prose.language
    section = partial(pages.section, prose)
    show = partial(pages.show, language)
    return language, prose, section, show


@app.cell(hide_code=True)
def open_page(interface, language, prose, start):
    _switch = pages.other_language(language) if start.headless else interface
    _note = pages.note("static_page", language) if start.headless else None
    pages.stack(_switch, mo.Html(pages.title(prose)), pages.body(prose, "claim"), _note)
    return


@app.cell(hide_code=True)
def list_contents(prose):
    mo.Html(pages.contents(prose))
    return


@app.cell(hide_code=True)
def tell_costs(section, show):
    _plans = attempt(preview.usual_plans)
    pages.stack(section("cost"), show(plans.show_costs, _plans))
    return


@app.cell(hide_code=True)
def keep_state():
    # Set by buttons alone, so that a cell may both offer the button and show what came of it.
    get_job, set_job = mo.state(None, allow_self_loops=True)
    get_hub, set_hub = mo.state(frozenset(), allow_self_loops=True)
    get_kernel, set_kernel = mo.state(None, allow_self_loops=True)
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
        set_answer,
        set_asked,
        set_ended,
        set_hub,
        set_job,
        set_kernel,
        visitor,
    )


@app.cell(hide_code=True)
def choose_run_to_show(get_ended, language, start, trained, visitor):
    # What the later sections show: the run of this page, the one asked for, or the bundled one.
    _path = jobs.path_to_show(get_ended(), visitor) or trained or start.run
    shown = history.read_run(_path) if _path else history.bundled_run(language)
    report = evidence.report_to_show(shown) or evidence.report_to_show(
        history.bundled_run(language)
    )
    return report, shown


@app.cell(hide_code=True)
def show_result(language, report, section, show, shown):
    pages.stack(
        section("result"),
        pages.which_run(shown, language),
        show(evidence.show_verdict, report),
        show(charts.draw_loss, shown.events),
    )
    return


@app.cell(hide_code=True)
def choose_preset(start):
    preset = mo.ui.dropdown(list(PRESETS), value=start.config.preset, label="`preset`")
    return (preset,)


@app.cell(hide_code=True)
def choose_machine(preset):
    machine_name = mo.ui.dropdown(
        list(c.MACHINES), value=c.machine_for(preset.value), label="`machine`"
    )
    return (machine_name,)


@app.cell(hide_code=True)
def make_controls(machine_name, preset, start):
    # The names make cells follow their moves; `rack` is for showing them, which follows nothing.
    base = c.starting_config(start, preset.value)
    rack = make_elements(base, editing=mo.app_meta().mode == "edit")
    model, dataset, data_language = rack["model"], rack["dataset"], rack["language"]
    rank, alpha, samples, max_length = (
        rack[_name] for _name in ("rank", "alpha", "samples", "max_length")
    )
    batch, learning_rate, length = rack["batch"], rack["learning_rate"], rack["length"]
    rack |= {"preset": preset, "machine": machine_name}
    return (
        alpha,
        base,
        batch,
        data_language,
        dataset,
        learning_rate,
        length,
        max_length,
        model,
        rack,
        rank,
        samples,
    )


@app.cell
def choose_the_source(base, data_language, dataset, model):
    # What rows and tokens are made of; no slider is among it.
    _chosen = {"model": model.value, "dataset": dataset.value, "language": data_language.value}
    sourced = attempt(c.changed_config, base, _chosen)
    source = sourced.value or base
    return source, sourced


@app.cell
def make_the_config(alpha, batch, learning_rate, length, max_length, rank, samples, source):
    # One frozen record decides everything about a run. The sliders change some of its fields.
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
def show_settings(base, language, rack, section, sourced, start):
    _panel = pages.knobs(rack, ("preset", "model", "dataset", "language"), language)
    if start.headless:
        _panel = pages.settings_table(c.shown_values(base), language)
    _reason = pages.reason(start.config.preset, start.preset_reason, language)
    pages.stack(section("settings"), _reason, _panel, pages.refusal(sourced, language))
    return


@app.cell(hide_code=True)
def offer_the_hub(get_hub, language, set_hub, source, start):
    _key = (source.model, source.dataset)
    load_from_hub = mo.ui.button(
        label=say("load_from_hub", language), on_click=lambda _: set_hub(get_hub() | {_key})
    )
    _needed = not (preview.is_at_hand(source) or _key in get_hub() or start.headless)
    pages.stack(load_from_hub, pages.note("hub_explained", language)) if _needed else None
    return


@app.cell
def load_the_rows(get_hub, source, start):
    # Every row is checked, and made tokens of, once for each data set and model.
    _asked = (source.model, source.dataset) in get_hub()
    _asked = _asked or (start.headless and start.run is None)
    loaded = attempt(preview.load_material, source, from_hub=_asked)
    material = loaded.value
    return loaded, material


@app.cell(hide_code=True)
def choose_a_row(material):
    mo.stop(material is None)
    row_id = mo.ui.dropdown(
        list(material.rows), value=next(iter(material.rows)), searchable=True, label="`id`"
    )
    cases = {_case.id: _case for _case in material.dataset.cases}
    return cases, row_id


@app.cell(hide_code=True)
def tell_the_problem(language, loaded, section):
    pages.stack(section("problem"), pages.failure(loaded.failure, language))
    return


@app.cell(hide_code=True)
def show_the_row(cases, language, row_id, show, start):
    _choice = None if start.headless else pages.knobs({"id": row_id}, ("id",), language)
    pages.stack(_choice, show(rows.show_case, cases[row_id.value]))
    return


@app.cell(hide_code=True)
def tell_the_prompt(section):
    section("prompt")
    return


@app.cell
def render_the_row(cases, material, row_id, source):
    # The training pair of one row: what is read, and what has to follow.
    pair = render(cases[row_id.value], source.style, material.chat)
    encoded = encode(material.tokenizer, {row_id.value: pair})[0]
    return (encoded,)


@app.cell(hide_code=True)
def show_the_tokens(encoded, material, show):
    show(rows.show_tokens, encoded, material.tokenizer)
    return


@app.cell(hide_code=True)
def tell_the_data(section):
    section("data")
    return


@app.cell(hide_code=True)
def make_filters(cases):
    words = mo.ui.text(placeholder="…", max_length=200, label="`words`")
    _known = sorted({_case.specialty for _case in cases.values()} - {""})
    specialty = mo.ui.dropdown(
        {"*": ""} | {_one: _one for _one in _known}, value="*", label="`specialty`"
    )
    return specialty, words


@app.cell(hide_code=True)
def filter_the_rows(cases, specialty, words):
    found = preview.find_cases(list(cases.values()), words.value, specialty.value)
    page = mo.ui.number(start=1, stop=max(1, -(-len(found) // rows.PAGE)), value=1, label="`page`")
    return found, page


@app.cell(hide_code=True)
def show_the_data(cases, found, language, material, page, show, specialty, start, words):
    _elements = {"words": words, "specialty": specialty, "page": page}
    _filters = pages.knobs(_elements, tuple(_elements), language)
    _table = show(rows.show_cases, found, material.rows, page.value, len(cases))
    pages.stack(None if start.headless else _filters, _table)
    return


@app.cell
def choose_the_rows(config, material):
    # Those that fit, in the data set's order, without any that the evaluation also holds.
    mo.stop(material is None)
    chosen = attempt(preview.preview_rows, config, material)
    return (chosen,)


@app.cell(hide_code=True)
def offer_the_choice(language, rack, start):
    mo.stop(start.headless)
    pages.knobs(rack, ("samples", "max_length"), language)
    return


@app.cell(hide_code=True)
def show_the_choice(chosen, config, material, show):
    _lengths = show(rows.show_lengths, material, config.max_length)
    pages.stack(_lengths, show(partial(rows.show_selection, material), chosen))
    return


@app.cell(hide_code=True)
def tell_lora(language, rack, section, start):
    _knobs = pages.knobs(rack, ("rank", "alpha"), language)
    pages.stack(section("lora"), None if start.headless else _knobs)
    return


@app.cell
def count_what_lora_trains(config):
    # rank x (inputs + outputs), for each of the seven layers of every block.
    shape = attempt(find_model_spec, config)
    trainable = shape.value.lora_parameters(config.rank) if shape.value else None
    return shape, trainable


@app.cell(hide_code=True)
def show_lora(config, shape, show):
    show(plans.show_lora, shape, config)
    return


@app.cell(hide_code=True)
def tell_the_plan(language, rack, section, start):
    _knobs = pages.knobs(rack, ("machine", "length", "batch", "learning_rate"), language)
    pages.stack(section("plan"), None if start.headless else _knobs)
    return


@app.cell
def make_the_plan(chosen, config, machine_name, shape):
    # The fastest way to compute this run on that machine, of those that fit into its memory.
    machine = c.machine_of(machine_name.value)
    mo.stop(chosen.value is None or shape.value is None)
    _size = chosen.value.size
    planned = attempt(make_plan, config, machine, shape.value, *_size)
    plan = planned.value
    return plan, planned


@app.cell(hide_code=True)
def show_the_plan(planned, show):
    show(plans.show_plan, planned)
    return


@app.cell(hide_code=True)
def tell_the_base(language, report, section, show, shown):
    pages.stack(
        section("base"),
        pages.which_run(shown, language),
        show(partial(answers.show_fixed_question, base_only=True), report),
    )
    return


@app.cell(hide_code=True)
def tell_the_training(section, show, shown, start):
    _curve = show(training.show_finished, shown) if start.headless else None
    pages.stack(section("train"), _curve)
    return


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
def tell_how_it_ended(headless_job, show, shown):
    script_mode.conclude(headless_job, shown)
    _went_wrong = headless_job is not None and headless_job.state != "done"
    show(training.show_job, headless_job) if _went_wrong else None
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
def make_the_pulse():
    pulse = mo.ui.refresh(default_interval=1)
    return (pulse,)


@app.cell(hide_code=True)
def follow_training(get_ended, get_job, pulse, start):
    # Ticks while a training runs in this process; a pulse that is not shown does not beat.
    (get_job(), get_ended())
    _beats = RUNNER.is_training() and not start.headless
    mo.Html(f'<div class="mc-hidden">{pulse}</div>') if _beats else None
    return


@app.cell(hide_code=True)
def notice_the_end(pulse, set_ended):
    pulse.value
    if RUNNER.ended_job():
        set_ended(RUNNER.ended_job())
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
def show_training(get_ended, get_job, pulse, show):
    (pulse.value, get_ended(), get_job())
    show(training.show_job, RUNNER.current_job()) if RUNNER.current_job() else None
    return


@app.cell(hide_code=True)
def tell_the_tuned(language, report, section, show, shown):
    pages.stack(
        section("tuned"),
        pages.which_run(shown, language),
        show(answers.show_fixed_question, report),
    )
    return


@app.cell(hide_code=True)
def make_question_box(report):
    question = mo.ui.text_area(
        value=report.fixed_question.question,
        rows=4,
        max_length=jobs.LONGEST_QUESTION,
        full_width=True,
        label="`ask`",
    )
    return (question,)


@app.cell(hide_code=True)
def offer_to_ask(language, question, set_asked, shown, start):
    mo.stop(start.headless)
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
    _buttons = mo.hstack([ask_base, ask_tuned, ask_both], justify="start", wrap=True)
    _hint = say("ask_note" if shown.has_adapter else "no_adapter", language)
    _box = pages.knobs({"ask": question}, ("ask",), language)
    pages.stack(_box, _buttons, pages.plain(_hint, language))
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
def tell_the_evidence(language, report, section, show, shown):
    pages.stack(
        section("evidence"),
        pages.which_run(shown, language),
        show(evidence.show_verdict, report),
        show(evidence.show_comparison, report),
        show(evidence.show_figures, report),
        show(evidence.show_power, report),
        show(evidence.show_changed_rows, report),
    )
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
def show_the_runs(language, one, other, runs, section, show, start):
    _choice = pages.knobs({"run": one, "with": other}, ("run", "with"), language)
    _pair = [history.find_run(runs, _name.value) for _name in (one, other)]
    pages.stack(
        section("runs"),
        show(evidence.show_runs, runs),
        None if start.headless else _choice,
        show(evidence.compare_runs, *_pair) if len(runs) > 1 else None,
    )
    return


@app.cell(hide_code=True)
def tell_kaggle(config, section):
    _command = plans.command_line(config, make_config(config.preset), "python kaggle/push.py run")
    pages.stack(section("kaggle"), pages.command(_command))
    return


@app.cell(hide_code=True)
def offer_kaggle(config, get_kernel, language, set_kernel, start):
    mo.stop(start.headless)
    mo.stop(mo.app_meta().mode != "edit", pages.note("kaggle_edit_only", language))
    check_account = mo.ui.button(
        label=say("kaggle_check", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.look_at_account)),
    )
    build_kernel = mo.ui.button(
        label=say("kaggle_build", language),
        on_click=lambda _: set_kernel(attempt(kaggle_panel.build_kernel, config)),
    )
    _buttons = mo.hstack([check_account, build_kernel], justify="start", wrap=True)
    pages.stack(_buttons, pages.sent(get_kernel(), language))
    return


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
    mo.hstack([sure, push], justify="start", wrap=True) if _ready else None
    return


@app.cell(hide_code=True)
def tell_how_to_take_it_away(section, shown):
    pages.stack(section("away"), *map(pages.command, history.commands_for(shown)))
    return


@app.cell(hide_code=True)
def tell_what_is_next(section):
    section("next")
    return


if __name__ == "__main__":
    app.run()
