"""Loads a run's data, splits it, and drops what does not fit."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medcot.config.schema import BETWEEN_DATA_SETS, RunConfig
from medcot.data import case_list
from medcot.data.case_list import CaseList, list_case_ids
from medcot.data.cases import ValidatedCases, unit_hash, validate_rows
from medcot.data.hub import load_hub_rows
from medcot.data.layouts import Wanted, recognise
from medcot.data.mcq import QuestionSet as QuestionSet
from medcot.data.mcq import load_questions as load_questions
from medcot.data.readers import Fault, SourceRow, describe_table
from medcot.data.sources import (
    SAMPLES,
    Kind,
    describe_passed_over,
    kind_of,
    list_files,
    read_file,
    read_files,
    sample_files,
    split_names,
)
from medcot.data.store import hash_code, hash_file, hash_parts
from medcot.data.streams import format_of
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
        InputError: an unknown name, a file that cannot be read, rows that can be read in two ways,
            wrong rows in a file, or no valid row.
        RunFailed: the hub or the connection to it gave up.
    """
    with option_named("--dataset"):
        source = read_source(config)
        found = source.found
        names = split_names(config.dataset)
        hub = tuple(f"{name}, " for name in names if kind_of(name) in ("snapshot", "hub"))
        local = [fault for fault in found.faults if not fault.where.startswith(hub)]
        if local or (found.faults and not found.cases):
            raise _first_fault(local or found.faults, config.dataset)
    return Dataset(
        name=config.dataset,
        cases=found.cases,
        dropped=(*found.faulty, *found.duplicates),
        revision=source.revision,
        fingerprint=found.cases.fingerprint,
        synthetic=set(names) <= set(SAMPLES),
        notes=(*source.notes, *_shortfalls(found.cases, config), *_language_notes(found)),
        thinks=found.thinks,
    )


def settle_thought(config: RunConfig, dataset: Dataset) -> RunConfig:
    """Return the config as a run of the data set records it: it says if there are no thoughts."""
    return config if dataset.thinks else config.model_copy(update={"thought": "none"})


def read_source(config: RunConfig) -> CaseSource:
    """Read and check all rows of ``config.dataset``.

    The cases of large sources come from the cache the second time. Files' are cached under their
    content, so that changed files are read again, and so are those with faults.

    Raises:
        InputError, RunFailed: as :func:`load_dataset`, except for wrong rows.
    """
    parts = [part for name in split_names(config.dataset) for part in _open_parts(name, config)]

    def validate() -> ValidatedCases:
        return _validate_parts(parts, config)

    states = [part.state() for part in parts]
    if key := _key_of(parts, config):
        found = _cached(key, validate, lambda: [part.state() for part in parts] == states)
    else:
        found = validate()
    notes = [note for part in parts for note in part.notes]
    if found.layout:
        notes.append(found.layout)
    revision = BETWEEN_DATA_SETS.join(part.revision for part in parts if part.revision)
    return CaseSource(found, revision, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True, slots=True)
class _Part:
    """One file, split of a hub's set or sample of a source.

    ``owner`` is the data set that it belongs to, as the user named it. ``paths`` are its files.
    ``fixed`` names its content, where that is known without reading it.
    """

    owner: str
    kind: Kind
    rows: Callable[[], Iterable[SourceRow]]
    paths: tuple[Path, ...] = ()
    fixed: str = ""
    revision: str = ""
    notes: tuple[str, ...] = ()

    def state(self) -> list[tuple[int, int, int] | None]:
        """Return what changes when a file is written; see :func:`_state`."""
        return [_state(path) for path in self.paths]

    def content(self) -> str:
        """Return a name of the content.

        Raises:
            OSError: a file cannot be read.
        """
        named = [part for path in self.paths for part in (format_of(path), hash_file(path))]
        return hash_parts(self.fixed, *named)


def _open_parts(name: str, config: RunConfig) -> list[_Part]:
    kind = kind_of(name)
    if kind == "sample":
        paths = tuple(sample_files(SAMPLES[name], config.language))
        notes = (f"bundled samples: {SYNTHETIC}",)
        return [_Part(name, kind, lambda: read_files(paths), paths, notes=notes)]
    if kind == "file":
        notes = describe_passed_over(Path(name))
        return [_file_part(name, path, notes) for path in list_files(Path(name))]
    loaded = load_hub_rows(
        name,
        config.dataset_config or config.language,
        config.dataset_revision,
        fallback=not config.dataset_config,
    )
    subset = config.dataset_config or config.language
    fixed = hash_parts("hub", name, subset, loaded.revision) if loaded.revision else ""
    return [_Part(name, kind, lambda: loaded.rows, (), fixed, loaded.revision, loaded.notes)]


def _file_part(name: str, path: Path, notes: tuple[str, ...]) -> _Part:
    return _Part(name, "file", lambda: read_file(path), (path,), notes=notes)


def _key_of(parts: Sequence[_Part], config: RunConfig) -> str:
    """Return the key of a source's cache entry, "" for one that is not cached."""
    sizes = [state[0] for part in parts for state in part.state() if state is not None]
    if any(part.kind in ("snapshot", "hub") and not part.fixed for part in parts):
        return ""
    if sum(sizes) < case_list.IN_MEMORY and not any(part.fixed for part in parts):
        return ""
    try:
        contents = [part.content() for part in parts]
    except OSError:
        return ""  # reading the file names what is wrong with it
    owners = json.dumps([part.owner for part in parts])
    said = json.dumps([config.language, config.columns, config.thought, config.train_turns])
    return _key(*contents, owners, said)


def _validate_parts(parts: Sequence[_Part], config: RunConfig) -> ValidatedCases:
    """Recognise each part's layout, and check the rows of all as one source.

    Parts are opened one after another: a folder may have more files than a process may open.

    Raises:
        InputError: some parts have thoughts, others none.
    """
    wanted = Wanted.of(config)
    shown: dict[str, None] = {}
    thinking: dict[bool, str] = {}

    def recognised() -> Iterator[Iterator[SourceRow]]:
        for part in parts:
            found = recognise(part.rows(), wanted)
            thinking.setdefault(found.thinks, _name(part))
            if len(thinking) > 1:
                got = f"{thinking[True]} has thoughts, {thinking[False]} has none"
                needs = "use sets of one kind, or --thought none to train no thoughts"
                raise InputError(config.dataset, got, needs)
            if found.note and part.kind != "sample":
                shown[f"{part.owner}: {found.note}"] = None
            yield found.rows

    validated = validate_rows(_join_rows(parts, recognised()), config.language)
    validated.thinks = set(thinking) == {True}
    tables = [path for part in parts for path in part.paths if format_of(path) in (".csv", ".tsv")]
    told = dict.fromkeys(note for path in tables for note in describe_table(path))
    validated.layout = "; ".join([*shown, *told])
    return validated


def _name(part: _Part) -> str:
    return part.paths[0].name if part.kind == "file" else part.owner


def _join_rows(
    parts: Sequence[_Part], sources: Iterable[Iterator[SourceRow]]
) -> Iterator[SourceRow]:
    """Yield the rows of all parts, numbered across the files of a data set.

    Ids of the second data set begin with ``2:``, and so on: two sets may use the same ones.
    """
    owners = list(dict.fromkeys(part.owner for part in parts))
    counts = dict.fromkeys(owners, 0)
    for part, rows in zip(parts, sources, strict=True):
        before, last = counts[part.owner], 0
        place = owners.index(part.owner) + 1
        for row in rows:
            last = row.number
            moved = replace(row, number=before + last) if before else row
            yield moved if place == 1 else _with_own_id(moved, place)
        counts[part.owner] = before + last


def _with_own_id(row: SourceRow, place: int) -> SourceRow:
    given = row.values.get("id")
    if given in (None, ""):
        given = f"row-{row.number}"
    if isinstance(given, str | int) and not isinstance(given, bool):
        return replace(row, values={**row.values, "id": f"{place}:{given}"})
    return row


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
    return [unit_hash(case) for case in cases]


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
            "thinks": found.thinks,
            "layout": found.layout,
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


def _first_fault(faults: Sequence[Fault], name: str) -> InputError:
    first, more = faults[0], len(faults) - 1
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
