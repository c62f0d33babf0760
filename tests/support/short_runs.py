"""Runs of seconds: short rows, few of them, and what must be equal after any interruption."""

import json
from pathlib import Path

from medcot.runs.directory import RunDirectory
from tests.support.fakes import make_case

SHORT = {
    "samples": 6,
    "steps": 3,
    "save_steps": 1,
    "batch": 2,
    "test_samples": 2,
    "test_fraction": 0.3,
    "generate_samples": 1,
    "max_new_tokens": 4,
    "mcq": ("sample",),
    "mcq_samples": 2,
    "learning_rate": 1e-2,
}


def write_rows(path: Path) -> Path:
    """Write twenty short rows and return ``path``."""
    cases = [make_case(number) for number in range(20)]
    rows = [
        {"id": c.id, "Question": c.question, "Complex_CoT": c.thought, "Response": c.response}
        for c in cases
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def outcome(folder: Path) -> dict[str, object]:
    """Everything of a finished run that an interruption must not change."""
    directory = RunDirectory(folder)
    files = [directory.report_markdown, directory.adapter / "adapter_model.safetensors"]
    files += [directory.evaluation("before"), directory.evaluation("after")]
    found: dict[str, object] = {one.name: one.read_bytes() for one in files}
    events = directory.rows(directory.events)
    found["events"] = [
        (row["step"], row["loss"], row["grad_norm"], row["tokens"]) for row in events
    ]
    found["stage"] = directory.stage()
    hidden = {one.name for one in folder.rglob(".*") if "run.lock" not in one.name}
    found["left over"] = hidden | {"run.lock", "error.json"} & {
        one.name for one in folder.iterdir()
    }
    return found
