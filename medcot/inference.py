"""What a loaded model can do: continue prompts, score completions, compare options, stream."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any
from weakref import WeakSet

from medcot.config import RunConfig
from medcot.engines import quiet
from medcot.errors import one_line
from medcot.evaluation import ModelTools
from medcot.model import LoadedModel
from medcot.records import Generation, Prompt, TokenLoss
from medcot.tokens import encode, encode_text

LOGIT_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Positions whose logits are held at once: 49,152 (SmolLM2) to 128,256 (Llama) floats each."""


ROUNDS = {"cpu": 2, "cuda": 4}
"""Handfuls of prompts asked for together: a slot whose answer has ended takes one of the next. With
more, less of the machine idles, and more is asked again after a kill."""


def model_tools(loaded: LoadedModel, config: RunConfig) -> ModelTools:
    """The callables that evaluation knows the model by."""
    return ModelTools(
        generate=lambda prompts: generate(loaded, prompts, config.max_new_tokens),
        score=lambda pairs: score(loaded, pairs),
        score_options=lambda items: score_options(loaded, items),
        chat=loaded.chat,
        answers_at_once=loaded.answer_rows * ROUNDS.get(loaded.device, 1),
    )


def generate(loaded: LoadedModel, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
    """Greedy continuations of ``prompts`` in the given order, many at once.

    In slots (:mod:`medcot.decoding`) where the model is known to work so, else in padded batches.
    """
    ids = [encode_text(loaded.tokenizer, prompt) for prompt in prompts]
    if ids and (answers := _generate_in_slots(loaded, ids, max_new_tokens)):
        return [_as_generation(loaded.tokenizer, answer) for answer in answers]
    return _generate_in_batches(loaded, ids, max_new_tokens)


_unsuited: WeakSet[Any] = WeakSet()
"""Models that failed in slots once."""


def _generate_in_slots(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]] | None:
    """The answers' ids, or None where this model, engine or machine needs the plain way."""
    if loaded.engine not in ("transformers", "fused") or loaded.model in _unsuited:
        return None
    from medcot.decoding import decode, suits

    if not suits(loaded.model) or not all(ids):
        return None
    end, limits = loaded.tokenizer.eos_token_id, [max_new_tokens] * len(ids)
    try:
        with _inference(loaded):
            return decode(loaded.model, ids, limits, end, loaded.answer_rows)
    except Exception as error:  # noqa: BLE001 - the plain way is slower, and sure
        reason = one_line(f"{type(error).__name__}: {error}")
    _unsuited.add(loaded.model)
    warnings.warn(f"Answers are made the slower way: {reason}", stacklevel=3)
    return None


def _generate_in_batches(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int
) -> list[Generation]:
    results: list[Generation | None] = [None] * len(ids)
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(by_length), loaded.answer_rows):
        chosen = by_length[start : start + loaded.answer_rows]
        outputs = _generate_batch(loaded, [ids[index] for index in chosen], max_new_tokens)
        for index, output in zip(chosen, outputs, strict=True):
            results[index] = output
    return [result for result in results if result is not None]


def _generate_batch(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int
) -> list[Generation]:
    batch = _left_padded(loaded, ids)
    with _inference(loaded):
        output = loaded.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=loaded.tokenizer.eos_token_id,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
    width = batch["input_ids"].shape[1]
    return [_as_generation(loaded.tokenizer, row[width:].tolist()) for row in output]


def _as_generation(tokenizer: Any, ids: list[int]) -> Generation:
    finished = tokenizer.eos_token_id in ids
    if finished:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Generation(text, len(ids) + finished, finished)


def score(loaded: LoadedModel, pairs: Sequence[Prompt]) -> list[TokenLoss]:
    """The loss of each completion given its prompt, its end-of-sequence token included."""
    rows = encode(loaded.tokenizer, {str(index): pair for index, pair in enumerate(pairs)})
    return _score_ids(loaded, [(row.prompt_ids, row.completion_ids) for row in rows])


def score_options(
    loaded: LoadedModel, items: Sequence[tuple[str, Sequence[str]]]
) -> list[list[TokenLoss]]:
    """The loss of each continuation after its prompt, without end-of-sequence.

    Where all continuations are one token, as letters are, one forward pass of the prompt
    scores them all.
    """
    prompts = [encode_text(loaded.tokenizer, prompt) for prompt, _ in items]
    options = [
        [loaded.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        for _, texts in items
    ]
    if all(len(ids) == 1 for texts in options for ids in texts):
        return _score_next_token(loaded, prompts, options)
    flat = [(prompt, ids) for prompt, texts in zip(prompts, options, strict=True) for ids in texts]
    losses = iter(_score_ids(loaded, flat))
    return [[next(losses) for _ in texts] for texts in options]


def _score_next_token(
    loaded: LoadedModel, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
) -> list[list[TokenLoss]]:
    import torch

    results: list[list[TokenLoss]] = [[] for _ in prompts]
    for chosen in _batches([len(prompt) for prompt in prompts], 4096, 16):
        batch = _left_padded(loaded, [prompts[index] for index in chosen])
        with _inference(loaded):
            logits = loaded.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1]
            log_probs = torch.log_softmax(logits.float(), dim=-1)
        for row, index in enumerate(chosen):
            results[index] = [
                TokenLoss(-log_probs[row, ids[0]].item(), 1) for ids in options[index]
            ]
    return results


def _score_ids(
    loaded: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[TokenLoss]:
    results: list[TokenLoss | None] = [None] * len(pairs)
    limit = LOGIT_TOKENS.get(loaded.device, 1024)
    for chosen in _batches([len(completion) for _, completion in pairs], limit, 64):
        losses = _score_batch(loaded, [pairs[index] for index in chosen])
        for index, loss in zip(chosen, losses, strict=True):
            results[index] = loss
    return [result for result in results if result is not None]


def _score_batch(
    loaded: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[TokenLoss]:
    import torch

    batch = _left_padded(loaded, [prompt + completion for prompt, completion in pairs])
    longest = max(len(completion) for _, completion in pairs)
    with _inference(loaded):
        # Padding stands on the left, so every completion is among the last positions.
        logits = loaded.model(**batch, logits_to_keep=longest + 1, use_cache=False).logits
    results: list[TokenLoss] = []
    for row, (_, completion) in enumerate(pairs):
        count = len(completion)
        targets = torch.tensor(completion, device=logits.device)
        losses = torch.nn.functional.cross_entropy(
            logits[row, -count - 1 : -1].float(), targets, reduction="sum"
        )
        results.append(TokenLoss(losses.item(), count))
    return results


def stream(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> Iterator[str]:
    """Pieces of the continuation of ``prompt`` as they are generated."""
    from transformers import TextIteratorStreamer

    batch = _left_padded(loaded, [encode_text(loaded.tokenizer, prompt)])
    streamer = TextIteratorStreamer(
        loaded.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600
    )
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with _inference(loaded):
                loaded.model.generate(
                    **batch,
                    streamer=streamer,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=loaded.tokenizer.eos_token_id,
                    pad_token_id=loaded.tokenizer.pad_token_id,
                )
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]


def _batches(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Indices in groups of like length whose padded size stays within ``tokens`` and ``rows``."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) == rows or lengths[index] * (len(group) + 1) > tokens):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _left_padded(loaded: LoadedModel, ids: Sequence[list[int]]) -> dict[str, Any]:
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
def _inference(loaded: LoadedModel) -> Iterator[None]:
    import torch

    loaded.model.eval()
    with torch.inference_mode(), quiet():
        yield
