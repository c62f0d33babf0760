"""Checks disk space and memory before an export is begun."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medcot.errors import InputError
from medcot.exporting.formats import BITS, Format, Quantization
from medcot.exporting.run_model import RunModel
from medcot.hardware.machine import detect_machine

SMALL_FILES = 16 << 20
"""Bytes for tokenizer, configuration, card and proof."""
GIB = 1 << 30


def require_room(
    model: RunModel,
    root: Path,
    formats: Sequence[Format],
    quantizations: Sequence[Quantization],
    *,
    prove: bool,
) -> None:
    """Check that disk and memory are large enough for ``formats``.

    Raises:
        InputError: One of them is not; nothing was written.
    """
    needed = sum(estimate_bytes(model, name, quantizations) for name in formats)
    folder = root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"--out {root}",
            f"{free >> 20:,} MiB are free, and the export takes about {needed >> 20:,} MiB",
            "free some space, or use a folder on another disk",
        )
    memory = estimate_memory(model, formats, prove=prove)
    available = detect_machine().memory_gib * GIB
    if available < memory:
        raise InputError(
            "medcot export",
            f"{available / GIB:.1f} GiB of memory are free, and it takes about"
            f" {memory / GIB:.1f} GiB",
            "close other programs, use a machine with more memory, or use --no-proof"
            if prove
            else "close other programs, or use a machine with more memory",
        )


def estimate_bytes(model: RunModel, name: Format, quantizations: Sequence[Quantization]) -> int:
    """Return about how many bytes a format takes on disk while it is made."""
    parameters = int(model.plan["total_parameters"])
    adapter = (model.directory.adapter / "adapter_model.safetensors").stat().st_size
    merged = 2 * parameters
    if name in ("adapter", "hub"):
        return adapter + SMALL_FILES
    if name == "merged":
        return merged + SMALL_FILES
    # The merged model and its F16 file are made first, and removed again where nobody asked.
    files = sum(BITS[one] for one in quantizations) / 8 * parameters
    return int(2 * merged + files) + SMALL_FILES


def estimate_memory(model: RunModel, formats: Sequence[Format], *, prove: bool) -> int:
    """Return about how many bytes of memory the export takes at its peak."""
    parameters = int(model.plan["total_parameters"])
    merges = any(name in ("merged", "gguf", "ollama") for name in formats)
    # A proof on the CPU computes in float32; a merge holds 16 bits a weight.
    weights = 4 * parameters if prove else 2 * parameters if merges else 0
    return weights + (GIB if weights else 0)
