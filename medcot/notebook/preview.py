"""Previews a run before it starts, fast enough for every move of a slider.

Rows are read, checked and tokenised once for each data set and model; a slider only changes
arithmetic on their lengths. Nothing here loads a model or uses the network, except
:func:`load_material` for a data set or tokenizer that is on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medcot.config.presets import make_config
from medcot.config.schema import BUNDLED_DATA, BUNDLED_MODEL, RunConfig
from medcot.data.contamination import EvaluationTexts, Overlap, find_overlaps
from medcot.data.dataset import (
    load_dataset,
    load_fixed_question,
    load_questions,
    settle_thought,
    split_cases,
)
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.prompts import ChatTemplate
from medcot.data.selection import Candidate, explain_nothing_left, select_rows, tokenize_cases
from medcot.data.sources import kinds_of
from medcot.data.tokenization import TokenizedRow, chat_template, shared_prefix_length
from medcot.engines.bundled_model import bundled_model
from medcot.evaluation.decontaminate import collect_texts
from medcot.evaluation.suite import make_suite
from medcot.hardware.machine import detect_machine, named_machine
from medcot.paths import is_folder
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.planning.typical_rows import typical_lengths
from medcot.records import Case, Dataset, Dropped

_SLIDERS = (
    "samples",
    "rank",
    "alpha",
    "steps",
    "epochs",
    "learning_rate",
    "max_length",
    "batch",
    "seed",
    "wandb",
    "preset",
)


@dataclass(frozen=True)
class Material:
    """A data set's rows, tokenised, and what selects among them.

    ``rows`` and ``overlaps`` (with evaluation sets) are by case id. ``own_data`` and
    ``own_tokenizer`` are False where the config's are on the hub and were not loaded: the bundled
    ones stand in for them.
    """

    dataset: Dataset
    rows: Mapping[str, TokenizedRow]
    tokenizer: Any
    chat: ChatTemplate | None
    overlaps: Mapping[str, Sequence[Overlap]]
    train_order: tuple[Case, ...]
    own_data: bool
    own_tokenizer: bool
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class SelectedRows:
    """The training rows that a config selects from its material, and those it leaves out."""

    rows: Sequence[TokenizedRow]
    dropped: tuple[Dropped, ...]
    overlaps: tuple[Overlap, ...]
    count: int
    mean_tokens: float
    longest_tokens: int
    shared_tokens: int
    measured: bool

    @property
    def size(self) -> tuple[int, float, int, int]:
        """What a plan depends on: the number of rows, and mean, longest and shared tokens."""
        return self.count, self.mean_tokens, self.longest_tokens, self.shared_tokens


def is_at_hand(config: RunConfig) -> bool:
    """Return whether the config's rows can be shown without the hub."""
    return "hub" not in kinds_of(config.dataset)


def load_material(config: RunConfig, *, from_hub: bool = False) -> Material:
    """Load and tokenise the rows of ``config``; the samples stand in for a hub data set.

    With ``from_hub`` the data set and the tokenizer are loaded from the hub instead.

    Raises:
        InputError: the data set or the model's folder is wrong.
        RunFailed: the hub gave up.
    """
    neutral = {name: RunConfig.model_fields[name].default for name in _SLIDERS if name != "samples"}
    return _load(config.model_copy(update={**neutral, "samples": 1}), from_hub=from_hub)


@lru_cache(maxsize=6)
def _load(config: RunConfig, *, from_hub: bool) -> Material:
    own_data = from_hub or is_at_hand(config)
    shown = config if own_data else config.model_copy(update={"dataset": BUNDLED_DATA})
    dataset = load_dataset(shown)
    config = settle_thought(config, dataset)
    tokenizer, own_tokenizer = _load_tokenizer(config, from_hub=from_hub)
    rows = tokenize_cases(dataset.cases, config, tokenizer)
    everything = shown.model_copy(update={"samples": max(1, len(dataset.cases))})
    split = split_cases(dataset.cases, everything)
    by_id = {case.id: case for case in dataset.cases}
    train = tuple(by_id[row_id] for row_id in split.train)
    tests = [by_id[row_id] for row_id in split.test]
    parts = ("train", "validation", "test")
    overlaps: dict[str, list[Overlap]] = {}
    for overlap in find_overlaps(train, _evaluation_texts(config, tests)):
        overlaps.setdefault(overlap.case_id, []).append(overlap)
    return Material(
        dataset=dataset,
        rows=rows,
        tokenizer=tokenizer,
        chat=chat_template(tokenizer),
        overlaps=overlaps,
        train_order=train,
        own_data=own_data,
        own_tokenizer=own_tokenizer,
        counts={part: len(getattr(split, part)) for part in parts},
    )


def preview_rows(config: RunConfig, material: Material) -> SelectedRows:
    """Return the rows that a run of ``config`` would train on, in its order.

    Of a data set on the hub that was not loaded only a typical length is known.

    Raises:
        InputError: the longest allowed row is shorter than every row, or all rows overlap an
            evaluation set.
    """
    if not material.own_data:
        return _typical_rows(config)
    candidates = (
        Candidate(case.id, material.rows[case.id], material.overlaps.get(case.id, ()))
        for case in material.train_order
    )
    selection = select_rows(candidates, config.samples, config.max_length)
    rows = selection.rows
    if not rows:
        raise explain_nothing_left(config, selection)
    lengths = [len(row) for row in rows]
    return SelectedRows(
        rows=rows,
        dropped=(*material.dataset.dropped, *selection.dropped),
        overlaps=selection.overlaps,
        count=len(rows),
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        shared_tokens=shared_prefix_length(rows),
        measured=material.own_tokenizer,
    )


def _typical_rows(config: RunConfig) -> SelectedRows:
    """Assume typical lengths for a set that was not loaded."""
    mean, longest = typical_lengths(config)
    return SelectedRows((), (), (), config.samples, mean, longest, 0, measured=False)


def usual_plans() -> list[tuple[str, RunConfig, Plan]]:
    """Plan a run here, on Kaggle's two T4s and on an H100: place, config and plan of each.

    This machine's is the demo with its real rows; the others assume typical rows.
    """
    places = (("here", "demo", ""), ("t4", "kaggle-t4", "2xT4"), ("h100", "gpu-80g", "H100"))
    found: list[tuple[str, RunConfig, Plan]] = []
    for place, preset, gpu in places:
        config = make_config(preset)
        machine = named_machine(gpu) if gpu else detect_machine()
        known = is_at_hand(config)
        rows = preview_rows(config, load_material(config)) if known else _typical_rows(config)
        plan = make_plan(config, machine, find_model_spec(config), *rows.size)
        found.append((place, config, plan))
    return found


def find_cases(cases: Sequence[Case], words: str, specialty: str = "") -> list[Case]:
    """Return the cases of a specialty (all with "") whose text has every word, in any case."""
    wanted = words.casefold().split()

    def matches(case: Case) -> bool:
        text = f"{case.id} {case.question} {case.thought} {case.response}".casefold()
        return all(word in text for word in wanted)

    return [case for case in cases if specialty in ("", case.specialty) and matches(case)]


def _load_tokenizer(config: RunConfig, *, from_hub: bool) -> tuple[Any, bool]:
    """Return the model's tokenizer, or the bundled one, and whether it is the model's."""
    if config.model == BUNDLED_MODEL or is_folder(config.model):
        source = bundled_model() if config.model == BUNDLED_MODEL else Path(config.model)
        return load_fast_tokenizer(source), True
    if from_hub:
        from medcot.engines.loading import load_tokenizer

        return load_tokenizer(config), True
    return load_fast_tokenizer(bundled_model()), False


def _evaluation_texts(config: RunConfig, tests: Sequence[Case]) -> EvaluationTexts:
    """Return what no training row may overlap; question sets on the hub are not loaded."""
    local = [name for name in config.mcq if name == BUNDLED_DATA or Path(name).is_file()]
    questions = {name: load_questions(name, config.language).questions for name in local}
    fixed = load_fixed_question(config.language)
    return collect_texts(make_suite(config, tests, fixed, questions))
