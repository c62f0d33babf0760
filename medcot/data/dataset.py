"""A run's data: load it, split it, drop what does not fit. Files and the hub are below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data import case_cache
from medcot.data.case_store import CaseList, ids_of, place_of
from medcot.data.cases import Gathered, gather_cases, question_digest
from medcot.data.hub import load_hub_rows
from medcot.data.mcq import load_questions as load_questions
from medcot.data.sources import kind_of, read_file, read_files, sample_files
from medcot.errors import InputError
from medcot.records import Case, Dataset, Dropped, Language, Split

VALIDATION_FRACTION = 0.05
"""Share of questions between the test and the training part."""

SYNTHETIC = "synthetic, not clinically reviewed"


def load_dataset(config: RunConfig) -> Dataset:
    """The valid, distinct cases of ``config.dataset``, and what was left out and why.

    A wrong row in a file is an error, because its owner can mend it; one from the hub is left out
    and listed. A question that was there before is always left out and listed.

    Raises:
        InputError: an unknown name, a file that cannot be read, wrong rows in it, or no valid row.
        RunFailed: the hub or the connection to it gave up.
    """
    with option_named("--dataset"):
        found, revision, notes = gather_source(config)
        local = kind_of(config.dataset) != "hub"
        if found.faults and (local or not found.cases):
            raise _first_fault(found, config.dataset)
    return Dataset(
        name=config.dataset,
        cases=found.cases,
        dropped=(*found.faulty, *found.duplicates),
        revision=revision,
        fingerprint=found.cases.fingerprint,
        synthetic=config.dataset == "sample",
        notes=(*notes, *_shortfalls(found.cases, config), *_language_notes(found)),
    )


def gather_source(config: RunConfig) -> tuple[Gathered, str, tuple[str, ...]]:
    """What the rows of ``config.dataset`` became, their hub commit (or ""), and notes."""
    kind = kind_of(config.dataset)
    if kind == "sample":
        rows = read_files(sample_files("cases", config.language))
        return gather_cases(rows, config.language), "", (f"bundled samples: {SYNTHETIC}",)
    if kind == "file":
        return case_cache.gather_file(Path(config.dataset), config.language), "", ()
    loaded = load_hub_rows(
        config.dataset,
        config.dataset_config or config.language,
        config.dataset_revision,
        asked=bool(config.dataset_config),
    )
    found = case_cache.gather_hub(loaded, config)
    return found, loaded.revision, loaded.notes


def split_cases(cases: Sequence[Case], config: RunConfig) -> Split:
    """Parts by a hash of each question, so that no row's part depends on the other rows.

    Questions below ``config.test_fraction`` are for testing, the next ``VALIDATION_FRACTION`` for
    validation, the others for training. Of the first two the lowest hashes are taken, at most
    ``test_samples`` each; of the last the first ``samples`` in file order. What is not taken
    belongs to no part.

    Raises:
        InputError: nothing is left to train on, or nothing to test on.
    """
    held_out = config.test_fraction + VALIDATION_FRACTION
    placed = list(zip(_places_of(cases), ids_of(cases), strict=True))
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


def place(question: str) -> float:
    """Where a question falls in [0, 1): the first 8 bytes of its digest (see cases)."""
    return place_of(question_digest(question))


def _places_of(cases: Sequence[Case]) -> Sequence[float]:
    if isinstance(cases, CaseList):
        return cases.places
    return [place(case.question) for case in cases]


def drop_overlong(
    cases: Iterable[Case], count_tokens: Callable[[Case], int], max_length: int
) -> tuple[tuple[Case, ...], tuple[Dropped, ...]]:
    """Cases of at most ``max_length`` tokens, and the others with their lengths.

    A row is never cut: half an answer teaches to stop halfway.
    """
    kept: list[Case] = []
    dropped: list[Dropped] = []
    for case in cases:
        tokens = count_tokens(case)
        if tokens <= max_length:
            kept.append(case)
        else:
            dropped.append(Dropped(case.id, f"{tokens} tokens, longer than {max_length}"))
    return tuple(kept), tuple(dropped)


def load_fixed_question(language: Language) -> Case:
    """The bundled question that is asked before and after, with its reference and claims.

    Raises:
        InputError: the install is damaged.
    """
    for path in sample_files("fixed_questions"):
        found = gather_cases(read_file(path), language)
        for case in found.cases:
            if case.language == language:
                return case
    raise InputError("sample", f"no fixed question in {language!r}", "reinstall medcot")


@contextmanager
def option_named(option: str) -> Iterator[None]:
    """Put the option in front of what an :class:`InputError` names."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option} {error.where}", error.got, error.needs) from None


def _first_fault(found: Gathered, name: str) -> InputError:
    first, more = found.faults[0], len(found.faults) - 1
    return first.as_error(f" (and {more} more: medcot data {name})" if more else "")


def _shortfalls(cases: CaseList, config: RunConfig) -> Iterator[str]:
    test = sum(at < config.test_fraction for at in cases.places)
    train = sum(at >= config.test_fraction + VALIDATION_FRACTION for at in cases.places)
    for have, want, option in (
        (train, config.samples, "--samples"),
        (test, config.test_samples, "--test-samples"),
    ):
        if 0 < have < want:
            yield f"{option} {want}: {config.dataset} has only {have} such rows, all are taken"


def _language_notes(found: Gathered) -> Iterator[str]:
    """Rows that say another language than they are written in get the wrong prompt."""
    written, said, count = found.written_chinese, found.said_chinese, len(found.cases)
    if abs(written - said) > count / 2:
        yield (
            f"{written} of {count} questions are written in Chinese, {said} are taken for it:"
            " see --language and --dataset-config"
        )
