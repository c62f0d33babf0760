"""Continuous batching: greedy answers to many prompts at once, without padding.

Every prompt has a slot of the KV cache. A step gives each slot one token. On CUDA a step is
recorded once and replayed as a graph, since launching its kernels one by one takes several times as
long as running them. A slot whose answer has ended takes the next prompt. When no prompt is left,
the busy slots are moved together, so that a step computes fewer rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from medcot.engines.fallbacks import report_fallback
from medcot.errors import one_line
from medcot.inference.kv_cache import SlotCache, reads_by_length, slot_attention

STEPS = {"cuda": 8}
"""Steps between two readings of the generated tokens; on CUDA each reading waits for the GPU."""
LENGTHS = {"cuda": 256}
"""Granularity, in tokens, of the cache length that a step attends to; on CUDA each length is a
graph of its own."""
PREFILL_TOKENS = {"cuda": 4096}
"""Prompt tokens per prefill pass, padding included."""
REFILL_SHARE = {"cuda": 8}
"""Slots are refilled when this share is free (an eighth on CUDA, one slot elsewhere): a prefill
takes as long as several steps, however few prompts it reads."""
TOLERANCE = 0.1
"""How far the first logits may be off those of a plain pass, relative to their spread. Kernels
round differently; in bfloat16 that makes a few hundredths."""

HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "do_sample",
    "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "use_cache",
    "cache_implementation", "_from_model_config",
}  # fmt: skip
"""Generation settings of a model that do not change a greedy answer."""
HARMLESS_AS_ONE = {"repetition_penalty", "num_beams", "num_return_sequences", "length_penalty"}
"""Generation settings that do not change it while they are 1."""


def is_supported(model: Any) -> bool:
    """Return whether :func:`decode` can answer with ``model``.

    That needs plain attention in every layer, and no generation settings that change greedy
    answers.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        getattr(model, "_supports_attention_backend", False)
        and not getattr(model, "_is_stateful", False)
        and not config.is_encoder_decoder
        and kinds == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and all(_harmless(*one) for one in model.generation_config.to_diff_dict().items())
    )


def _harmless(name: str, value: Any) -> bool:
    return not value or name in HARMLESS or (name in HARMLESS_AS_ONE and value == 1)


def decode(
    model: Any,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    ends: Collection[int],
    slots: int,
    *,
    check: bool = True,
    on_step: Callable[[int, int], None] = lambda _done, _tokens: None,
) -> list[list[int]]:
    """Return greedy continuations of ``prompts``, up to and including an end token.

    Args:
        prompts: Token ids; none may be empty.
        limits: The most tokens of each answer.
        ends: The tokens that end an answer.
        slots: Prompts that are decoded at once.
        check: Compare the first step with a plain forward pass.
        on_step: Called between steps with the number of complete answers and of tokens; what it
            raises ends the decoding.

    Raises:
        RuntimeError: The first logits are not those of a plain pass; or what torch raises.
    """
    count = min(slots, len(prompts))
    return Decoder(model, prompts, limits, ends, count, check=check).run(on_step)


class Decoder:
    """The state of one :func:`decode`."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        ends: Collection[int],
        count: int,
        *,
        graphs: bool = True,
        check: bool = True,
    ) -> None:
        weights = next(model.parameters())
        self.model, self.device = model, weights.device
        self.dtype = model.get_input_embeddings().weight.dtype
        self.prompts, self.limits, self.ends = prompts, limits, ends
        kind = self.device.type
        self.graphs = graphs and kind == "cuda"
        self.unchecked = check
        self.steps = STEPS.get(kind, 1)
        self.refill = max(1, count // REFILL_SHARE.get(kind, count))
        needed = max(map(sum, zip(map(len, prompts), limits, strict=True))) + self.steps
        self.lengths = LENGTHS.get(kind, 32)
        room = -(-needed // self.lengths) * self.lengths
        by_length = reads_by_length(
            self.device, self.dtype, _head_dim(model.config.get_text_config())
        )
        self.slots = SlotCache(count, room, self.device, by_length=by_length)
        self.tokens = torch.zeros(count, dtype=torch.long, device=self.device)
        self.recent = torch.zeros(self.steps, count, dtype=torch.long, device=self.device)
        self.turn = torch.zeros(1, dtype=torch.long, device=self.device)
        self.recorded: dict[tuple[int, int], Any] = {}
        self.pool: Any = None
        self.rows = count
        self.inside: list[int | None] = [None] * count
        self.answers: list[list[int]] = [[] for _ in prompts]

    def run(
        self, on_step: Callable[[int, int], None] = lambda _done, _tokens: None
    ) -> list[list[int]]:
        """Answer every prompt; return the token ids in the order of the prompts."""
        order = sorted(range(len(self.prompts)), key=lambda index: -len(self.prompts[index]))
        waiting = deque(order)
        while waiting or any(index is not None for index in self.inside):
            busy = sum(index is not None for index in self.inside)
            on_step(len(self.prompts) - len(waiting) - busy, sum(map(len, self.answers)))
            self._fill(waiting)
            if not waiting:
                self._move_together()
            length = self._length()
            with slot_attention(self.model):
                for _ in range(self.steps):
                    self._step(self.rows, length)
            self._collect()
        return self.answers

    def _fill(self, waiting: deque[int]) -> None:
        """Give the next prompts to free slots, if enough are free."""
        free = [slot for slot, index in enumerate(self.inside) if index is None]
        busy = len(self.inside) - len(free)
        if len(free) < self.refill and busy:
            return
        budget = PREFILL_TOKENS.get(self.device.type, 1024)
        while free and waiting:
            width = max(1, len(self.prompts[waiting[0]]) - 1)
            count = max(1, min(len(free), len(waiting), budget // width))
            chosen = [(free.pop(0), waiting.popleft()) for _ in range(count)]
            self._read(chosen)
            for slot, index in chosen:
                self.inside[slot] = index
        if self.unchecked:
            self._check_first_step()
            self.unchecked = False

    def _read(self, chosen: list[tuple[int, int]]) -> None:
        """Prefill (slot, prompt) pairs up to the last token, which the next step reads."""
        prompts = [self.prompts[index] for _, index in chosen]
        slots = torch.tensor([slot for slot, _ in chosen], device=self.device)
        # At least one token: the cache takes its shape from what a first pass leaves behind.
        width = max(1, max(map(len, prompts)) - 1)
        padded = [(ids[:-1] + [0] * width)[:width] for ids in prompts]
        # Padding stands on the right, where no token looks; a slot's own tokens overwrite it.
        passed = self.model(
            input_ids=torch.tensor(padded, device=self.device), use_cache=True, logits_to_keep=1
        )
        self.slots.store(slots, passed.past_key_values)
        self.tokens[slots] = torch.tensor([ids[-1] for ids in prompts], device=self.device)
        places = torch.tensor([len(ids) - 1 for ids in prompts], device=self.device)
        self.slots.positions[slots] = places

    def _move_together(self) -> None:
        """Halve the rows of a step, as often as the busy slots still fit."""
        busy = [slot for slot, index in enumerate(self.inside) if index is not None]
        rows = self.rows
        while len(busy) <= rows // 2:
            rows //= 2
        if rows == self.rows:
            return
        self.slots.move(busy)
        self.tokens[: len(busy)] = self.tokens[torch.tensor(busy, device=self.device)]
        moved = [self.inside[slot] for slot in busy]
        self.inside = moved + [None] * (rows - len(moved))
        self.rows = rows

    def _length(self) -> int:
        """Return how many tokens of each slot the next steps attend to."""
        if self.slots.by_length:
            return self.slots.room
        last = max(
            len(self.prompts[index]) + len(self.answers[index])
            for index in self.inside
            if index is not None
        )
        return min(self.slots.room, -(-(last + self.steps) // self.lengths) * self.lengths)

    def _step(self, rows: int, length: int) -> None:
        """Generate a token for the first ``rows`` slots: first eagerly, then as a graph."""
        graph = self.recorded.get((rows, length), False)
        if graph is False or not self.graphs:
            self._forward(rows, length)
            self.recorded[rows, length] = None
            return
        if graph is None:
            graph = self.recorded[rows, length] = self._record(rows, length)
        if graph is None:
            self._forward(rows, length)
        else:
            graph.replay()

    def _record(self, rows: int, length: int) -> Any:
        """Return the graph of a step, or None where something in it cannot be recorded."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self._forward(rows, length)
        except RuntimeError as error:
            self.graphs = False
            # Measured on an H100 at 64 answers: 1,360 tokens/s instead of 3,951.
            report_fallback(
                "no-cuda-graphs",
                f"A decoding step cannot be recorded as a CUDA graph ({one_line(str(error))}):"
                " answers take up to three times as long.",
            )
            return None
        return graph

    def _forward(self, rows: int, length: int) -> torch.Tensor:
        mask = self.slots.begin(rows, length, self.dtype)
        positions = self.slots.positions[:rows]
        logits = self.model(
            input_ids=self.tokens[:rows, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=self.slots,
            slot_cache=self.slots,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = logits.argmax(dim=-1)
        self.tokens[:rows] = chosen
        positions += 1
        self.recent[:, :rows].index_copy_(0, self.turn, chosen[None])
        self.turn.add_(1).remainder_(self.steps)
        return logits

    def _collect(self) -> None:
        """Read the tokens of the last steps; free the slots whose answers have ended."""
        for slot, tokens in enumerate(self.recent[:, : self.rows].T.tolist()):
            index = self.inside[slot]
            if index is None:
                continue
            answer = self.answers[index]
            for token in tokens:
                answer.append(token)
                if token in self.ends or len(answer) == self.limits[index]:
                    self.inside[slot] = None
                    break
        # A free slot is still written to: from its start, so that it never reaches its end.
        idle = [slot for slot, index in enumerate(self.inside) if index is None]
        if idle:
            self.slots.positions[torch.tensor(idle, device=self.device)] = 0

    def _check_first_step(self) -> None:
        """Compare one step with a plain pass over the whole of the first slot's prompt.

        Raises:
            RuntimeError: The logits differ by more than rounding.
        """
        index = self.inside[0]
        assert index is not None
        ids = torch.tensor([self.prompts[index]], device=self.device)
        expected = (
            self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
        )
        state = (self.tokens, self.slots.positions, self.turn)
        before = [tensor.clone() for tensor in state]
        with slot_attention(self.model):
            got = self._forward(self.rows, self._length())[0].float()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        off = ((got - expected).norm() / (expected - expected.mean()).norm()).item()
        if not off < TOLERANCE:
            raise RuntimeError(
                f"decoding with KV cache slots is off by {off:.2f} of the logits' spread"
            )


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
