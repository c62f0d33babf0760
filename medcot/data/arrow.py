"""Types the part of pyarrow and ``datasets`` that this package uses: they have no type stubs.

pyarrow takes 0.2 s to import, so :func:`load_arrow` imports it when it is first needed.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Column(Protocol):
    """An Arrow array. Lists have their items, one after another, and where each list begins."""

    @property
    def values(self) -> Column:
        """Return the items of all lists."""
        ...

    @property
    def offsets(self) -> Column:
        """Return where each list begins among the items, and where the last one ends."""
        ...

    def to_pylist(self) -> list[Any]:
        """Return the values as Python's."""
        ...

    def to_numpy(self) -> NDArray[Any]:
        """Return the numbers without copying them."""
        ...


class RecordBatch(Protocol):
    """Rows of an Arrow file, by column."""

    num_rows: int

    def column(self, name: str) -> Column:
        """Return the column called ``name``."""
        ...


def load_arrow() -> Any:
    """Import pyarrow, whose compiled functions no type checker can see."""
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    return pyarrow


def load_parquet() -> Any:
    """Import pyarrow's reader of Parquet files."""
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    return pyarrow.parquet


def load_datasets() -> Any:
    """Import the library ``datasets``, most of whose types are unknown; it takes 1.5 s."""
    import datasets  # pyright: ignore[reportMissingTypeStubs]

    return datasets
