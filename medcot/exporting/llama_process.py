"""Runs in a process of its own: llama.cpp, by way of cyllama, loads, scores, answers, quantises.

llama.cpp ends its process where a file is not as it expects; the caller must survive that. One
request comes on the standard input, as JSON; the replies are lines of JSON on the standard output.
Imports nothing of medcot and no torch, so it starts quickly.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from cyllama.llama import llama_cpp as llama

CHUNK = 512
"""Tokens that are decoded at once."""


class Model(llama.LlamaModel):
    """A model that knows the size of its vocabulary, which cyllama 0.2.18 asks of it in vain."""

    @cached_property
    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return self.get_vocab().n_vocab


class Session:
    """A loaded GGUF with one context."""

    def __init__(self, path: str, tokens: int, threads: int) -> None:
        self.model = Model(path, llama.LlamaModelParams(), verbose=False)
        self.vocab = self.model.get_vocab()
        params = llama.LlamaContextParams()
        params.n_ctx, params.n_batch, params.n_ubatch = tokens, CHUNK, CHUNK
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.LlamaContext(self.model, params, verbose=False)

    def decode(self, ids: Sequence[int], start: int, wanted: int) -> Iterator[Any]:
        """Read ``ids`` at position ``start``; yield the logits from position ``wanted`` on."""
        import numpy as np

        for first in range(0, len(ids), CHUNK):
            part = ids[first : first + CHUNK]
            batch = llama.LlamaBatch(n_tokens=CHUNK, embd=0, n_seq_max=1)
            for place, token in enumerate(part, start + first):
                batch.add(token, place, [0], place >= wanted)
            self.context.decode(batch)
            for index, place in enumerate(range(start + first, start + first + len(part))):
                if place >= wanted:
                    yield np.asarray(self.context.get_logits_ith(index), dtype=np.float64)

    def loss(self, prompt: Sequence[int], completion: Sequence[int]) -> float:
        """Return the loss of a completion after its prompt, summed, in nats."""
        import numpy as np

        self.context.kv_cache_clear()
        logits = self.decode([*prompt, *completion[:-1]], 0, len(prompt) - 1)
        total = 0.0
        for token, row in zip(completion, logits, strict=True):
            top = row.max()
            total += top + math.log(np.exp(row - top).sum()) - row[token]
        return float(total)

    def answer(self, prompt: Sequence[int], limit: int) -> tuple[list[int], bool]:
        """Return the greedy answer's tokens, and whether a token of the file ended it."""
        self.context.kv_cache_clear()
        (row,) = self.decode(prompt, 0, len(prompt) - 1)
        ids: list[int] = []
        while len(ids) < limit:
            token = int(row.argmax())
            if self.vocab.is_eog(token):
                return ids, True
            ids.append(token)
            if len(ids) < limit:
                place = len(prompt) + len(ids) - 1
                (row,) = self.decode([token], place, place)
        return ids, False

    def facts(
        self, texts: Sequence[tuple[str, str]], ends: Sequence[int], bos: str
    ) -> dict[str, Any]:
        """Return what the file says of itself, and the tokens that it makes of each text.

        A chat template may spell the first token, ``bos``, itself; llama.cpp's own chat endpoint
        then adds no second one.
        """
        found: Any = self.model.metadata
        known: Any = found() if callable(found) else found
        return {
            "metadata": {k: v for k, v in known.items() if not k.startswith("tokenizer.ggml.tok")},
            "eos": self.vocab.token_eos(),
            "ends": [one for one in ends if self.vocab.is_eog(one)],
            "tokens": [
                (
                    self.vocab.tokenize(
                        prompt, add_special=not (bos and prompt.startswith(bos)), parse_special=True
                    ),
                    self.vocab.tokenize(text, add_special=False, parse_special=True),
                )
                for prompt, text in texts
            ],
        }


def measure(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the file's facts, then the loss of each row, then each answer."""
    longest = max(len(p) + len(c) for p, c in request["rows"])
    asked = max((len(one) for one in request["questions"]), default=0) + request["max_new_tokens"]
    session = Session(request["file"], max(longest, asked) + 8, request["threads"])
    yield {"facts": session.facts(request["texts"], request["ends"], request["bos"])}
    for prompt, completion in request["rows"]:
        yield {"loss": session.loss(prompt, completion)}
    for prompt in request["questions"]:
        ids, finished = session.answer(prompt, request["max_new_tokens"])
        yield {"ids": ids, "finished": finished}


def quantize(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Quantise a GGUF by llama.cpp's own function."""
    params = llama.LlamaModelQuantizeParams()
    params.ftype, params.nthread = request["file_type"], request["threads"]
    llama.model_quantize(request["file"], request["target"], params)
    yield {"done": True}


def main() -> None:
    """Answer one request."""
    # llama.cpp writes to the standard output, too: replies go to a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    llama.disable_logging()
    request = json.load(sys.stdin)
    work = {"measure": measure, "quantize": quantize}[request["do"]]
    for reply in work(request):
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
