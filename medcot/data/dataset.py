"""Loads a run's data, splits it, and drops what does not fit."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data import case_list
from medcot.data.case_list import CaseList, list_case_ids
from medcot.data.cases import ValidatedCases, unit_hash, validate_rows
from medcot.data.hub import HubRows, load_hub_rows
from medcot.data.mcq import QuestionSet as QuestionSet
from medcot.data.mcq import load_questions as load_questions
from medcot.data.sources import SAMPLES, kind_of, read_file, read_files, sample_files
from medcot.data.store import hash_code, hash_file, hash_parts
from medcot.errors import InputError
from medcot.records import Case, Dataset, Dropped, Language, Split

VALIDATION_FRACTION = 0.05
"""Share of questions between the test and the training part."""

SYNTHETIC = "synthetic, not clinically reviewed"


@dataclass(frozen=True, slots=True)
class CaseSource:
    """What ``config.dataset`` holds: its validated rows, their hub commit (or ""), and notes."""

    found: ValidatedCases
    revision: str = ""
    notes: tuple[str, ...] = ()


def load_dataset(config: RunConfig) -> Dataset:
    """Return the valid, distinct cases of ``config.dataset``, and what was left out and why.

    A wrong row in a file is an error, because its owner can fix it; one from the hub is left out
    and listed. A repeated question is always left out and listed.

    Raises:
        InputError: an unknown name, a file that cannot be read, wrong rows in it, or no valid row.
        RunFailed: the hub or the connection to it gave up.
    """
    with option_named("--dataset"):
        source = read_source(config)
        found = source.found
        local = kind_of(config.dataset) != "hub"
        if found.faults and (local or not found.cases):
            raise _first_fault(found, config.dataset)
    return Dataset(
        name=config.dataset,
        cases=found.cases,
        dropped=(*found.faulty, *found.duplicates),
        revision=source.revision,
        fingerprint=found.cases.fingerprint,
        synthetic=config.dataset in SAMPLES,
        notes=(*source.notes, *_shortfalls(found.cases, config), *_language_notes(found)),
    )


def read_source(config: RunConfig) -> CaseSource:
    """Read and check all rows of ``config.dataset``.

    The cases of large sources come from the cache the second time. A file's are cached under its
    content, so a changed file is read again, and so is one with faults.

    Raises:
        InputError, RunFailed: as :func:`load_dataset`, except for wrong rows.
    """
    kind = kind_of(config.dataset)
    if kind == "sample":
        rows = read_files(sample_files(SAMPLES[config.dataset], config.language))
        found = validate_rows(rows, config.language)
        return CaseSource(found, notes=(f"bundled samples: {SYNTHETIC}",))
    if kind == "file":
        return CaseSource(_validate_file(Path(config.dataset), config.language))
    loaded = load_hub_rows(
        config.dataset,
        config.dataset_config or config.language,
        config.dataset_revision,
        fallback=not config.dataset_config,
    )
    return CaseSource(_validate_hub(loaded, config), loaded.revision, loaded.notes)


def split_cases(cases: Sequence[Case], config: RunConfig) -> Split:
    """Split by a hash of each question, so that no row's part depends on the other rows.

    Questions below ``config.test_fraction`` are for testing, the next ``VALIDATION_FRACTION`` for
    validation, the others for training. Of the first two the lowest hashes are taken, at most
    ``test_samples`` each; of the last the first ``samples`` in file order. What is not taken
    belongs to no part.

    Raises:
        InputError: nothing is left to train on, or nothing to test on.
    """
    held_out = config.test_fraction + VALIDATION_FRACTION
    placed = list(zip(_unit_hashes(cases), list_case_ids(cases), strict=True))
    test = sorted(pair for pair in placed if pair[0] < config.test_fraction)
    validation = sorted(pair for pair in placed if config.test_fraction <= pair[0] < held_out)
    train = [row_id for at, row_id in placed if at >= held_out]
    for rows, part, direction in ((train, "training", "smaller"), (test, "testing", "larger")):
        if not rows:
            got = f"none of its {len(cases)} rows is assigned to {part}"
            needs = f"use more rows or a {direction} --test-fraction (now {config.test_fraction:g})"
            raise InputError(f"--dataset {config.dataset}", got, needs)
    return Split(
        train=tuple(train[: config.samples]),
        validation=tuple(row_id for _, row_id in validation[: config.test_samples]),
        test=tuple(row_id for _, row_id in test[: config.test_samples]),
    )


def load_fixed_question(language: Language) -> Case:
    """Return the bundled question asked before and after, with its reference and claims.

    Raises:
        InputError: the install is damaged.
    """
    for path in sample_files("fixed_questions"):
        found = validate_rows(read_file(path), language)
        for case in found.cases:
            if case.language == language:
                return case
    raise InputError("sample", f"no fixed question in {language!r}", "reinstall medcot")


@contextmanager
def option_named(option: str) -> Generator[None]:
    """Prefix what an :class:`InputError` names with the option."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option} {error.where}", error.got, error.needs) from None


def _unit_hashes(cases: Sequence[Case]) -> Sequence[float]:
    if isinstance(cases, CaseList):
        return cases.unit_hashes
    return [unit_hash(case.question) for case in cases]


def _validate_file(path: Path, language: Language) -> ValidatedCases:
    def validate() -> ValidatedCases:
        return validate_rows(read_file(path), language)

    before = _state(path)
    if before is None or before[0] < case_list.IN_MEMORY:
        return validate()
    try:
        key = _key("file", path.suffix.lower(), hash_file(path), language)
    except OSError:
        return validate()  # which names what is wrong with the file
    return _cached(key, validate, lambda: _state(path) == before)


def _validate_hub(loaded: HubRows, config: RunConfig) -> ValidatedCases:
    """Check the rows of a data set on the hub; a commit's never change."""

    def validate() -> ValidatedCases:
        return validate_rows(loaded.rows, config.language)

    if not loaded.revision:
        return validate()
    part = config.dataset_config or config.language
    key = _key("hub", config.dataset, part, loaded.revision, config.language)
    return _cached(key, validate)


def _cached(
    key: str, validate: Callable[[], ValidatedCases], unchanged: Callable[[], bool] = lambda: True
) -> ValidatedCases:
    """Return the cache entry ``key``, or what ``validate`` returns, and save that.

    Rows with faults are not saved: they are read every time until their owner has fixed them.
    """
    if entry := CaseList.load(key):
        cases, facts = entry
        duplicates = [Dropped.from_json(row) for row in facts.pop("duplicates")]
        return ValidatedCases(cases=cases, duplicates=duplicates, **facts)
    found = validate()
    if not found.faults and unchanged():
        facts = {
            "rows": found.rows,
            "written_chinese": found.written_chinese,
            "labelled_chinese": found.labelled_chinese,
            "duplicates": [row.to_json() for row in found.duplicates],
        }
        found.cases.save(key, facts)
    return found


def _key(*parts: str) -> str:
    return f"cases-{hash_parts(*parts, hash_code(), unicodedata.unidata_version)}"


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written: its size, its time, and which file it is."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _first_fault(found: ValidatedCases, name: str) -> InputError:
    first, more = found.faults[0], len(found.faults) - 1
    return first.as_error(f" (and {more} more: medcot data {name})" if more else "")


def _shortfalls(cases: CaseList, config: RunConfig) -> Iterator[str]:
    test = sum(at < config.test_fraction for at in cases.unit_hashes)
    train = sum(at >= config.test_fraction + VALIDATION_FRACTION for at in cases.unit_hashes)
    for have, want, option in (
        (train, config.samples, "--samples"),
        (test, config.test_samples, "--test-samples"),
    ):
        if 0 < have < want:
            yield f"{option} {want}: {config.dataset} has only {have} such rows, all are taken"


def _language_notes(found: ValidatedCases) -> Iterator[str]:
    """Note rows whose language label is wrong, as they get the wrong prompt."""
    written, said, count = found.written_chinese, found.labelled_chinese, len(found.cases)
    if abs(written - said) > count / 2:
        yield (
            f"{written} of {count} questions are written in Chinese, {said} are taken for it:"
            " see --language and --dataset-config"
        )
