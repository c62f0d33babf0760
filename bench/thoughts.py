"""What a training on the thoughts of other rows does to the use of thoughts.

    python bench/thoughts.py --folder /tmp/thoughts [--steps 14] [--rows 12] [--words 20]

Trains the bundled model twice on the bundled short cases: on their own thoughts, and on the same
rows with each thought replaced by that of another training row. The test rows keep theirs. With
``--words`` questions, thoughts and answers are cut to so many words, which is quick. Prints
how much the model's own thought and a wrong one matter, before and after. An interrupted run is
continued.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from medcot.data.cases import unit_hash
from medcot.data.dataset import load_dataset
from medcot.pipeline.run import run
from medcot.reporting.schema import Report
from medcot.runs.directory import RunDirectory

ARMS = ("kept", "permuted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--arm", choices=ARMS, nargs="*", default=ARMS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chosen = {"test_samples": given.rows, "generate_samples": given.rows}
    config = make_config(
        "demo",
        chosen
        | {"thought_samples": given.rows, "steps": given.steps, "mcq": (), "validation_samples": 0}
        | {"max_new_tokens": min(160, 4 * given.words)},
    )
    print("| thoughts | measure | before | after | difference | 95 % | p | verdict |")
    print(f"| --- | --- |{' --: |' * 5} --- |")
    for arm in given.arm:
        directory = RunDirectory(given.folder / arm)
        path = given.folder / f"{arm}.jsonl"
        write_rows(config, path, given.words, permuted=arm == "permuted")
        report = run(
            config.model_copy(update={"dataset": str(path)}), directory, resume=directory.exists()
        )
        print_use(arm, report)


def write_rows(config: RunConfig, path: Path, words: int, *, permuted: bool) -> None:
    """Write the rows, with the thoughts of the training rows turned by one if ``permuted``."""
    cases = list(load_dataset(config).cases)
    trained = [case for case in cases if unit_hash(case.question) >= config.test_fraction]
    turned = [*trained[1:], *trained[:1]] if permuted else trained
    thoughts = {case.id: other.thought for case, other in zip(trained, turned, strict=True)}
    with path.open("w", encoding="utf-8") as file:
        for case in cases:
            thought = thoughts.get(case.id, case.thought)
            row = {"Question": case.question, "Complex_CoT": thought, "Response": case.response}
            cut = {name: " ".join(text.split()[:words]) for name, text in row.items()}
            file.write(json.dumps(cut) + "\n")


def print_use(arm: str, report: Report) -> None:
    for name in ("thought_gain", "thought_harm"):
        found = report.paired.of(name)
        if found is None or found.low is None or found.high is None:
            continue
        sides = (report.before.value(name), report.after.value(name), found.difference)
        cells = " | ".join(f"{one or 0:.3f}" for one in sides)
        verdict = found.verdict("higher")
        span = f"{found.low:.3f} to {found.high:.3f}"
        print(
            f"| {arm} | {name} | {cells} | {span} | {found.p_value:.3f} | {verdict} |", flush=True
        )


if __name__ == "__main__":
    main()
