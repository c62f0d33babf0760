"""Continues prompts with a loaded model, many at once or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from queue import Queue
from threading import Thread
from typing import Any

from medcot.config.schema import RunConfig
from medcot.data.tokenization import encode_text
from medcot.engines.base import LoadedModel, end_token_ids
from medcot.engines.fallbacks import report_fallback
from medcot.engines.interruption import interruptible
from medcot.errors import Cancelled, one_line
from medcot.evaluation.interface import ModelTools
from medcot.inference.loglikelihood import (
    Poll,
    inference,
    left_padded,
    never_stop,
    score,
    score_options,
)
from medcot.records import Generation

ROUNDS = {"cpu": 1, "cuda": 4}
"""Batches queued per call. Larger values keep the GPU busier but lose more work if the run is
killed."""


OnStep = Callable[[int, int], None]
"""Called between tokens with the number of complete answers and of tokens; may raise Cancelled."""

OnAnswering = Callable[[int, int, int, int], None]
"""Takes how many of how many answers are complete, and how many of at most how many tokens."""


def say_nothing(_done: int, _total: int, _tokens: int, _most: int) -> None:
    """Tell nobody how far a group of answers is."""


def model_tools(
    loaded: LoadedModel,
    config: RunConfig,
    should_stop: Callable[[], bool] = lambda: False,
    on_answering: OnAnswering = say_nothing,
) -> ModelTools:
    """Return the callables by which evaluation knows the model.

    They raise Cancelled as soon as ``should_stop`` returns True, which is asked between tokens
    and between batches, on a CPU at every layer. ``on_answering`` is called between tokens.
    """

    def poll() -> None:
        if should_stop():
            raise Cancelled

    def polled(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def with_poll(argument: Any) -> Any:
            with interruptible(loaded, poll):
                return call(argument)

        return with_poll

    return ModelTools(
        generate=polled(
            lambda prompts: generate(loaded, prompts, config.max_new_tokens, poll, on_answering)
        ),
        score=polled(lambda pairs: score(loaded, pairs, poll)),
        score_options=polled(lambda items: score_options(loaded, items, poll)),
        chat=loaded.chat,
        answers_at_once=loaded.answer_rows * ROUNDS.get(loaded.device, 1),
    )


def generate(
    loaded: LoadedModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    poll: Poll = never_stop,
    on_answering: OnAnswering = say_nothing,
) -> list[Generation]:
    """Return greedy continuations of ``prompts`` in the given order, many at once.

    Uses continuous batching (:mod:`medcot.inference.continuous_batching`) where it is known to
    work with the model, else padded batches.
    """
    ids = [encode_text(loaded.tokenizer, prompt) for prompt in prompts]
    most = len(ids) * max_new_tokens

    def on_step(done: int, tokens: int) -> None:
        poll()
        on_answering(done, len(ids), tokens, most)

    if ids and (answers := _generate_continuously(loaded, ids, max_new_tokens, on_step)):
        return [_as_generation(loaded, answer) for answer in answers]
    return _generate_in_batches(loaded, ids, max_new_tokens, on_step)


def _generate_continuously(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int, on_step: OnStep
) -> list[list[int]] | None:
    """Return the ids of the answers, or None where padded batches are needed."""
    if not loaded.engine.traits.replaceable_attention or not all(ids):
        return None
    from medcot.inference.continuous_batching import decode, is_supported

    model, known = loaded.model, loaded.batches_continuously
    if not is_supported(model):
        return _fall_back("its attention or its generation settings are not supported")
    works = known.get(model)
    if works is False:
        return None
    ends, limits = end_token_ids(loaded), [max_new_tokens] * len(ids)
    try:
        with inference(loaded):
            answers = decode(
                model, ids, limits, ends, loaded.answer_rows, check=works is None, on_step=on_step
            )
    except Cancelled:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, padded batches are slower, and sure
        known[model] = False
        return _fall_back(one_line(f"{type(error).__name__}: {error}"))
    known[model] = True
    return answers


def _fall_back(why: str) -> None:
    # Measured: 2.9 times as long on an H100 at 64 answers, 1.8 times on a CPU at 16.
    report_fallback(
        "no-continuous-batching",
        f"Continuous batching does not work with this model ({why}): answers are generated in"
        " padded batches, which takes two to three times as long.",
    )


def _generate_in_batches(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int, on_step: OnStep
) -> list[Generation]:
    results: list[Generation | None] = [None] * len(ids)
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(by_length), loaded.answer_rows):
        chosen = by_length[start : start + loaded.answer_rows]
        made = sum(result.tokens for result in results if result is not None)
        poll = _poll_batch(on_step, start, made, len(chosen))
        outputs = _generate_batch(loaded, [ids[index] for index in chosen], max_new_tokens, poll)
        for index, output in zip(chosen, outputs, strict=True):
            results[index] = output
    return [result for result in results if result is not None]


def _poll_batch(on_step: OnStep, done: int, made: int, rows: int) -> Poll:
    """Return what to call at each token of ``rows`` answers, after ``done`` of ``made`` tokens."""
    tokens = count()
    return lambda: on_step(done, made + rows * next(tokens))


def _generate_batch(
    loaded: LoadedModel, ids: Sequence[list[int]], max_new_tokens: int, poll: Poll
) -> list[Generation]:
    batch = left_padded(loaded, ids)
    with inference(loaded):
        output = _call_generate(loaded, batch, max_new_tokens, poll=poll)
    width = batch["input_ids"].shape[1]
    return [_as_generation(loaded, row[width:].tolist()) for row in output]


def _call_generate(
    loaded: LoadedModel,
    batch: dict[str, Any],
    max_new_tokens: int,
    *,
    streamer: Any = None,
    poll: Poll = never_stop,
) -> Any:
    """Call transformers' ``generate`` greedily, whatever the model's own settings are."""
    return loaded.model.generate(
        **batch,
        streamer=streamer,
        stopping_criteria=_poll_between_tokens(poll),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=sorted(end_token_ids(loaded)),
        pad_token_id=loaded.tokenizer.pad_token_id,
    )


def _as_generation(loaded: LoadedModel, ids: list[int]) -> Generation:
    """Cut the answer at its end token and decode it.

    Special tokens stay in the text, because with some models the tags of a thought are special.
    Only start and padding are taken out.
    """
    ends = end_token_ids(loaded)
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    finished = length < len(ids)
    tokenizer = loaded.tokenizer
    silent = {tokenizer.bos_token_id, tokenizer.pad_token_id}
    kept = [token for token in ids[:length] if token not in silent]
    text = tokenizer.decode(kept, skip_special_tokens=False)
    return Generation(text, length + finished, finished)


def stream(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> Iterator[Generation]:
    """Yield the continuation of ``prompt`` as it grows, with every token.

    The last one equals what :func:`generate` returns. A character whose bytes are not all there
    yet is held back.
    """
    batch = left_padded(loaded, [encode_text(loaded.tokenizer, prompt)])
    tokens: Queue[list[int] | BaseException | None] = Queue()

    def work() -> None:
        try:
            with inference(loaded):
                _call_generate(loaded, batch, max_new_tokens, streamer=_TokenQueue(tokens))
            tokens.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            tokens.put(error)

    Thread(target=work, daemon=True).start()
    ids: list[int] = []
    while (new := tokens.get()) is not None:
        if isinstance(new, BaseException):
            raise new
        ids += new
        grown = _as_generation(loaded, ids)
        yield replace(grown, text=grown.text.rstrip("\ufffd"))
    yield _as_generation(loaded, ids)


def _poll_between_tokens(poll: Poll) -> Any:
    """Return a stopping criterion of transformers that stops nothing, but polls at each token."""

    def criterion(input_ids: Any, _scores: Any, **_: Any) -> Any:
        poll()
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    return [criterion]


class _TokenQueue:
    """What transformers' ``generate`` takes for a streamer: puts new token ids into a queue."""

    def __init__(self, tokens: Queue[list[int] | BaseException | None]) -> None:
        self._tokens = tokens
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take token ids [1, prompt] first, then [1] each."""
        if self._prompt_seen:
            self._tokens.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the thread that generates says by itself that it is done."""
