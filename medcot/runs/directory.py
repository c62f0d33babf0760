"""Reads and writes the files of a run: writes are atomic, appends synced to disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from medcot.config.schema import RunConfig, build_config
from medcot.credentials import redact_values
from medcot.errors import InputError, one_line
from medcot.runs.checkpoints import STATE, list_checkpoints, remove_unfinished_manifests
from medcot.runs.local_paths import PATH_FIELDS, resolve_local_paths
from medcot.runs.lock import LOCK_FILE, RunLock
from medcot.runs.shapes import check_shape

logger = logging.getLogger(__name__)

Phase = Literal["before", "after"]
Stage = Literal[
    "planned", "before", "training", "trained", "after", "report", "done", "failed", "cancelled"
]

_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names that ``tempfile`` gives to a file that is being written."""


class RunDirectory:
    """The files of one run under ``path``; a directory left by a killed process is readable.

    Writing raises OSError once the directory is gone: it is never made again in silence.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lock = RunLock(self.path)
        self.reached: Stage | None = None
        """The last stage that was written through this object."""

    @property
    def checkpoints(self) -> Path:
        """Return the folder of resumable training states."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Return the folder of the trained adapter, in peft's format."""
        return self.path / "adapter"

    @property
    def events(self) -> Path:
        """Return the file with one line for each optimizer step."""
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        """Return the file of the run's own log, one record a line."""
        return self.path / "medcot.log"

    @property
    def report_markdown(self) -> Path:
        """Return the report's file."""
        return self.path / "report.md"

    @property
    def report_page(self) -> Path:
        """Return the report's file for a browser."""
        return self.path / "report.html"

    def of_seed(self, number: int) -> RunDirectory:
        """Return the run directory of a run's training ``number``, from 1."""
        return RunDirectory(self.path / "seeds" / str(number))

    def evaluation(self, phase: Phase) -> Path:
        """Return the file with one scored test row per line."""
        return self.path / "evaluation" / f"{phase}.jsonl"

    def exists(self) -> bool:
        """Return whether a run was begun here."""
        return (self.path / "config.json").exists()

    def create(self, config: RunConfig, *, lock: bool = False) -> None:
        """Create the directory for ``config``.

        Args:
            lock: Take the lock of the directory before the first file is written.

        Raises:
            InputError: it holds a run already, or something that is not a run; or another
                process works on it.
        """
        self._require_no_run()
        if self.path.exists() and (not self.path.is_dir() or any(self._foreign_files())):
            raise InputError(
                f"--out {self.path}", "the folder is not empty", "use a new or empty folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if lock:
                self.lock.take()
                self._require_no_run()
            self.write_json("config.json", config.model_dump(mode="json"))
        except OSError as error:
            raise InputError(
                f"--out {self.path}", error.strerror or str(error), "use a writable folder"
            ) from None

    def _require_no_run(self) -> None:
        if self.exists():
            needs = "use another folder or --resume"
            raise InputError(f"--out {self.path}", "it already holds a run", needs)

    def _foreign_files(self) -> Iterator[Path]:
        """Yield what is in the folder apart from what a killed process leaves behind."""
        for one in self.path.iterdir():
            if not (one.name.strip(".").startswith(LOCK_FILE) or _UNFINISHED.fullmatch(one.name)):
                yield one

    def remove_unfinished(self) -> None:
        """Remove the files that a killed process was writing. Only for the lock's holder."""
        for folder in (self.path, self.path / "evaluation", self.path / "kaggle"):
            for one in folder.glob(".*"):
                # Another process may be asking for the lock right now.
                asking = one.name.startswith(f".{LOCK_FILE}")
                if _UNFINISHED.fullmatch(one.name) and not asking:
                    one.unlink(missing_ok=True)
        remove_unfinished_manifests(self.checkpoints)

    def require(self) -> None:
        """Check that the directory is still the one that this process works on.

        Raises:
            OSError: It was removed or renamed, or another process replaced the lock.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run directory is gone", str(self.path))
        if self.lock.held and not self.lock.is_intact():
            raise FileNotFoundError(
                errno.ENOENT, f"{LOCK_FILE} was removed or replaced", str(self.lock.path)
            )

    def config(self) -> RunConfig:
        """Read the config that the run was created with.

        Relative paths of local data and models are those of the working directory that the run
        was created in; from another one they are returned absolute.

        Raises:
            InputError: no run there, or a config that was damaged.
        """
        return resolve_local_paths(self._recorded_config(), self.working_directory())

    def as_recorded(self, config: RunConfig) -> RunConfig:
        """Return ``config`` with its local paths as the run was given them, to be shown."""
        recorded = self._recorded_config()
        found = resolve_local_paths(recorded, self.working_directory())
        unchanged = [name for name in PATH_FIELDS if getattr(config, name) == getattr(found, name)]
        return config.model_copy(update={name: getattr(recorded, name) for name in unchanged})

    def _recorded_config(self) -> RunConfig:
        path = self.path / "config.json"
        if not path.exists():
            raise InputError(
                f"--run {self.path}", "no config.json in it", "expected a run directory"
            )
        return build_config(self.read_json("config.json"), where=str(path))

    def working_directory(self) -> str | None:
        """Return the folder that the config's relative paths start from, None if not recorded."""
        if not self.has("environment.json"):
            return None
        return self.read_json("environment.json").get("working_directory")

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON to ``name``, atomically; records become objects."""
        self.write_text(name, json.dumps(_plain(value), ensure_ascii=False, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` to ``name``; a reader sees the old or the new file, never a part."""
        target = self.path / name
        self.require()
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(redact_values(text))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def read_json(self, name: str) -> Any:
        """Read the JSON object in ``name``.

        Raises:
            InputError: the file is missing, is not JSON, or lacks a field that medcot writes.
        """
        path = self.path / name
        try:
            return check_shape(path.name, json.loads(path.read_text(encoding="utf-8")), str(path))
        except FileNotFoundError:
            needs = "expected a run that has it"
            raise InputError(f"--run {self.path}", f"no {name} in it", needs) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                str(path),
                f"not valid JSON ({one_line(str(error), 80)})",
                "restore the file that medcot wrote",
            ) from None
        except OSError as error:
            raise _unreadable(path, error) from None

    def remove(self, name: str) -> None:
        """Delete ``name`` if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        """Return whether the file ``name`` is there."""
        return (self.path / name).exists()

    def append(self, path: Path, row: Any) -> None:
        """Append one line to a ``.jsonl`` file; it is on disk when this returns."""
        self.require()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() and not _ends_with_newline(path):
                file.write(b"\n")
            line = redact_values(json.dumps(_plain(row), ensure_ascii=False))
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the rows of a ``.jsonl`` file, without a line that a kill has cut.

        Raises:
            InputError: A line is JSON, but not what medcot writes.
        """
        if not path.exists():
            return
        try:
            text = path.read_bytes().decode("utf-8", errors="replace")
        except OSError as error:
            raise _unreadable(path, error) from None
        # ``splitlines`` would also split at U+2028, U+2029 and U+0085, which JSON lets be.
        for number, line in enumerate(text.split("\n"), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            yield check_shape(path.name, row, f"{path}, line {number}")

    def truncate_events(self, step: int) -> None:
        """Drop the events after ``step``: training continues from that checkpoint."""
        kept = (row for row in self.rows(self.events) if row["step"] <= step)
        self.write_text("events.jsonl", self.lines_of(kept))

    def complete_last_event(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Set ``values`` in the newest event, and return it."""
        *before, last = self.rows(self.events)
        whole = last | dict(values)
        self.write_text("events.jsonl", self.lines_of([*before, whole]))
        return whole

    @staticmethod
    def lines_of(rows: Iterable[Any]) -> str:
        """Return the text of a ``.jsonl`` file with ``rows``."""
        lines = (json.dumps(_plain(row), ensure_ascii=False) for row in rows)
        return "".join(f"{line}\n" for line in lines)

    def set_stage(self, stage: Stage, **details: Any) -> None:
        """Write the run's stage to ``status.json``, and log it."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.reached = stage if stage not in ("failed", "cancelled") else self.reached
        self.write_json("status.json", {"stage": stage, "at": now, "pid": os.getpid(), **details})
        logger.info("stage %s", stage)

    def stage(self) -> Stage | None:
        """Return the run's stage, or None before its first."""
        return self.read_json("status.json")["stage"] if self.has("status.json") else None

    def last_checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint: its trainer state is written last."""
        found = list_checkpoints(self.checkpoints)
        return next((one for one in found if (one / STATE).exists()), None)


def new_run_path(config: RunConfig, root: Path = Path("runs")) -> Path:
    """Return ``runs/PRESET-DATE-TIME``, with a number if that is taken."""
    stem = f"{config.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = root / stem, 2
    while path.exists():
        path, count = root / f"{stem}-{count}", count + 1
    return path


def newest_run(root: Path = Path("runs")) -> Path | None:
    """Return the newest run under ``root``, or None."""
    runs = [path.parent for path in root.glob("*/config.json")]
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime, default=None)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _unreadable(path: Path, error: OSError) -> InputError:
    got = "a folder" if path.is_dir() else error.strerror or str(error)
    return InputError(str(path), got, "restore the file that medcot wrote")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
