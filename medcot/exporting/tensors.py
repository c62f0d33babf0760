"""Reads the tensors of a model one at a time, from safetensors files or a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tensors:
    """Named tensors; ``tied`` are those that may be left out because another one is the same."""

    names: tuple[str, ...]
    read: Callable[[str], Any]
    tied: frozenset[str] = frozenset()


def open_tensors(folder: Path, *, tied: frozenset[str] = frozenset()) -> Tensors:
    """List the tensors of all safetensors files in ``folder``; each is read when asked for."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)

    def read(name: str) -> Any:
        with safe_open(str(places[name]), framework="pt") as file:
            return file.get_tensor(name)

    return Tensors(tuple(places), read, tied)


def tensors_of(state: Mapping[str, Any], *, tied: frozenset[str] = frozenset()) -> Tensors:
    """Present a state dict as tensors."""
    return Tensors(tuple(state), lambda name: state[name], tied)
