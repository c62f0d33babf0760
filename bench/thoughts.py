"""What a training on the thoughts of other rows does to the use of thoughts.

    python bench/thoughts.py --folder /tmp/thoughts [--steps 14] [--rows 12] [--words 20]

Trains the bundled model twice on the bundled short cases, or on those of ``--dataset``: on their
own thoughts, and on the same rows with each thought replaced by that of another training row. The
test rows keep theirs. With ``--words`` questions, thoughts and answers are cut to so many words,
which is quick. Prints how much the model's own thought and a wrong one matter, before and after,
and at last how much less they matter after permuted thoughts than after kept ones, row by row. An
interrupted run is continued.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medcot.config.presets import make_config
from medcot.config.schema import RunConfig
from medcot.data.cases import unit_hash
from medcot.data.dataset import load_dataset
from medcot.evaluation.interface import ThoughtLosses, rows_from_json
from medcot.pipeline.run import run
from medcot.reporting.schema import Report
from medcot.runs.directory import RunDirectory
from medcot.stats.paired import PairedDifference, compare_means

ARMS = ("kept", "permuted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--arm", choices=ARMS, nargs="*", default=ARMS)
    parser.add_argument("--dataset")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--batch", type=int)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chosen = {"test_samples": given.rows, "generate_samples": given.rows}
    asked = {name: getattr(given, name) for name in ("dataset", "samples", "batch")}
    config = make_config(
        "demo",
        chosen
        | {"thought_samples": given.rows, "steps": given.steps, "mcq": (), "validation_samples": 0}
        | {"max_new_tokens": min(160, 4 * given.words), "ability_samples": 0}
        | {name: value for name, value in asked.items() if value is not None},
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
    if set(given.arm) == set(ARMS):
        compare_arms(given.folder)


def write_rows(config: RunConfig, path: Path, words: int, *, permuted: bool) -> None:
    """Write the rows, with the thoughts of the training rows turned by one if ``permuted``."""

    def cut(text: str) -> str:
        return " ".join(text.split()[:words])

    cases = list(load_dataset(config).cases)
    trained = [case for case in cases if unit_hash(cut(case.question)) >= config.test_fraction]
    turned = [*trained[1:], *trained[:1]] if permuted else trained
    thoughts = {case.id: other.thought for case, other in zip(trained, turned, strict=True)}
    with path.open("w", encoding="utf-8") as file:
        for case in cases:
            thought = thoughts.get(case.id, case.thought)
            row = {"Question": case.question, "Complex_CoT": thought, "Response": case.response}
            file.write(json.dumps({name: cut(text) for name, text in row.items()}) + "\n")


def print_use(arm: str, report: Report) -> None:
    for name in ("thought_gain", "thought_harm"):
        sides = report.before.value(name), report.after.value(name)
        print_line(arm, name, *sides, report.paired.of(name))


def compare_arms(folder: Path) -> None:
    """Compare the trained models of both arms on the same test rows."""
    found: dict[str, list[ThoughtLosses]] = {}
    for arm in ARMS:
        directory = RunDirectory(folder / arm)
        rows = rows_from_json(directory.rows(directory.evaluation("after")), where=arm)
        found[arm] = [row.thought_losses for row in rows if row.thought_losses]
    for measure in ("gain", "harm"):
        kept, permuted = ([getattr(one, measure) for one in found[arm]] for arm in ARMS)
        sides = sum(kept) / len(kept), sum(permuted) / len(permuted)
        paired = compare_means(kept, permuted)
        print_line("permuted against kept", f"thought_{measure}", *sides, paired)


def print_line(
    arm: str,
    measure: str,
    before: float | None,
    after: float | None,
    found: PairedDifference | None,
) -> None:
    if found is None:
        return
    cells = " | ".join(f"{one or 0:.3f}" for one in (before, after, found.difference))
    has_span = found.low is not None and found.high is not None
    span = f"{found.low:.3f} to {found.high:.3f}" if has_span else "too few rows"
    verdict = found.verdict("higher")
    print(f"| {arm} | {measure} | {cells} | {span} | {found.p_value:.3f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
