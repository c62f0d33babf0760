"""What an engine is, and the records that engines take and return."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from medcot.config.schema import RunConfig
    from medcot.data.prompts import ChatTemplate
    from medcot.planning.engine_traits import Traits
    from medcot.planning.plan import Plan


class AdjustedScale(Protocol):
    """The factor of an fp16 loss, which the device adjusts after each step."""

    value: Tensor

    def update(self, finite: Tensor) -> None:
        """Adjust the scale after a step whose gradient was ``finite``."""
        ...

    def state(self) -> dict[str, float]:
        """Return what :meth:`restore` needs."""
        ...

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a :meth:`state` of an earlier session."""
        ...


class TrainedParameters(Protocol):
    """What a training pass trains in place of the model's own parameters."""

    @property
    def loss_scale(self) -> AdjustedScale | None:
        """The factor of the loss, None where there is none."""
        ...

    def gather(self) -> nn.Parameter:
        """Return all of them as one flat parameter, with its gradient."""
        ...


class Engine(Protocol):
    """Loads a model, adds LoRA to it and runs its training pass."""

    @property
    def traits(self) -> Traits:
        """What this engine does differently from plain transformers."""
        ...

    def prepare_process(self) -> None:
        """Do what must happen before transformers or CUDA is first used.

        Raises:
            InputError: The engine's library is not installed.
        """
        ...

    def load_base(self, config: RunConfig, plan: Plan, where: Location) -> LoadedModel:
        """Load the untuned model in the plan's precision on the plan's device."""
        ...

    def add_adapter(self, loaded: LoadedModel, config: RunConfig, plan: Plan) -> Any:
        """Return a peft model with a fresh adapter, the same for the same seed."""
        ...

    def read_adapter(
        self, loaded: LoadedModel, config: RunConfig, plan: Plan, folder: Path | None
    ) -> Any:
        """Return a peft model with the adapter in ``folder``, ready for inference.

        Args:
            folder: None in the worker processes of an engine that ``splits``.

        Raises:
            OSError, RuntimeError, ValueError: There is no adapter, or not one of this model.
        """
        ...

    def training_pass(
        self, loaded: LoadedModel, plan: Plan
    ) -> AbstractContextManager[TrainedParameters | None]:
        """Exchange the model's forward pass for the training pass while the context is open.

        Yields what is trained where that is not the model's parameters one by one, else None.
        """
        ...


@dataclass(slots=True)
class LoadedModel:
    """A causal language model with its tokenizer and the engine that loaded them.

    Attributes:
        model: A transformers model, or a peft model once it has an adapter.
        tokenizer: A transformers tokenizer with a pad token.
        answer_rows: Prompts answered at once.
        chat: The tokenizer's template for a user's turn; None where it has none.
        batches_continuously: Whether continuous batching gave right answers, by the model that it
            was tried on: an adapter makes another model.
    """

    model: Any
    tokenizer: Any
    engine: Engine
    device: str
    answer_rows: int
    chat: ChatTemplate | None = None
    batches_continuously: WeakKeyDictionary[Any, bool] = field(default_factory=WeakKeyDictionary)


@dataclass(frozen=True, slots=True)
class Location:
    """Where ``from_pretrained`` finds a model: a folder or hub name, and the commit.

    ``cached`` is True when the hub is out of reach, so that only its local cache can answer.
    ``commit`` is that of a folder, where it is one of the hub's cache.
    """

    source: str
    revision: str | None = None
    cached: bool = False
    commit: str = ""

    @property
    def recorded(self) -> str | None:
        """The commit, or None for a folder that names none."""
        return self.commit or self.revision

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``from_pretrained``; code that comes with a model never runs."""
        return {
            "revision": self.revision,
            "local_files_only": self.cached,
            "trust_remote_code": False,
        }


def end_token_ids(loaded: LoadedModel) -> frozenset[int]:
    """Return the ids of all tokens that end an answer: the tokenizer's and the model's own.

    A model may name several in its ``generation_config``, for example the end of a turn and the
    end of the text.
    """
    config = getattr(loaded.model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    found = {loaded.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return frozenset(token for token in found if token is not None)


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
