"""Fingerprints of everything that decides a measurement, kept in the run directory.

Before and after are comparable only if the same questions were asked of the same base model with
the same settings. Each of these inputs is fingerprinted when the run begins; one that is different
when the run continues is refused by name, because the comparison would be wrong without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medcot.config.schema import BUNDLED_MODEL, RunConfig
from medcot.errors import InputError
from medcot.evaluation.abilities import Ability
from medcot.evaluation.interface import ABILITIES, CASES, FIXED, EvaluationSuite
from medcot.records import Case, Question
from medcot.runs.directory import RunDirectory
from medcot.runs.local_paths import resolve_values

FILE = "fingerprints.json"

CHANGEABLE = (
    "micro_batch", "checkpointing", "mcq", "ability_samples", "judge_url", "judge_model",
    "judge_criteria", "wandb", "wandb_project", "wandb_job_type", "track",
)  # fmt: skip
"""Settings that may change while a run continues. They cost memory or time, or add what is looked
at; no score that is there already depends on them. Their items are compared one by one."""

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Weights, config, tokenizer and chat template of a local model."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """A file's content, and what tells without reading it that it is the same file."""

    bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """``items`` maps set and item id to a digest, ``model`` a local model's files to marks."""

    config: Mapping[str, Any]
    items: Mapping[str, Mapping[str, str]]
    template: str
    model: Mapping[str, FileMark]
    adapter: str = ""


def check_fingerprints(
    directory: RunDirectory, config: RunConfig, suite: EvaluationSuite, template: str
) -> None:
    """Compare the run's inputs with those that it began with, or record them.

    Args:
        template: The source of the tokenizer's chat template, "" where it has none.

    Raises:
        InputError: An input changed since the run began; the message names it.
    """
    known = _read(directory)
    current = Fingerprints(
        config=config.model_dump(mode="json"),
        items=_mark_items(suite),
        template=_digest(template),
        model=_mark_model(config, known.model if known else {}),
        adapter=known.adapter if known else "",
    )
    if known is None:
        directory.write_json(FILE, asdict(current))
        return
    begun_with = resolve_values(known.config, directory.working_directory())
    _require_same_config(begun_with, current.config, directory)
    _require_same_model(known.model, current.model, config.model)
    if known.template != current.template:
        raise InputError(
            f"--model {config.model}",
            "its chat template changed since the run began",
            "restore the template, or use a new --out",
        )
    for name, items in known.items.items():
        _require_same_items(name, items, current.items.get(name))
    # Without training.json the run is trained again, and its adapter recorded anew.
    trained = directory.has("training.json")
    if trained and known.adapter and known.adapter != _digest_adapter(directory):
        raise InputError(
            str(directory.adapter),
            "the adapter is not the one that this run trained",
            "restore its files, or use a new --out",
        )
    # Recorded values stay: from another working directory the current paths are absolute.
    config_as_recorded = {**current.config, **known.config}
    merged = replace(current, config=config_as_recorded, items={**known.items, **current.items})
    directory.write_json(FILE, asdict(merged))


def record_adapter(directory: RunDirectory) -> None:
    """Record the adapter that training just saved."""
    if known := _read(directory):
        directory.write_json(FILE, asdict(replace(known, adapter=_digest_adapter(directory))))


def _read(directory: RunDirectory) -> Fingerprints | None:
    """Read the recorded fingerprints; runs from before they were recorded have none."""
    if not directory.has(FILE):
        return None
    found = directory.read_json(FILE)
    try:
        model = {name: FileMark(**mark) for name, mark in found["model"].items()}
        return Fingerprints(**{**found, "model": model})
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            str(directory.path / FILE), "not as medcot writes it", "restore the file"
        ) from None


def _require_same_config(
    known: Mapping[str, Any], current: Mapping[str, Any], directory: RunDirectory
) -> None:
    for name, value in current.items():
        if name in CHANGEABLE or name not in known or known[name] == value:
            continue
        raise InputError(
            str(directory.path / "config.json"),
            f"{name} is {value!r}, but the run began with {known[name]!r}",
            "restore the value, or start a new run with it",
        )


def _require_same_model(
    known: Mapping[str, FileMark], current: Mapping[str, FileMark], model: str
) -> None:
    for name in sorted({*known, *current} if known and current else ()):
        if name not in current or name not in known:
            state = "is gone" if name not in current else "was added"
        elif known[name].sha256 != current[name].sha256:
            state = "changed"
        else:
            continue
        raise InputError(
            f"--model {model}",
            f"{name} {state} since the run began",
            "restore the model, or use a new --out",
        )


def _require_same_items(
    name: str, known: Mapping[str, str], current: Mapping[str, str] | None
) -> None:
    """Compare the items of one set. A set that is not asked any more is no matter."""
    if current is None:
        return
    for identity in [*known, *(one for one in current if one not in known)]:
        if known.get(identity) == current.get(identity):
            continue
        state = "changed"
        if identity not in current:
            state = "is gone"
        elif identity not in known:
            state = "was added"
        raise InputError(
            name,
            f"item {identity!r} {state} since the run began",
            "restore the set, or use a new --out",
        )


def _mark_items(suite: EvaluationSuite) -> dict[str, dict[str, str]]:
    marks = {CASES: _mark(suite.cases)}
    if suite.fixed:
        marks[FIXED] = _mark([suite.fixed])
    if suite.abilities:
        marks[ABILITIES] = _mark(suite.abilities)
    return marks | {name: _mark(asked) for name, asked in suite.questions.items()}


def _mark(items: Iterable[Case | Question | Ability]) -> dict[str, str]:
    return {item.id: _digest(json.dumps(_plain(item), sort_keys=True))[:16] for item in items}


def _plain(item: Case | Question | Ability) -> dict[str, Any]:
    """Return an item's fields; runs from before cases had turns recorded none."""
    values = asdict(item)
    if not values.get("turns", True):
        del values["turns"]
    return values


def _mark_model(config: RunConfig, known: Mapping[str, FileMark]) -> dict[str, FileMark]:
    """Mark the files of a local model; a model of the hub is told apart by its commit.

    A file is read again only if its size or time differ from the ``known`` mark.
    """
    folder = Path(config.model)
    if config.model == BUNDLED_MODEL or not folder.is_dir():
        return {}
    found: dict[str, FileMark] = {}
    for path in sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern)):
        state = path.stat()
        mark = known.get(path.name)
        if mark is None or (mark.bytes, mark.modified_ns) != (state.st_size, state.st_mtime_ns):
            mark = FileMark(state.st_size, state.st_mtime_ns, _digest_file(path))
        found[path.name] = mark
    return found


def _digest_adapter(directory: RunDirectory) -> str:
    """Digest the adapter's weights and config, "" where there is none."""
    paths = [directory.adapter / f"adapter_{name}" for name in ("config.json", "model.safetensors")]
    return _digest("".join(_digest_file(path) for path in paths if path.is_file()))


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
