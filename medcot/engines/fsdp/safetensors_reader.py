"""Reads a model's safetensors files tensor by tensor, so that no process holds all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcot.engines.base import Location

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a model folder or of a hub model, by name.

    Raises:
        OSError: It has no safetensors files.
    """

    def __init__(self, where: Location) -> None:
        self._where = where
        self._files = self._find_files()
        self._open: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with ``prefix``."""
        return (name for name in self._files if name.startswith(prefix))

    def read(self, name: str, device: Any) -> Any:
        """Return the tensor ``name`` on ``device``, in the dtype of the file.

        Raises:
            KeyError: There is no such tensor.
        """
        path = self._files[name]
        if path not in self._open:
            from safetensors import safe_open

            # One at a time: a mapped file counts as memory while it is open.
            self._open = {path: safe_open(path, framework="pt")}
        return self._open[path].get_tensor(name).to(device)

    def _find_files(self) -> dict[str, str]:
        index = self._fetch(INDEX)
        if index is not None:
            parts = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            paths = {part: self._fetch(part) for part in sorted(set(parts.values()))}
            if missing := [part for part, path in paths.items() if path is None]:
                raise OSError(f"{missing[0]}, which {INDEX} names, is missing")
            return {name: str(paths[part]) for name, part in parts.items()}
        single = self._fetch(SINGLE)
        if single is None:
            raise OSError(f"{self._where.source} has no {SINGLE}")
        from safetensors import safe_open

        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)

    def _fetch(self, name: str) -> str | None:
        """Return the path of a file, fetched from the hub if needed; None if it does not exist."""
        from transformers.utils.hub import cached_file

        return cached_file(
            self._where.source,
            name,
            **self._where.options,
            _raise_exceptions_for_missing_entries=False,
        )
