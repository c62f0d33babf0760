"""Runs in a process of its own: llama.cpp's server, from the library that xllamacpp carries.

Imports nothing of medcot and no torch, so it starts quickly. It listens on a Unix socket.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import xllamacpp

LLAMA: Any = xllamacpp
"""The library, which says nothing of its types."""


def main(file: str, socket: str, context: str, slots: str, threads: str) -> None:
    """Serve a GGUF file until a signal."""
    params = LLAMA.CommonParams()
    params.model.path = file
    params.hostnames = [socket]
    params.n_parallel = int(slots)
    params.n_ctx = int(context) * int(slots)
    params.cpuparams.n_threads = int(threads)
    params.offline, params.ui, params.warmup = True, False, False
    server = LLAMA.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(*sys.argv[1:])
