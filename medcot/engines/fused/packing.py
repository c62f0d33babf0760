"""Rows of a forward pass laid end to end, and which rows make up a pass.

All rows of one prompt style begin alike: the instructions before the first question. A pass over
several rows computes those tokens once, which changes nothing: causal attention gives them the
same states in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from medcot.data.tokenization import IGNORED, common_prefix

WORTH_SHARING = 16
"""Tokens that rows must have in common for a pass to compute them once."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Where rows lie in a pass, as attention needs to know it.

    The first row lies there whole, of the others what follows their ``shared`` first tokens.
    ``query_lengths`` are those of the rows as they lie, ``key_lengths`` those of what they attend
    to: the whole rows. ``starts`` [rows + 1] are their sums, int32 on the model's device.
    ``key_places`` [keys] says where the keys of whole rows lie, ``own_keys`` [tokens] which key is
    a token's own; both are None where nothing is shared.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    shared: int = 0
    key_places: torch.Tensor | None = None
    own_keys: torch.Tensor | None = None

    @property
    def longest_query(self) -> int:
        return max(self.query_lengths)

    @property
    def longest_key(self) -> int:
        return max(self.key_lengths)

    def to(self, device: Any, non_blocking: bool = False) -> PackedRows:
        """The same rows with their tensors on ``device``, as accelerate asks of a batch's parts."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedRows:
        """The same rows in memory that can be copied without waiting, as a data loader asks."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedRows:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def spread(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys or values [tokens, ...] as each whole row has them: [keys, ...]."""
        return keys if self.key_places is None else keys.index_select(0, self.key_places)


def pack(lengths: Sequence[int], shared: int = 0) -> PackedRows:
    """The layout of rows of ``lengths`` tokens, of which the first ``shared`` are the same."""
    own = [length - (shared if index else 0) for index, length in enumerate(lengths)]
    starts = [torch.tensor([0, *some]).cumsum(0) for some in (own, lengths)]
    places = own_keys = None
    if shared:
        first = torch.arange(shared)
        begins = starts[0][1:-1].tolist()
        places = torch.cat(
            [torch.arange(own[0])]
            + [
                torch.cat([first, torch.arange(begin, begin + count)])
                for begin, count in zip(begins, own[1:], strict=True)
            ]
        )
        own_keys = torch.cat(
            [
                torch.arange(start + (shared if index else 0), start + length)
                for index, (start, length) in enumerate(
                    zip(starts[1].tolist(), lengths, strict=False)
                )
            ]
        )
    query_starts, key_starts = (some.to(torch.int32) for some in starts)
    return PackedRows(
        tuple(own), tuple(lengths), query_starts, key_starts, shared, places, own_keys
    )


class PackedCollator:
    """Rows end to end in one sequence, with everything known about them worked out on the CPU."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rows = [example["input_ids"] for example in examples]
        shared = shared_tokens(examples)
        begins = [0, *[shared] * (len(rows) - 1)]
        packed = pack([len(row) for row in rows], shared)
        labels = torch.tensor(
            [
                label
                for example, begin in zip(examples, begins, strict=True)
                for label in example["labels"][begin:]
            ]
        )
        learnt = labels != IGNORED
        # The first token of a row has nothing before it to be predicted from.
        learnt[packed.query_starts[:-1].long()] = False
        places = learnt.nonzero().squeeze(1)
        ids = [token for row, begin in zip(rows, begins, strict=True) for token in row[begin:]]
        positions = [torch.arange(begin, len(row)) for row, begin in zip(rows, begins, strict=True)]
        return {
            "input_ids": torch.tensor([ids]),
            "labels": labels.masked_fill(~learnt, IGNORED)[None],
            "position_ids": torch.cat(positions)[None],
            "rows": packed,
            "label_positions": places - 1,
            "targets": labels[places],
        }


def shared_tokens(examples: Sequence[dict[str, Any]]) -> int:
    """How many leading tokens a pass over ``examples`` computes once; 0 where few or none.

    Each row keeps the token before its first learnt one to itself: it is what that one is
    predicted from.
    """
    if len(examples) < 2:
        return 0
    most = min(_first_learnt(example["labels"]) for example in examples) - 1
    count = common_prefix([example["input_ids"] for example in examples])
    shared = min(most, count)
    return shared if shared >= WORTH_SHARING else 0


def _first_learnt(labels: Sequence[int]) -> int:
    return next((index for index, label in enumerate(labels) if label != IGNORED), len(labels))


class BalancedSampler:
    """The order of ``sampler``, with the rows of each optimizer step shared out over its passes.

    A step waits for its longest pass where processes share it, and one pass alone may need more
    memory than all others. The rows of a step stay the same, and so does what is learnt from them.
    ``rows_per_pass`` times ``passes`` rows make a step.
    """

    def __init__(
        self, sampler: Any, lengths: Sequence[int], rows_per_pass: int, passes: int
    ) -> None:
        self.sampler, self.lengths = sampler, lengths
        self.rows_per_pass, self.passes = rows_per_pass, passes

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for index in self.sampler:
            step.append(index)
            if len(step) == self.rows_per_pass * self.passes:
                yield from self._shared_out(step)
                step = []
        # What is left of an epoch does not fill a step.
        yield from self._shared_out(step)

    def _shared_out(self, step: list[int]) -> Iterator[int]:
        for rows in share_out(step, self.lengths, self.rows_per_pass):
            yield from rows

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def share_out(rows: Sequence[int], lengths: Sequence[int], rows_per_pass: int) -> list[list[int]]:
    """``rows`` in groups of ``rows_per_pass``, the last perhaps of fewer, and about equal tokens.

    The longest first, each to the group that has the fewest tokens so far.
    """
    rooms = [min(rows_per_pass, len(rows) - start) for start in range(0, len(rows), rows_per_pass)]
    groups: list[list[int]] = [[] for _ in rooms]
    tokens = [0] * len(rooms)
    for row in sorted(rows, key=lambda row: -lengths[row]):
        free = [place for place, room in enumerate(rooms) if len(groups[place]) < room]
        place = min(free, key=lambda place: tokens[place])
        groups[place].append(row)
        tokens[place] += lengths[row]
    return groups
