"""Keeps a run directory to one process: whoever writes to it holds ``run.lock``.

The lock names its holder: process, start time, host, boot and process namespace. On the same
machine the process table says whether the holder still lives. Elsewhere (a shared file system, a
container) its heartbeat does: the holder touches the file every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from medcot.errors import InputError, one_line

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
HEARTBEAT_S = 10.0
"""Seconds between two touches of the lock by its holder."""
SILENT_S = 120.0
"""Seconds without a heartbeat after which a holder that cannot be asked counts as gone. NFS may
show a file's time up to a minute late."""
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock.

    ``started`` tells a process from a later one with the same ``pid``: clock ticks since boot on
    Linux, else "". ``boot`` and ``namespace`` tell machines and containers apart that share a
    host name.
    """

    pid: int
    host: str
    boot: str
    namespace: str
    started: str
    since: str

    @property
    def description(self) -> str:
        """Name the process for a message."""
        return f"pid {self.pid} on {one_line(self.host, 60)}, since {one_line(self.since, 30)}"


class BusyError(InputError):
    """Another process works on the run."""


class RunLock:
    """The lock of the run directory ``folder``, held by at most one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._own: Holder | None = None
        self._ended = threading.Event()

    @property
    def held(self) -> bool:
        """Return whether this object holds the lock."""
        return self._own is not None

    def take(self) -> str:
        """Take the lock. Taking it twice is harmless.

        Returns:
            What was wrong with a stale lock that was replaced, "" where there was none.

        Raises:
            InputError: Another process works on the run, or the folder cannot be written to.
        """
        if self.held:
            return ""
        try:
            with _one_at_a_time(self.path.parent):
                return self._take()
        except OSError as error:
            got = f"cannot write {LOCK_FILE} ({error.strerror or error})"
            raise InputError(str(self.path.parent), got, "use a writable folder") from None

    def release(self) -> None:
        """Give the lock back, if this object holds it and nobody has replaced it."""
        self._ended.set()
        if self._own is not None and _read(self.path) == self._own:
            # A directory that is gone or read-only by now has no lock to give back.
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._own = None

    def is_intact(self) -> bool:
        """Return whether the file on disk is still this object's own lock."""
        return self._own is not None and _read(self.path) == self._own

    def _take(self) -> str:
        replaced = ""
        for _ in range(ATTEMPTS):
            own = _this_process()
            if self._create(own):
                self._own = own
                self._ended.clear()
                threading.Thread(
                    target=self._beat, args=(self._ended,), daemon=True, name="medcot-lock"
                ).start()
                return replaced
            replaced = self._remove_stale() or replaced
        raise InputError(
            str(self.path.parent), "other processes keep taking its lock", "start one at a time"
        )

    def _create(self, own: Holder) -> bool:
        """Create the file with its content in one step; return False where there is one."""
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{LOCK_FILE}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(own), file)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                return False
            except (OSError, NotImplementedError, AttributeError):
                return self._create_without_link(own)
            return True
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _create_without_link(self, own: Holder) -> bool:
        """Create the file where the file system has no hard links (FAT, some network drives)."""
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(own), file)
        return True

    def _remove_stale(self) -> str:
        """Remove a stale lock and return why it is one; "" where it went away by itself.

        Raises:
            InputError: The lock's holder still works on the run.
        """
        if self.path.is_dir():
            raise InputError(str(self.path), "a folder", "remove it; medcot writes a file there")
        holder, silent = _read(self.path), self._silent_seconds()
        if silent is None:
            return ""
        why = _why_stale(holder, silent)
        if not why:
            who = holder.description if holder else f"its {LOCK_FILE} is not readable"
            raise BusyError(
                str(self.path.parent),
                f"another process works on this run ({who})",
                "wait until it has ended, or stop it",
            )
        # Of several processes that see the stale file, one moves it away. Whoever moves a lock
        # that was just taken instead puts it back.
        aside = self.path.with_name(f".{LOCK_FILE}.{os.getpid()}.{threading.get_ident()}")
        try:
            if _read(self.path) != holder:
                return ""
            self.path.rename(aside)
        except FileNotFoundError:
            return ""
        if _read(aside) != holder:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
            aside.unlink()
            return ""
        aside.unlink()
        return why

    def _silent_seconds(self) -> float | None:
        """Return the seconds since the last heartbeat by the file system's own clock."""
        try:
            last = self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=f".{LOCK_FILE}.") as probe:
            return os.fstat(probe.fileno()).st_mtime - last

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)
            except OSError as error:
                # The next write to the directory ends the run, with a message.
                logger.warning("%s: %s", self.path, error.strerror or error)
                return


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Generator[None]:
    """Let one process of a machine look at the lock and replace it.

    Without this, three that find a stale lock can end as two holders: one moves away the new lock
    of another, and a third creates its own before that lock is back. The system gives this up
    when the process ends. A file system that cannot do it (NFS refuses it for folders) is left
    with the check at every write.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> Holder | None:
    """Return the holder that a lock names, None where it cannot be read."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        values = {field.name: found[field.name] for field in fields(Holder)}
        pid = cast("object", values.pop("pid"))
        if not isinstance(pid, int) or not all(isinstance(one, str) for one in values.values()):
            return None
        return Holder(pid=pid, **values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _why_stale(holder: Holder | None, silent: float) -> str:
    """Return why a lock counts as left behind, "" where its holder may still work."""
    quiet = f"no sign of life for {silent:.0f} s" if silent > SILENT_S else ""
    if holder is None:
        return quiet and f"a damaged {LOCK_FILE}, {quiet}"
    own = _this_process()
    if holder.host != own.host or holder.namespace != own.namespace:
        return quiet and f"{holder.description}: {quiet}"
    if holder.boot != own.boot:
        # A heartbeat since this machine started comes from another machine of the same name.
        before_boot = time.time() - silent < _boot_time()
        return f"{holder.description}: before the machine restarted" if before_boot else quiet
    if holder.pid == own.pid and holder.started == own.started:
        return ""
    if os.name == "nt":  # Asking for a process by a signal would end it there.
        return quiet and f"{holder.description}: {quiet}"
    started = _start_of(holder.pid)
    if started is None:
        return f"{holder.description}: that process is gone"
    if started != holder.started:
        return f"{holder.description}: that number is another process now"
    return ""


def _this_process() -> Holder:
    pid = os.getpid()
    return Holder(
        pid=pid,
        host=socket.gethostname(),
        boot=_text_of("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        started=_start_of(pid) or "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Return when a process of this machine started, None where there is none.

    A process that has ended and is not collected yet (a zombie) counts as none.
    """
    stat = _text_of(f"/proc/{pid}/stat")
    if stat:
        # The name in parentheses may itself hold spaces and parentheses.
        state, *values = stat.rpartition(")")[2].split()
        return None if state in "ZX" else values[18]
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""  # It is there, and belongs to another user.
    return ""


def _boot_time() -> float:
    """Return when this machine started, in seconds since the epoch; 0 where nothing says so."""
    lines = _text_of("/proc/stat").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
