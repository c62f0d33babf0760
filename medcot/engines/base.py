"""What every engine takes and gives: where a model is, and the model once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class LoadedModel:
    """A causal language model with its tokenizer, and what loaded them.

    ``model`` is a transformers model, or a peft model once it has an adapter. ``answer_rows`` are
    answered at once. Where the ``engine`` is "split", all processes must use it alike.
    """

    model: Any
    tokenizer: Any
    engine: str
    device: str
    answer_rows: int
    chat: Any = None


@dataclass(frozen=True, slots=True)
class Location:
    """Where `from_pretrained` finds a model: what it is given, and with which commit.

    ``cached`` says that the hub is out of reach, so that only its local cache can answer.
    """

    source: str
    revision: str | None = None
    cached: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``from_pretrained``."""
        return {"revision": self.revision, "local_files_only": self.cached}


def settle_pad_token(tokenizer: Any) -> None:
    """Choose a pad token among those that exist: one equal to EOS would hide EOS from a loss.

    A new token is never added, since that would resize the embeddings.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    for candidate in ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "<unk>", "[PAD]"):
        if candidate in vocabulary and candidate != tokenizer.eos_token:
            tokenizer.pad_token = candidate
            return
    # Labels mask padding by position, so a shared token is safe there; only the name is doubtful.
    tokenizer.pad_token = tokenizer.eos_token
