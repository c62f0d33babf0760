"""Room for the keys and values of prompts that are answered side by side, and attention over it.

Every prompt has a slot: fixed memory, filled from its beginning without padding. As nothing in it
moves or grows, a decoding step is the same work every time and can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from medcot.engines.private_apis import flash_attention_forward

ATTENTION = "medcot_slots"
"""What transformers knows :meth:`Slots.attend` by."""


class Slots(Cache):
    """Keys and values of ``count`` prompts, ``room`` tokens each, as transformers' cache.

    ``rows`` and ``length`` say what the step at hand works on: the first slots, and of each as many
    tokens. ``positions`` [count] is where each slot's next token goes. With ``by_length`` a kernel
    reads of every slot only what is in it, and ``length`` must be ``room``.
    """

    def __init__(self, count: int, room: int, device: torch.device, by_length: bool) -> None:
        super().__init__(layers=[])
        self.count, self.room, self.by_length = count, room, by_length
        self.rows, self.length = count, room
        self.positions = torch.zeros(count, dtype=torch.long, device=device)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self._slots = torch.arange(count, device=device)
        self._places = torch.arange(room, device=device)
        self._rows = torch.arange(count + 1, dtype=torch.int32, device=device)
        self._starts = self._rows * room
        self._used = torch.zeros(count, dtype=torch.int32, device=device)

    def store(self, slots: torch.Tensor, past: Cache) -> None:
        """Put what a forward pass over whole prompts left behind into ``slots`` [prompts]."""
        for index, layer in enumerate(past.layers):
            keys, values = getattr(layer, "keys"), getattr(layer, "values")  # noqa: B009
            if index == len(self.keys):
                self.keys.append(self._new_room(keys))
                self.values.append(self._new_room(values))
            width = keys.shape[2]
            self.keys[index][slots, :width] = keys.transpose(1, 2)
            self.values[index][slots, :width] = values.transpose(1, 2)

    def _new_room(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: what no token has been written to is masked, and must be a number for that.
        return like.new_zeros(self.count, self.room, like.shape[1], like.shape[3])

    def move(self, slots: list[int]) -> None:
        """Make ``slots`` the first ones, in this order."""
        chosen = torch.tensor(slots, device=self.positions.device)
        for tensor in (*self.keys, *self.values, self.positions):
            tensor[: len(slots)] = tensor[chosen]

    def begin(self, rows: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Set what a step works on; gives its mask [rows, 1, 1, length]."""
        self.rows, self.length = rows, length
        positions = self.positions[:rows]
        if self.by_length:
            self._used[:rows].copy_(positions + 1)
            # Not looked at: four dimensions keep transformers from making a mask of its own.
            return self._used[:rows, None, None, None]
        hidden = self._places[:length] > positions[:, None]
        mask = torch.zeros(rows, length, dtype=dtype, device=positions.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None, None]

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token's ``key`` and ``value`` [rows, heads, 1, dim] where they belong; gives
        those of all tokens [rows, heads, length, dim]."""
        where = (self._slots[: self.rows], self.positions[: self.rows])
        keys, values = self.keys[layer], self.values[layer]
        keys.index_put_(where, key[:, :, 0])
        values.index_put_(where, value[:, :, 0])
        return (
            keys[: self.rows, : self.length].transpose(1, 2),
            values[: self.rows, : self.length].transpose(1, 2),
        )

    def attend(
        self,
        _module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """``query`` [rows, heads, 1, dim] over the slots, to [rows, 1, heads, dim]."""
        rows, heads, _one, size = query.shape
        if self.by_length:
            output = self._attend_by_length(query[:, :, 0], key, value, scaling)
            return output.reshape(rows, 1, heads, size), None
        # The heads that share keys stand in for several tokens: nothing is copied for them.
        shared = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
        output = scaled_dot_product_attention(
            shared, key, value, attention_mask.expand(-1, key.shape[1], shared.shape[2], -1),
            scale=scaling,
        )  # fmt: skip
        return output.reshape(rows, 1, heads, size), None

    def _attend_by_length(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """PyTorch's variable-length FlashAttention, which is told where each slot's tokens end."""
        rows, size = query.shape[0], self.room
        keys, values = (
            one.transpose(1, 2).reshape(rows * size, *one.shape[1::2]) for one in (key, value)
        )
        return flash_attention_forward(
            query, keys, values, self._rows[: rows + 1], self._starts[: rows + 1], 1, size,
            dropout_p=0.0, is_causal=False, return_debug_mask=False,
            scale=scaling, seqused_k=self._used[:rows],
        )[0]  # fmt: skip


@contextmanager
def attending(model: Any, slots: Slots) -> Iterator[None]:
    """Within, the attention of ``model`` is :meth:`Slots.attend`."""
    usual = model.config._attn_implementation
    AttentionInterface.register(ATTENTION, slots.attend)
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = usual
        # What is registered stays, and with it the slots would: gigabytes that training needs.
        AttentionInterface.register(ATTENTION, _no_slots)


def _no_slots(*_: Any, **__: Any) -> tuple[torch.Tensor, None]:
    raise RuntimeError("attention over slots outside of `attending`")


def reads_by_length(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel that reads only what is in a slot is here and right: it is tried."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim > 256:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    outputs: list[torch.Tensor] = []
    options: Any = {"device": device, "dtype": dtype}
    own = torch.Generator(device).manual_seed(0)
    keys, values = torch.randn(2, 3, 16, 2, head_dim, generator=own, **options)
    query = torch.randn(3, 8, 1, head_dim, generator=own, **options)
    for by_length in (True, False):
        slots = Slots(3, 16, device, by_length)
        slots.positions.copy_(torch.tensor([2, 15, 7]))
        mask = slots.begin(3, 16, dtype)
        try:
            arguments = (query, keys.transpose(1, 2), values.transpose(1, 2), mask)
            outputs.append(slots.attend(None, *arguments)[0])
        except (RuntimeError, TypeError):
            return False
    return (outputs[0] - outputs[1]).abs().max().item() < 0.05
