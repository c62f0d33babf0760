"""A KV cache with a fixed slot for every prompt, and the attention over it.

A slot is memory of fixed size, filled from its beginning without padding. Nothing in it moves or
grows, so a decoding step is the same work every time and can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache

from medcot.engines.fallbacks import report_fallback
from medcot.engines.private_apis import flash_attention_forward
from medcot.errors import one_line

ATTENTION = "medcot_kv_cache_slots"
"""The name under which transformers finds :func:`_attend`."""


class SlotCache(Cache):
    """Keys and values of ``count`` prompts, each with room for ``room`` tokens.

    Attributes:
        rows, length: What the current step works on: the first ``rows`` slots and the first
            ``length`` tokens of each.
        positions: [count], where the next token of each slot goes.
        by_length: Whether a kernel reads only the filled part of each slot; ``length`` is then
            ``room``.
    """

    def __init__(self, count: int, room: int, device: torch.device, *, by_length: bool) -> None:
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
        """Copy the cache of a forward pass over whole prompts into ``slots`` [prompts]."""
        for index, layer in enumerate(past.layers):
            # The base class of a cache's layers does not declare its tensors.
            keys, values = layer.keys, layer.values  # pyright: ignore[reportAttributeAccessIssue]
            if keys is None or values is None:
                raise RuntimeError("the model left no keys and values in its cache")
            if index == len(self.keys):
                self.keys.append(self._allocate(keys))
                self.values.append(self._allocate(values))
            width = keys.shape[2]
            self.keys[index][slots, :width] = keys.transpose(1, 2)
            self.values[index][slots, :width] = values.transpose(1, 2)

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: masked attention reads unwritten places too, where NaN would survive the mask.
        return like.new_zeros(self.count, self.room, like.shape[1], like.shape[3])

    def move(self, slots: list[int]) -> None:
        """Make ``slots`` the first ones, in this order."""
        chosen = torch.tensor(slots, device=self.positions.device)
        for tensor in (*self.keys, *self.values, self.positions):
            tensor[: len(slots)] = tensor[chosen]

    def begin(self, rows: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Set what a step works on; return its attention mask [rows, 1, 1, length]."""
        self.rows, self.length = rows, length
        positions = self.positions[:rows]
        if self.by_length:
            self._used[:rows].copy_(positions + 1)
            # Nobody reads it: four dimensions keep transformers from making a mask of its own.
            return self._used[:rows, None, None, None]
        hidden = self._places[:length] > positions[:, None]
        mask = torch.zeros(rows, length, dtype=dtype, device=positions.device)
        return mask.masked_fill_(hidden, float("-inf"))[:, None, None]

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's ``key`` and ``value`` [rows, heads, 1, dim] into every slot.

        Returns:
            Keys and values of all tokens, [rows, heads, length, dim] each.
        """
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
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scaling: float | None = None,
    ) -> torch.Tensor:
        """Attend with ``query`` [rows, heads, 1, dim] to the slots; return [rows, 1, heads, dim].

        ``key`` and ``value`` are those of :meth:`update`, ``mask`` is that of :meth:`begin`.
        """
        rows, heads, _one, size = query.shape
        if self.by_length:
            output = self._attend_by_length(query[:, :, 0], key, value, scaling)
            return output.reshape(rows, 1, heads, size)
        # Query heads that share keys stand in for several tokens, so nothing is copied for them.
        shared = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
        output = scaled_dot_product_attention(
            shared, key, value, mask.expand(-1, key.shape[1], shared.shape[2], -1), scale=scaling
        )
        return output.reshape(rows, 1, heads, size)

    def _attend_by_length(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Call PyTorch's variable-length FlashAttention, which reads each slot to its end only."""
        rows, size = query.shape[0], self.room
        keys, values = (
            one.transpose(1, 2).reshape(rows * size, *one.shape[1::2]) for one in (key, value)
        )
        return flash_attention_forward(
            query, keys, values, self._rows[: rows + 1], self._starts[: rows + 1], 1, size,
            dropout_p=0.0, is_causal=False, return_debug_mask=False,
            scale=scaling, seqused_k=self._used[:rows],
        )[0]  # fmt: skip


def _attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    slot_cache: SlotCache | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over the cache that was given to the model's forward pass as ``slot_cache``."""
    if slot_cache is None:
        raise RuntimeError("the model does not hand keyword arguments on to its attention")
    return slot_cache.attend(query, key, value, attention_mask, scaling), None


AttentionInterface.register(ATTENTION, _attend)


@contextmanager
def slot_attention(model: Any) -> Iterator[None]:
    """Let ``model`` attend over the ``slot_cache`` of its forward pass while the context is open.

    The function itself is registered once and holds nothing; the cache travels with the call, so
    several models can be decoded at once and memory is freed with the cache.
    """
    usual = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = usual


def reads_by_length(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether the variable-length attention kernel works here, by trying it.

    Reports a fallback on CUDA where it does not.
    """
    if device.type != "cuda":
        return False
    why = _obstacle_to_varlen(device, dtype, head_dim)
    if why:
        # Measured on an H100 at 64 answers: 3,142 tokens/s instead of 3,951.
        report_fallback(
            "no-varlen-decoding",
            f"Variable-length attention is not used for decoding ({why}): each step reads the KV"
            " cache up to the longest answer, about 1.3 times as slow.",
        )
    return not why


def _obstacle_to_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why the kernel cannot be used, "" where it can."""
    if dtype not in (torch.bfloat16, torch.float16) or head_dim > 256:
        return f"it has no {dtype} with heads of {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    outputs: list[torch.Tensor] = []
    options: Any = {"device": device, "dtype": dtype}
    own = torch.Generator(device).manual_seed(0)
    keys, values = torch.randn(2, 3, 16, 2, head_dim, generator=own, **options)
    query = torch.randn(3, 8, 1, head_dim, generator=own, **options)
    for by_length in (True, False):
        slots = SlotCache(3, 16, device, by_length=by_length)
        slots.positions.copy_(torch.tensor([2, 15, 7]))
        mask = slots.begin(3, 16, dtype)
        try:
            outputs.append(slots.attend(query, keys.transpose(1, 2), values.transpose(1, 2), mask))
        except (RuntimeError, TypeError) as error:
            return one_line(f"{type(error).__name__}: {error}")
    off = (outputs[0] - outputs[1]).abs().max().item()
    return "" if off < 0.05 else "its results are wrong here"
