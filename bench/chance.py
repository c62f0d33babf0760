"""Right answers of an untuned model on question sets, by option likelihood, beside guessing.

    python bench/chance.py medqa medmcqa            # known sets, from the hub
    python bench/chance.py my_exam.jsonl --questions 200

Prints a Markdown table: Wilson's 95 % interval, the accuracy of guessing, whether the interval
holds it, how often each letter was chosen in all orders, and the seconds of the clock and of the
processor (loading the model is not counted). Without a GPU the bundled SmolLM2-135M answers in
float32.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from medcot.config.presets import make_config
from medcot.data.mcq import load_questions
from medcot.engines.loading import load_base, load_tokenizer
from medcot.evaluation.interface import ModelTools
from medcot.evaluation.suite import evaluate, make_suite, summarise
from medcot.hardware.machine import detect_machine
from medcot.inference.generate import model_tools
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import make_plan

HEADINGS = ("set", "questions", "right", "95 % interval", "by guessing", "holds it")
HEADINGS += ("chosen letters", "clock, s", "processor, s")


def load(model: str) -> ModelTools:
    config = make_config("demo", {"model": model, "mcq": ()})
    load_tokenizer(config)
    plan = make_plan(config, detect_machine(), find_model_spec(config), 64, 700.0, 1_000)
    return model_tools(load_base(config, plan), config)


def line(name: str, count: int, language: str, tools: ModelTools, orders: int) -> str:
    config = make_config("demo", {"mcq_samples": count, "mcq_orders": orders})
    asked = {Path(name).stem: load_questions(name, language).questions}  # type: ignore[arg-type]
    suite = make_suite(config, [], None, asked)
    clock, processor = time.perf_counter(), time.process_time()
    rows = evaluate(suite, tools, [], [].append)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    summary = summarise(rows, suite)
    (found,) = summary.mcq.sets.values() if summary.mcq else ()
    (questions,) = suite.questions.values()
    chance = sum(1 / len(one.options) for one in questions) / len(questions)
    low, high = found.low or 0.0, found.high or 0.0
    chosen = Counter(letter for row in rows for letter in row.letters)
    letters = ", ".join(f"{k} {n}" for k, n in sorted(chosen.items()))
    cells = [Path(name).stem, str(found.n), f"{100 * (found.accuracy or 0.0):.1f} %"]
    cells += [f"{100 * low:.1f} to {100 * high:.1f} %", f"{100 * chance:.1f} %"]
    cells += ["yes" if low <= chance <= high else "no", letters]
    return f"| {' | '.join([*cells, f'{clock:.0f}', f'{processor:.0f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", help="question files or known sets")
    parser.add_argument("--questions", type=int, default=200, help="of each set; 0 takes all")
    parser.add_argument("--model", default=make_config("demo").model)
    parser.add_argument("--orders", type=int, default=0, help="of the options; 0 takes all")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    given = parser.parse_args()
    tools = load(given.model)
    print(f"| {' | '.join(HEADINGS)} |")
    print("| --- | --: | --: | :-: | --: | :-: | --- | --: | --: |")
    for name in given.sets:
        print(line(name, given.questions, given.language, tools, given.orders), flush=True)


if __name__ == "__main__":
    main()
