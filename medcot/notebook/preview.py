"""What a front end shows of a run before it starts, quick enough for every move of a slider.

Rows are read, checked and made tokens of once for each data set and model; what a slider changes
is arithmetic on their lengths. Nothing here loads a model or reaches the network, except
:func:`load_material` for a data set or tokenizer that is on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medcot.config.presets import make_config
from medcot.config.schema import BUNDLED_DATA, BUNDLED_MODEL, MEDICAL_O1, RunConfig
from medcot.data.contamination import Leak, find_leaks
from medcot.data.dataset import load_dataset, load_fixed_question, load_questions, split_cases
from medcot.data.fast_tokenizer import quick_tokenizer
from medcot.data.prompts import ChatTemplate, render
from medcot.data.sources import kind_of
from medcot.data.tokenization import Encoded, chat_template, common_beginning, encode
from medcot.engines.bundled_model import bundled_model
from medcot.errors import InputError
from medcot.hardware.machine import detect_machine, named_machine
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.records import Case, Dataset, Dropped

TYPICAL_TOKENS = {MEDICAL_O1: (788.0, 2048)}
"""Mean and longest row of a set that was not loaded: the mean of medical-o1 with its prompt, as
Llama 3's tokenizer counts it. Other sets are taken to be like it."""

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
    """The rows of a data set as tokens.

    ``own_data`` and ``own_tokenizer`` say whether they are those of the config or, where these are
    on the hub and were not asked for, the bundled ones in their place.
    """

    dataset: Dataset
    rows: Mapping[str, Encoded]
    tokenizer: Any
    chat: ChatTemplate | None
    leaks: tuple[Leak, ...]
    train_order: tuple[Case, ...]
    own_data: bool
    own_tokenizer: bool
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Rows:
    """The training rows that a config takes of its material, and what it leaves out."""

    kept: tuple[Encoded, ...]
    dropped: tuple[Dropped, ...]
    leaks: tuple[Leak, ...]
    count: int
    mean_tokens: float
    longest_tokens: int
    shared_tokens: int
    measured: bool

    @property
    def size(self) -> tuple[int, float, int, int]:
        """What a plan needs to know of them: how many, mean, longest and common tokens."""
        return self.count, self.mean_tokens, self.longest_tokens, self.shared_tokens


def is_at_hand(config: RunConfig) -> bool:
    """Whether the config's rows can be shown without asking the hub."""
    return kind_of(config.dataset) != "hub"


def load_material(config: RunConfig, *, from_hub: bool = False) -> Material:
    """The rows of ``config``; without ``from_hub`` those on the hub are replaced by the samples.

    Raises:
        InputError: the data set or the model's folder is wrong.
        RunFailed: the hub gave up.
    """
    neutral = {name: RunConfig.model_fields[name].default for name in _SLIDERS if name != "samples"}
    return _load(config.model_copy(update={**neutral, "samples": 1}), from_hub)


@lru_cache(maxsize=6)
def _load(config: RunConfig, from_hub: bool) -> Material:
    own_data = from_hub or is_at_hand(config)
    shown = config if own_data else config.model_copy(update={"dataset": BUNDLED_DATA})
    dataset = load_dataset(shown)
    tokenizer, own_tokenizer = _tokenizer(config, from_hub)
    chat = chat_template(tokenizer)
    if config.style == "chat" and chat is None:
        needs = "use --style tutorial"
        raise InputError("--style chat", "the model has no chat template", needs)
    pairs = {case.id: render(case, config.style, chat) for case in dataset.cases}
    rows = {row.id: row for row in encode(tokenizer, pairs)}
    everything = shown.model_copy(update={"samples": max(1, len(dataset.cases))})
    split = split_cases(dataset.cases, everything)
    by_id = {case.id: case for case in dataset.cases}
    train = tuple(by_id[row_id] for row_id in split.train)
    tests = [by_id[row_id] for row_id in split.test]
    parts = ("train", "validation", "test")
    return Material(
        dataset=dataset,
        rows=rows,
        tokenizer=tokenizer,
        chat=chat,
        leaks=tuple(find_leaks(train, _evaluation_texts(config, tests))),
        train_order=train,
        own_data=own_data,
        own_tokenizer=own_tokenizer,
        counts={part: len(getattr(split, part)) for part in parts},
    )


def choose_rows(config: RunConfig, material: Material) -> Rows:
    """The rows that a run of ``config`` would train on, in its order.

    Of a data set that is on the hub and was not loaded only a typical length is known.

    Raises:
        InputError: the longest allowed row is shorter than every row, or all of them are leaks.
    """
    if not material.own_data:
        return _typical_rows(config)
    leaked = {leak.case_id for leak in material.leaks}
    kept: list[Encoded] = []
    dropped: list[Dropped] = []
    looked_at: set[str] = set()
    for case in material.train_order:
        if len(kept) == config.samples:
            break
        looked_at.add(case.id)
        row = material.rows[case.id]
        if case.id in leaked:
            continue
        if len(row) <= config.max_length:
            kept.append(row)
        else:
            reason = f"{len(row)} tokens, longer than {config.max_length}"
            dropped.append(Dropped(case.id, reason))
    if not kept:
        raise _nothing_left(config, dropped)
    leaks = tuple(leak for leak in material.leaks if leak.case_id in looked_at)
    lengths = [len(row) for row in kept]
    mean = sum(lengths) / len(lengths)
    return Rows(
        kept=tuple(kept),
        dropped=(*material.dataset.dropped, *dropped),
        leaks=leaks,
        count=len(kept),
        mean_tokens=mean,
        longest_tokens=max(lengths),
        shared_tokens=common_beginning(kept),
        measured=material.own_tokenizer,
    )


def _typical_rows(config: RunConfig) -> Rows:
    """What is taken of a set that was not loaded."""
    mean, longest = TYPICAL_TOKENS.get(config.dataset, TYPICAL_TOKENS[MEDICAL_O1])
    longest = min(longest, config.max_length)
    return Rows((), (), (), config.samples, min(mean, longest), longest, 0, measured=False)


def _nothing_left(config: RunConfig, dropped: Sequence[Dropped]) -> InputError:
    """Every row is too long, or else the evaluation holds those that are not."""
    if not dropped:
        got = "every row also appears in the evaluation"
        return InputError(f"--dataset {config.dataset}", got, "use other rows")
    shortest = min(int(row.reason.split()[0]) for row in dropped)
    got = f"every row is longer; the shortest has {shortest} tokens"
    return InputError(f"--max-length {config.max_length}", got, f"use {shortest} or more")


def usual_plans() -> list[tuple[str, RunConfig, Plan]]:
    """What a run takes here, on a lent T4 and on an H100: place, config and plan of each.

    This machine's is the demo's, with its rows as they are; the others' rest on typical rows.
    """
    places = (("here", "demo"), ("t4", "kaggle-t4"), ("h100", "gpu-80g"))
    found: list[tuple[str, RunConfig, Plan]] = []
    for place, preset in places:
        config = make_config(preset)
        machine = detect_machine() if place == "here" else named_machine(place)
        known = is_at_hand(config)
        rows = choose_rows(config, load_material(config)) if known else _typical_rows(config)
        plan = make_plan(config, machine, find_model_spec(config), *rows.size)
        found.append((place, config, plan))
    return found


def find_cases(cases: Sequence[Case], words: str, specialty: str = "") -> list[Case]:
    """The cases of a specialty (all with "") whose text has every one of ``words``, any case."""
    wanted = words.casefold().split()

    def matches(case: Case) -> bool:
        text = f"{case.id} {case.question} {case.thought} {case.response}".casefold()
        return all(word in text for word in wanted)

    return [case for case in cases if specialty in ("", case.specialty) and matches(case)]


def _tokenizer(config: RunConfig, from_hub: bool) -> tuple[Any, bool]:
    """The model's tokenizer, or the bundled one in its place; and whether it is the model's."""
    folder = Path(config.model)
    if config.model == BUNDLED_MODEL or folder.is_dir():
        source = bundled_model() if config.model == BUNDLED_MODEL else folder
        return quick_tokenizer(source), True
    if from_hub:
        from medcot.engines.loading import load_tokenizer

        return load_tokenizer(config), True
    return quick_tokenizer(bundled_model()), False


def _evaluation_texts(config: RunConfig, tests: list[Case]) -> dict[str, list[tuple[str, str]]]:
    """Set name to (id, question) pairs that no training row may share; sets on the hub aside."""
    fixed = load_fixed_question(config.language)
    texts = {"test": [(case.id, case.question) for case in tests[: config.test_samples]]}
    texts["fixed question"] = [(fixed.id, fixed.question)]
    for name in config.mcq:
        if name == BUNDLED_DATA or Path(name).is_file():
            asked = load_questions(name, config.language)
            texts[name] = [(question.id, question.question) for question in asked]
    return texts
