"""Measures free RAM, and keeps the C library's heap small."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

GIB = 2**30


def available_memory_gib(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> float:
    """Return the free RAM in GiB, within the system's and the container's limits."""
    lines = [line for line in _read(proc / "meminfo").splitlines() if ":" in line]
    fields = dict(line.split(":", 1) for line in lines)
    if "MemAvailable" not in fields:
        import psutil

        return psutil.virtual_memory().available / GIB
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used, statistics in _cgroup_files(proc, cgroup):
        highest, now = _read(limit).strip(), _read(used).strip()
        if highest.isdecimal() and now.isdecimal():
            free = min(free, max(0, int(highest) - int(now) + _inactive_file(statistics)))
    return free / GIB


def keep_heap_small(smallest_mapped: int = 2**20) -> bool:
    """Make the C library return large tensors' memory at once; return whether it accepted.

    glibc raises its limit for separate mappings up to 32 MiB as tensors are freed. From then on
    activations share the heap with short-lived tensors and leave holes: a LoRA step of
    SmolLM2-135M on 1,024 tokens was measured at twice the memory of the tensors it holds. Huge
    pages win back the time that fresh mappings cost. Call it before torch is imported.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    option_mmap_threshold = -3
    try:
        return ctypes.CDLL(None).mallopt(option_mmap_threshold, smallest_mapped) == 1
    except (OSError, AttributeError):
        return False


def return_free_memory() -> bool:
    """Give the C library's free memory back to the system; return whether there was any."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        return ctypes.CDLL(None).malloc_trim(0) == 1
    except (OSError, AttributeError):
        return False


def _cgroup_files(proc: Path, root: Path) -> list[tuple[Path, Path, Path]]:
    """Return (limit, usage, statistics) of every cgroup above this process, v1 or v2."""
    found: list[tuple[Path, Path, Path]] = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inside = base / path.strip().lstrip("/")
        for folder in (inside, *inside.parents):
            found.append((folder / limit, folder / used, folder / "memory.stat"))
            if folder == base:
                break
    return found


def _inactive_file(statistics: Path) -> int:
    """Return the bytes of page cache that the kernel can reclaim."""
    for line in _read(statistics).splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
