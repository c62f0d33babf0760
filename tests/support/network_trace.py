"""Which hosts a process and its children talk to, as the kernel sees it (strace)."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from medcot.network import is_loopback

_NAMED = re.compile(
    r"\b(?:connect|sendto|sendmsg|sendmmsg|bind)\(.*?sa_family=AF_INET6?, .*?\"([^\"]+)\""
)


@cache
def can_trace() -> bool:
    """Whether strace is installed and may trace here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(traced(Path("/dev/null"), "true"), capture_output=True).returncode == 0


def traced(log: Path, *command: str) -> list[str]:
    """``command``, with its network calls written to ``log``."""
    return [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "trace=%network",
        "-o",
        str(log),
        *command,
    ]


def hosts_beyond_this_machine(log: Path) -> set[str]:
    """The addresses in a trace that are not loopback; Unix sockets have none."""
    calls = log.read_text(encoding="utf-8", errors="replace")
    assert "socket(" in calls, "the trace is empty"
    return {host for host in _NAMED.findall(calls) if not is_loopback(host)}
