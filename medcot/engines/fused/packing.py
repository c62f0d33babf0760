"""Packs the rows of a micro-batch into one sequence and balances the micro-batches of a step.

All rows of one prompt style begin with the same instructions. A packed sequence stores this shared
prefix once. That is exact: with causal attention its hidden states are the same in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from medcot.data.tokenization import IGNORED, prefix_length

MIN_SHARED_PREFIX = 16
"""Shortest common prefix, in tokens, that is stored once."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Layout of packed rows, in the terms of variable-length attention.

    The first row is stored whole; of every other row only the tokens after the shared prefix are.
    Queries are the stored tokens; keys and values are those of the whole rows.
    """

    query_lengths: tuple[int, ...]
    """Stored tokens of each row."""
    key_lengths: tuple[int, ...]
    """Tokens of each whole row."""
    cu_seqlens_q: torch.Tensor
    """Cumulative sum of ``query_lengths``: int32 [rows + 1]."""
    cu_seqlens_k: torch.Tensor
    """Cumulative sum of ``key_lengths``: int32 [rows + 1]."""
    shared: int = 0
    """Length of the shared prefix in tokens."""
    key_index: torch.Tensor | None = None
    """Stored token of each key, [keys]; None without a shared prefix."""
    own_key_index: torch.Tensor | None = None
    """Key of each stored token in its own row, [tokens]; None without a shared prefix."""

    @property
    def max_seqlen_q(self) -> int:
        """Largest number of stored tokens in a row."""
        return max(self.query_lengths)

    @property
    def max_seqlen_k(self) -> int:
        """Length of the longest whole row."""
        return max(self.key_lengths)

    def to(self, device: Any, *, non_blocking: bool = False) -> PackedRows:
        """Copy the tensors to ``device``. accelerate calls this for each item of a batch."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedRows:
        """Copy the tensors to pinned memory. The data loader calls this for asynchronous copies."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedRows:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def expand(self, stored: torch.Tensor) -> torch.Tensor:
        """Repeat the shared prefix for every row: keys or values [tokens, ...] to [keys, ...]."""
        return stored if self.key_index is None else stored.index_select(0, self.key_index)


def pack(lengths: Sequence[int], shared: int = 0) -> PackedRows:
    """Lay out rows of ``lengths`` tokens whose first ``shared`` tokens are equal."""
    stored = [length - (shared if index else 0) for index, length in enumerate(lengths)]
    cu_seqlens_q, cu_seqlens_k = (
        torch.tensor([0, *counts]).cumsum(0) for counts in (stored, lengths)
    )
    key_index = own_key_index = None
    if shared:
        prefix = torch.arange(shared)
        parts = [torch.arange(stored[0])]
        for start, count in zip(cu_seqlens_q[1:-1].tolist(), stored[1:], strict=True):
            parts += [prefix, torch.arange(start, start + count)]
        key_index = torch.cat(parts)
        row_starts = cu_seqlens_k[:-1].tolist()
        own_key_index = torch.cat(
            [
                torch.arange(start + length - count, start + length)
                for start, length, count in zip(row_starts, lengths, stored, strict=True)
            ]
        )
    return PackedRows(
        query_lengths=tuple(stored),
        key_lengths=tuple(lengths),
        cu_seqlens_q=cu_seqlens_q.to(torch.int32),
        cu_seqlens_k=cu_seqlens_k.to(torch.int32),
        shared=shared,
        key_index=key_index,
        own_key_index=own_key_index,
    )


class PackedCollator:
    """Packs the rows of a micro-batch, and computes on the CPU all indices that the pass needs."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Pack ``examples`` (dicts of ``input_ids`` and ``labels``).

        Returns ``input_ids``, ``labels`` and ``position_ids`` [1, tokens]; ``rows``, the layout;
        ``targets`` [labelled], the labelled tokens; and ``label_positions`` [labelled], the
        position that predicts each of them.
        """
        rows = [example["input_ids"] for example in examples]
        shared = count_shared_tokens(examples)
        starts = [0, *[shared] * (len(rows) - 1)]
        packed = pack([len(row) for row in rows], shared)
        labels = torch.tensor(
            [
                label
                for example, start in zip(examples, starts, strict=True)
                for label in example["labels"][start:]
            ]
        )
        labelled = labels != IGNORED
        # No token precedes a row's first one, so nothing can predict it.
        labelled[packed.cu_seqlens_q[:-1].long()] = False
        target_positions = labelled.nonzero().squeeze(1)
        ids = [token for row, start in zip(rows, starts, strict=True) for token in row[start:]]
        positions = [torch.arange(start, len(row)) for row, start in zip(rows, starts, strict=True)]
        return {
            "input_ids": torch.tensor([ids]),
            "labels": labels.masked_fill(~labelled, IGNORED)[None],
            "position_ids": torch.cat(positions)[None],
            "rows": packed,
            "label_positions": target_positions - 1,
            "targets": labels[target_positions],
        }


def count_shared_tokens(examples: Sequence[dict[str, Any]]) -> int:
    """Count the leading tokens to store once for ``examples``; 0 below ``MIN_SHARED_PREFIX``.

    Every row keeps a copy of the token before its first labelled one, which predicts the latter.
    """
    if len(examples) < 2:
        return 0
    limit = min(_first_labelled(example["labels"]) for example in examples) - 1
    shared = min(limit, prefix_length([example["input_ids"] for example in examples]))
    return shared if shared >= MIN_SHARED_PREFIX else 0


def _first_labelled(labels: Sequence[int]) -> int:
    return next((index for index, label in enumerate(labels) if label != IGNORED), len(labels))


class BalancedSampler:
    """Reorders ``sampler`` within each optimizer step so that micro-batches have similar lengths.

    With several processes a step takes as long as its longest micro-batch, and a single long one
    may not fit into memory. The rows of a step stay the same, and so does its gradient.

    Args:
        sampler: Yields row indices.
        lengths: Tokens of each row.
        rows_per_batch: Rows of a micro-batch.
        batches_per_step: Micro-batches of an optimizer step, over all processes.
    """

    def __init__(
        self, sampler: Any, lengths: Sequence[int], rows_per_batch: int, batches_per_step: int
    ) -> None:
        self.sampler, self.lengths = sampler, lengths
        self.rows_per_batch, self.batches_per_step = rows_per_batch, batches_per_step

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for index in self.sampler:
            step.append(index)
            if len(step) == self.rows_per_batch * self.batches_per_step:
                yield from self._balanced(step)
                step = []
        # The last rows of an epoch may not fill a step.
        yield from self._balanced(step)

    def _balanced(self, step: list[int]) -> Iterator[int]:
        for rows in balance_rows(step, self.lengths, self.rows_per_batch):
            yield from rows

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a sampler that shuffles by it."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def balance_rows(
    rows: Sequence[int], lengths: Sequence[int], rows_per_batch: int
) -> list[list[int]]:
    """Partition ``rows`` into batches of ``rows_per_batch`` with similar token counts.

    Greedy: the longest row first, each to the shortest batch that has room. Only the last batch
    may have fewer rows.
    """
    sizes = [
        min(rows_per_batch, len(rows) - start) for start in range(0, len(rows), rows_per_batch)
    ]
    batches: list[list[int]] = [[] for _ in sizes]
    tokens = [0] * len(sizes)
    for row in sorted(rows, key=lambda row: -lengths[row]):
        free = [index for index, size in enumerate(sizes) if len(batches[index]) < size]
        index = min(free, key=lambda index: tokens[index])
        batches[index].append(row)
        tokens[index] += lengths[row]
    return batches
