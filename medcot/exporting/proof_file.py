"""``proof.json``: what an export was made from, its files, and what its proof found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from medcot.catalog import Message
from medcot.exporting.verdict import Comparison, Outcome
from medcot.runs.environment import NOT_MEDICAL_ADVICE

PROOF = "proof.json"
SCHEMA_VERSION = 1

_SEVERITY: tuple[Outcome, ...] = ("same", "changed", "unproved", "broken")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was proved: a format or, of a GGUF export, one of its files."""

    name: str
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """One export. ``files`` maps each file to its size and SHA-256."""

    format: str
    made_from: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]
    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls, name: str, made_from: Mapping[str, Any], folder: Path, parts: tuple[Part, ...]
    ) -> ExportRecord:
        """Record the files that are in ``folder`` now."""
        return cls(name, made_from, {one: _mark(folder / one) for one in list_files(folder)}, parts)

    @property
    def worst(self) -> Comparison:
        """Return the comparison with the worst outcome."""
        return max((one.comparison for one in self.parts), key=lambda c: _SEVERITY.index(c.outcome))

    @property
    def outcome(self) -> Outcome:
        """Return the worst outcome of the parts."""
        return self.worst.outcome

    @property
    def is_proved(self) -> bool:
        """Return whether every part was proved."""
        return self.outcome in ("same", "changed")

    def is_made_from(self, sources: Mapping[str, Any]) -> bool:
        """Return whether the export holds all that would be made from ``sources``."""
        own, wanted = dict(self.made_from), dict(sources)
        had = set(own.pop("quantizations", []))
        return set(wanted.pop("quantizations", [])) <= had and own == wanted

    def is_intact(self, folder: Path) -> bool:
        """Return whether every file is there with the recorded content."""
        return all(
            (folder / name).is_file() and _mark(folder / name) == tuple(mark)
            for name, mark in self.files.items()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``proof.json`` holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "not_medical_advice": NOT_MEDICAL_ADVICE,
            "format": self.format,
            "outcome": self.outcome,
            "made_from": dict(self.made_from),
            "files": {name: {"bytes": b, "sha256": d} for name, (b, d) in self.files.items()},
            "parts": [_part_to_json(part) for part in self.parts],
        }


def list_files(folder: Path) -> list[str]:
    """Return the files of an export, relative to it, without its proof and card."""
    found = (one for one in folder.rglob("*") if one.is_file())
    names = (one.relative_to(folder).as_posix() for one in found)
    return sorted(one for one in names if one not in (PROOF, "README.md"))


def write_record(folder: Path, record: ExportRecord) -> None:
    """Write ``proof.json``."""
    text = json.dumps(record.to_json(), ensure_ascii=False, indent=2) + "\n"
    (folder / PROOF).write_text(text, encoding="utf-8")


def read_record(folder: Path) -> ExportRecord | None:
    """Read ``proof.json``; None where there is none, or none that this version wrote."""
    try:
        found = json.loads((folder / PROOF).read_text(encoding="utf-8"))
        if found["schema_version"] != SCHEMA_VERSION:
            return None
        files = {name: (one["bytes"], one["sha256"]) for name, one in found["files"].items()}
        parts = tuple(_part_from_json(one) for one in found["parts"])
        return ExportRecord(found["format"], found["made_from"], files, parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A damaged proof proves nothing: the export is made again.
        return None


def _part_to_json(part: Part) -> dict[str, Any]:
    one = part.comparison
    return {
        "name": part.name,
        "outcome": one.outcome,
        "sentence": one.sentence.to_json(),
        "findings": [finding.to_json() for finding in one.findings],
        "loss": one.loss and asdict(one.loss),
        "tolerance": one.tolerance and asdict(one.tolerance),
        "program": one.program,
        "computed_in": one.computed_in,
        "rows": [asdict(row) for row in one.rows],
        "answers": [asdict(answer) for answer in one.answers],
    }


def _part_from_json(found: Mapping[str, Any]) -> Part:
    from pydantic import TypeAdapter

    fields = {name: value for name, value in found.items() if name != "name"}
    fields["sentence"] = Message.from_json(found["sentence"])
    fields["findings"] = tuple(Message.from_json(one) for one in found["findings"])
    adapter = TypeAdapter(Comparison)
    return Part(cast("str", found["name"]), adapter.validate_python(fields))


def _mark(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
