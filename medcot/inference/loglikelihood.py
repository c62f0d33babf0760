"""Computes log-likelihoods of given texts: completions after prompts, options of a question."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from medcot.data.tokenization import TokenizedRow, encode, encode_text
from medcot.engines.base import LoadedModel
from medcot.records import Prompt, TokenLoss

LOGIT_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Positions whose logits are held at once: 49,152 (SmolLM2) to 128,256 (Llama) floats each."""

SHARED_TOKENS = 16
"""Fewest tokens at the beginning of consecutive prompts for which one pass is shared."""


Poll = Callable[[], None]
"""Called between passes of a model; raises Cancelled where the user asked to stop."""


def never_stop() -> None:
    """Do nothing: the poll of a call that nobody can cancel."""


def score(loaded: LoadedModel, pairs: Sequence[Prompt], poll: Poll = never_stop) -> list[TokenLoss]:
    """Return the loss of each completion given its prompt, end-of-sequence token included."""
    rows = encode(loaded.tokenizer, {str(index): pair for index, pair in enumerate(pairs)})
    return _score_ids(loaded, [(row.prompt_ids, row.completion_ids) for row in rows], poll)


def score_rows(loaded: LoadedModel, rows: Sequence[TokenizedRow]) -> TokenLoss:
    """Return the loss of all completions of ``rows`` together, few at a time.

    The optimizer's state may be in memory too, so a pass is as small as on a CPU.
    """
    pairs = [(row.prompt_ids, row.completion_ids) for row in rows]
    losses = _score_ids(loaded, pairs, never_stop, LOGIT_TOKENS["cpu"])
    return TokenLoss(sum(one.total for one in losses), sum(one.tokens for one in losses))


def score_options(
    loaded: LoadedModel, items: Sequence[tuple[str, Sequence[str]]], poll: Poll = never_stop
) -> list[list[TokenLoss]]:
    """Return the loss of each continuation after its prompt, without end-of-sequence.

    If every continuation is one token, as letters are, one forward pass of the prompt scores them
    all; consecutive prompts that begin alike, such as a question in several orders of its options,
    share the pass over their beginning. Otherwise the prompt is read once and its KV cache is
    extended by each continuation.
    """
    prompts = [encode_text(loaded.tokenizer, prompt) for prompt, _ in items]
    options = [
        [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        for _, texts in items
    ]
    if all(len(ids) == 1 for texts in options for ids in texts):
        families = _list_families(prompts)
        shared = _extends_cache(loaded) and len(families) < len(prompts)
        if shared and min(map(len, prompts)) > 1:
            return _score_families(loaded, families, prompts, options, poll)
        return _score_next_token(loaded, prompts, options, poll)
    if _extends_cache(loaded) and all(ids for texts in options for ids in texts):
        return _score_after_prompt(loaded, prompts, options, poll)
    flat = [(prompt, ids) for prompt, texts in zip(prompts, options, strict=True) for ids in texts]
    losses = iter(_score_ids(loaded, flat, poll))
    return [[next(losses) for _ in texts] for texts in options]


def _extends_cache(loaded: LoadedModel) -> bool:
    """Return whether a pass may read several tokens after the cache of another.

    The cache of layers with a state, as of Qwen3.5, cannot be copied for several texts.
    """
    stateful = getattr(loaded.model, "_is_stateful", False)
    return loaded.engine.traits.extends_cache and not stateful


def _score_next_token(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    options: Sequence[Sequence[list[int]]],
    poll: Poll,
) -> list[list[TokenLoss]]:
    import torch

    results: list[list[TokenLoss]] = [[] for _ in prompts]
    for chosen in _batches([len(prompt) for prompt in prompts], 4096, 16):
        poll()
        batch = left_padded(loaded, [prompts[index] for index in chosen])
        with inference(loaded):
            logits = _read(loaded, **batch, logits_to_keep=1, use_cache=False).logits[:, -1]
            log_probs = torch.log_softmax(logits.float(), dim=-1)
        for row, index in enumerate(chosen):
            results[index] = [
                TokenLoss(-log_probs[row, ids[0]].item(), 1) for ids in options[index]
            ]
    return results


Family = tuple[int, list[int]]
"""Tokens that consecutive prompts have in common at their beginning, and their indices."""


def _list_families(prompts: Sequence[list[int]]) -> list[Family]:
    """Group consecutive prompts that begin with the same tokens, ``SHARED_TOKENS`` or more."""
    families: list[Family] = []
    for index, prompt in enumerate(prompts):
        if families:
            length, members = families[-1]
            shared = _count_shared(prompts[members[0]][:length], prompt)
            if shared >= SHARED_TOKENS:
                families[-1] = (shared, [*members, index])
                continue
        # The last token is left to the second pass, which each prompt needs for its logits.
        families.append((len(prompt) - 1, [index]))
    return families


def _count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other[:-1], strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other) - 1))


def _score_families(
    loaded: LoadedModel,
    families: Sequence[Family],
    prompts: Sequence[list[int]],
    options: Sequence[Sequence[list[int]]],
    poll: Poll,
) -> list[list[TokenLoss]]:
    """Score one-token options after prompts, each family's beginning being read once."""
    results: list[list[TokenLoss]] = [[] for _ in prompts]
    limit = 4 * LOGIT_TOKENS.get(loaded.device, 1024)
    families = [part for one in families for part in _split_family(one, prompts, limit)]
    sizes = [
        1 + int(1000 * len(members) * max(len(prompts[one]) for one in members) / limit)
        for _, members in families
    ]
    for chosen in _batches(sizes, 1000, 16):
        poll()
        batch = [families[index] for index in chosen]
        members = [one for _, found in batch for one in found]
        for index, row in zip(members, _read_families(loaded, batch, prompts), strict=True):
            results[index] = [TokenLoss(-row[ids[0]].item(), 1) for ids in options[index]]
    return results


def _split_family(family: Family, prompts: Sequence[list[int]], limit: int) -> Iterator[Family]:
    """Divide a family so that the keys of a pass, one copy for each member, stay within
    ``limit`` tokens."""
    length, members = family
    most = max(1, limit // max(len(prompts[one]) for one in members))
    for start in range(0, len(members), most):
        yield length, members[start : start + most]


def _read_families(
    loaded: LoadedModel, families: Sequence[Family], prompts: Sequence[list[int]]
) -> Any:
    """Return the log-probabilities [prompts, vocabulary] of the token after each prompt."""
    import torch

    owners = [row for row, (_, members) in enumerate(families) for _ in members]
    tails = [prompts[one][length:] for length, members in families for one in members]
    width = max(map(len, tails))
    batch = left_padded(loaded, [prompts[members[0]][:length] for length, members in families])
    device = batch["input_ids"].device
    chosen = torch.tensor(owners, device=device)
    padded = torch.tensor([(ids + [ids[0]] * width)[:width] for ids in tails], device=device)
    ends = torch.tensor([len(ids) - 1 for ids in tails], device=device)
    with inference(loaded):
        known = _read(loaded, **batch, logits_to_keep=1, use_cache=True).past_key_values
        known.batch_select_indices(chosen)
        mask = torch.cat([batch["attention_mask"][chosen], torch.ones_like(padded)], dim=1)
        # The logits of the shortest tail's end are the first that are needed.
        kept = width - int(ends.min())
        logits = _read(loaded, padded, mask, past_key_values=known, logits_to_keep=kept).logits
        last = logits[torch.arange(len(tails), device=device), ends - (width - kept)]
        return torch.log_softmax(last.float(), dim=-1)


def _score_after_prompt(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    options: Sequence[Sequence[list[int]]],
    poll: Poll,
) -> list[list[TokenLoss]]:
    results: list[list[TokenLoss]] = [[] for _ in prompts]
    logits, kept = LOGIT_TOKENS.get(loaded.device, 1024), 4 * LOGIT_TOKENS.get(loaded.device, 1024)
    # Each item's share of the memory of a pass, in thousandths: logits, or keys of every option.
    sizes = [
        1 + int(1000 * len(texts) * max(max(map(len, texts)) / logits, len(prompt) / kept))
        for prompt, texts in zip(prompts, options, strict=True)
    ]
    for chosen in _batches(sizes, 1000, 16):
        poll()
        losses = _score_options_of(
            loaded, [prompts[index] for index in chosen], [options[index] for index in chosen]
        )
        for index, found in zip(chosen, losses, strict=True):
            results[index] = found
    return results


def _score_options_of(
    loaded: LoadedModel, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
) -> list[list[TokenLoss]]:
    """Score by one pass over the prompts, then one over all options with the prompts' KV cache."""
    import torch

    owners = [row for row, texts in enumerate(options) for _ in texts]
    flat = [ids for texts in options for ids in texts]
    width = max(map(len, flat))
    batch = left_padded(loaded, prompts)
    device = batch["input_ids"].device
    chosen = torch.tensor(owners, device=device)
    padded = torch.tensor([(ids + [ids[0]] * width)[:width] for ids in flat], device=device)
    with inference(loaded):
        first = _read(loaded, **batch, logits_to_keep=1, use_cache=True)
        known = first.past_key_values
        known.batch_select_indices(chosen)
        mask = torch.cat([batch["attention_mask"][chosen], torch.ones_like(padded)], dim=1)
        later = _read(loaded, padded, mask, past_key_values=known).logits
        logits = torch.cat([first.logits[chosen], later[:, :-1]], dim=1)
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), padded, reduction="none"
        ).tolist()
    scored = iter(
        TokenLoss(sum(row[: len(ids)]), len(ids)) for row, ids in zip(losses, flat, strict=True)
    )
    return [[next(scored) for _ in texts] for texts in options]


def _score_ids(
    loaded: LoadedModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    poll: Poll,
    limit: int | None = None,
) -> list[TokenLoss]:
    results: list[TokenLoss | None] = [None] * len(pairs)
    limit = limit or LOGIT_TOKENS.get(loaded.device, 1024)
    for chosen in _batches([len(completion) for _, completion in pairs], limit, 64):
        poll()
        losses = _score_batch(loaded, [pairs[index] for index in chosen])
        for index, loss in zip(chosen, losses, strict=True):
            results[index] = loss
    return [result for result in results if result is not None]


def _score_batch(
    loaded: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[TokenLoss]:
    import torch

    batch = left_padded(loaded, [prompt + completion for prompt, completion in pairs])
    longest = max(len(completion) for _, completion in pairs)
    with inference(loaded):
        # Padding stands on the left, so every completion is among the last positions.
        logits = _read(loaded, **batch, logits_to_keep=longest + 1, use_cache=False).logits
    results: list[TokenLoss] = []
    for row, (_, completion) in enumerate(pairs):
        count = len(completion)
        targets = torch.tensor(completion, device=logits.device)
        losses = torch.nn.functional.cross_entropy(
            logits[row, -count - 1 : -1].float(), targets, reduction="sum"
        )
        results.append(TokenLoss(losses.item(), count))
    return results


def _read(loaded: LoadedModel, input_ids: Any, attention_mask: Any, **settings: Any) -> Any:
    """Call the model on the last tokens of rows whose mask covers padding and cache, too.

    Learned embeddings of positions count from the row's first token. Without their numbers a
    model such as GPT-2 counts the padding as well. Rotary ones see only distances.
    """
    if _learns_positions(loaded.model):
        numbers = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        settings["position_ids"] = numbers[:, -input_ids.shape[1] :]
    return loaded.model(input_ids=input_ids, attention_mask=attention_mask, **settings)


_POSITIONS_LEARNED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Of each model in memory: every pass asks, and to walk through its modules takes milliseconds."""


def _learns_positions(model: Any) -> bool:
    """Return whether the model takes positions, and has no rotary embeddings of them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base not in _POSITIONS_LEARNED:
        taken = inspect.signature(base.forward).parameters
        rotary = any("rotary" in name for name, _ in base.named_modules())
        _POSITIONS_LEARNED[base] = "position_ids" in taken and not rotary
    return _POSITIONS_LEARNED[base]


def _batches(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length whose padded size stays within both limits."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) == rows or lengths[index] * (len(group) + 1) > tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def left_padded(loaded: LoadedModel, ids: Sequence[list[int]]) -> dict[str, Any]:
    """Return ``input_ids`` and ``attention_mask`` [rows, longest], padded on the left."""
    import torch

    width = max(len(row) for row in ids)
    pad = loaded.tokenizer.pad_token_id
    device = next(loaded.model.parameters()).device
    padded = [[pad] * (width - len(row)) + row for row in ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
    return {
        "input_ids": torch.tensor(padded, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextmanager
def inference(loaded: LoadedModel) -> Iterator[None]:
    """Put the model into evaluation mode and switch gradients off."""
    import torch

    loaded.model.eval()
    # Sharded weights that were gathered in inference mode could not be trained with afterwards.
    mode = torch.no_grad() if loaded.engine.traits.splits else torch.inference_mode()
    with mode:
        yield
