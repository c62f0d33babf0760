"""The cases of large sources, checked once: the next time they come from the cache.

The key is the source's content, so a file that changed is read again, and the code that checks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from medcot.config.schema import RunConfig
from medcot.data import case_store
from medcot.data.case_store import CaseList
from medcot.data.cases import Gathered, gather_cases
from medcot.data.disk_cache import digest_of_file, find_entry, key_of, remove_entry, source_of
from medcot.data.hub import HubRows
from medcot.data.sources import read_file
from medcot.records import Dropped, Language

CODE = (
    "data/arrow_file", "data/case_cache", "data/case_store", "data/cases", "data/readers",
    "data/sources", "data/text", "records",
)  # fmt: skip
"""The modules that decide what an entry holds."""


def gather_file(path: Path, language: Language) -> Gathered:
    """The cases of a file. One that has faults is read every time: its owner will mend it.

    Raises:
        InputError: as :func:`medcot.data.sources.read_file`.
    """

    def gather() -> Gathered:
        return gather_cases(read_file(path), language)

    before = _state(path)
    if before is None or before[0] < case_store.IN_MEMORY:
        return gather()
    try:
        key = _key("file", path.suffix.lower(), digest_of_file(path), language)
    except OSError:
        return gather()
    return _stored(key, gather, lambda: _state(path) == before)


def gather_hub(loaded: HubRows, config: RunConfig) -> Gathered:
    """The cases of a data set on the hub: a commit's rows never change."""
    part = config.dataset_config or config.language
    key = _key("hub", config.dataset, part, loaded.revision, config.language)

    def gather() -> Gathered:
        return gather_cases(loaded.rows, config.language)

    return _stored(key, gather) if loaded.revision else gather()


def _stored(
    key: str, gather: Callable[[], Gathered], unchanged: Callable[[], bool] = lambda: True
) -> Gathered:
    """What is in the cache under ``key``, or what ``gather`` gives, which is then left there."""
    if folder := find_entry(key):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return _restored(folder)
        remove_entry(folder)
    found = gather()
    if not found.faults and unchanged():
        facts = {
            "rows": found.rows,
            "written_chinese": found.written_chinese,
            "said_chinese": found.said_chinese,
            "duplicates": [asdict(row) for row in found.duplicates],
        }
        found.cases.keep(key, facts)
    return found


def _restored(folder: Path) -> Gathered:
    cases, facts = CaseList.kept(folder)
    duplicates = [Dropped(**row) for row in facts.pop("duplicates")]
    return Gathered(cases=cases, duplicates=duplicates, **facts)


def _key(*parts: str) -> str:
    code = source_of(*CODE)
    return f"cases-{key_of(*parts, code, unicodedata.unidata_version)}"


def _state(path: Path) -> tuple[int, int, int] | None:
    """What tells that a file was written to: its size, its time, and which file it is."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
