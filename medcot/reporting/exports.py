"""What a report says of a run's exports, read from the proofs in ``export/``."""

from __future__ import annotations

from medcot.catalog import Message
from medcot.reporting.schema import ExportFact
from medcot.runs.directory import RunDirectory


def read_exports(directory: RunDirectory) -> tuple[ExportFact, ...] | None:
    """Read what the proofs found, one fact a part; None where nothing was exported.

    Raises:
        InputError: A proof is not JSON.
    """
    facts: list[ExportFact] = []
    for path in sorted((directory.path / "export").glob("*/proof.json")):
        if path.parent.name.startswith(".") or path.parent.name == "hub":
            continue  # not finished; or another export, uploaded
        found = directory.read_json(path.relative_to(directory.path).as_posix())
        facts += [
            ExportFact(found["format"], part["outcome"], Message.from_json(part["sentence"]))
            for part in found.get("parts", [])
        ]
    return tuple(facts) or None
