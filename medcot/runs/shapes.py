"""Checks the fields of a run's JSON files that other code relies on; edited files may lack them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from medcot.errors import InputError, one_line

Field = type | tuple[type, ...]

STAGES = (
    "planned", "before", "training", "trained", "after", "report", "done", "failed", "cancelled",
)  # fmt: skip

REQUIRED: Mapping[str, Mapping[str, Field]] = {
    "environment.json": {"dataset.fingerprint": str},
    "fingerprints.json": {"config": dict, "items": dict, "template": str, "model": dict},
    "split.json": {"train": list, "test": list},
    "status.json": {"stage": str},
    "study.json": {"config": dict, "vary": dict},
    "training.json": {"seconds": (int, float)},
    "trackio.json": {"id": str},
    "wandb.json": {"id": str},
    "events.jsonl": {"step": int},
    "judge.jsonl": {"contest": str, "outcome": str},
    "judge_labels.jsonl": {"id": str},
    "judge_pairs.jsonl": {"id": str},
}
"""By file: fields that must be there, with their types."""
OPTIONAL: Mapping[str, Mapping[str, Field]] = {
    "environment.json": {"fallbacks": list, "working_directory": str},
    "error.json": {"stage": str, "message": str, "remedy": str},
    "events.jsonl": {
        "loss": (int, float),
        "learning_rate": (int, float),
        "grad_norm": (int, float, type(None)),
        "tokens": int,
        "validation_loss": (int, float, type(None)),
    },
    "plan.json": {"reasons": list, "warnings": list},
    "report.json": {"schema_version": int},
    "training.json": {"steps": int, "kept_step": int, "validation_rows": int},
}
"""By file: fields whose type is checked where they are there."""


def check_shape(name: str, value: Any, where: str) -> dict[str, Any]:
    """Return ``value``, which was read from the file ``name``, if it is an object as written.

    Raises:
        InputError: It is no object, or a field is missing or of another type.
    """
    if not isinstance(value, dict):
        raise _refusal(where, f"{one_line(type(value).__name__)} instead of an object")
    found = cast("dict[str, Any]", value)
    for path, kind in REQUIRED.get(name, {}).items():
        inner: Any = found
        for part in path.split("."):
            inner = cast("dict[str, Any]", inner).get(part) if isinstance(inner, dict) else None
        _check_type(path, inner, kind, where)
    for path, kind in OPTIONAL.get(name, {}).items():
        if path in found:
            _check_type(path, found[path], kind, where)
    if name == "status.json" and found["stage"] not in STAGES:
        raise _refusal(where, f"stage is {one_line(repr(found['stage']), 40)}")
    for part in ("train", "test") if name == "split.json" else ():
        if not all(isinstance(one, str) for one in found[part]):
            raise _refusal(where, f"{part} holds something else than ids")
    return found


def _check_type(path: str, value: Any, kind: Field, where: str) -> None:
    if isinstance(value, kind) and not isinstance(value, bool):
        return
    shown = "missing" if value is None else one_line(repr(value), 40)
    raise _refusal(where, f"{path} is {shown}")


def _refusal(where: str, got: str) -> InputError:
    return InputError(where, got, "restore the file that medcot wrote")
