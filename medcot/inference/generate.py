"""Continue prompts with a loaded model, many at once or streamed; ``loglikelihood`` scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any
from weakref import WeakSet

from medcot.config.schema import RunConfig
from medcot.data.tokenization import encode_text
from medcot.engines.base import LoadedModel
from medcot.errors import one_line
from medcot.evaluation.interface import ModelTools
from medcot.inference.loglikelihood import inference, left_padded, score, score_options
from medcot.records import Generation

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

    In slots (:mod:`medcot.inference.continuous_batching`) where the model is known to work so, else
    in padded batches.
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
    if not loaded.engine.traits.replaceable_attention or loaded.model in _unsuited:
        return None
    from medcot.inference.continuous_batching import decode, suits

    if not suits(loaded.model) or not all(ids):
        return None
    end, limits = loaded.tokenizer.eos_token_id, [max_new_tokens] * len(ids)
    try:
        with inference(loaded):
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
    batch = left_padded(loaded, ids)
    with inference(loaded):
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


def stream(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> Iterator[str]:
    """Pieces of the continuation of ``prompt`` as they are generated."""
    from transformers import TextIteratorStreamer

    batch = left_padded(loaded, [encode_text(loaded.tokenizer, prompt)])
    streamer = TextIteratorStreamer(
        loaded.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600
    )
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with inference(loaded):
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
