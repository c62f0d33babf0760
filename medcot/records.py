"""Defines the records that the packages exchange: plain data, no torch, no files, no logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medcot.catalog import Message

Language = Literal["en", "zh"]
Style = Literal["tutorial", "chat"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One checkable statement about an open answer.

    ``states`` and ``contradicts`` hold regular expressions (case-insensitive), by language mixed.
    """

    text: str
    states: tuple[str, ...]
    contradicts: tuple[str, ...]


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its response, and the chain of thought that leads to it.

    ``thought`` is "" where the data has none: then none is trained, and none is asked for.
    ``turns`` is what comes before the question: a system prompt, earlier turns.
    """

    id: str
    question: str
    thought: str
    response: str
    language: Language = "en"
    source: str = ""
    specialty: str = ""
    reference: str = ""
    claims: tuple[Claim, ...] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question. ``options`` maps letters to texts, ``answer`` is a letter."""

    id: str
    question: str
    options: Mapping[str, str]
    answer: str
    language: Language = "en"
    context: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and the completion that the model is trained to produce.

    ``text`` ends inside the open thought; ``completion`` closes it and carries the response, and
    ends without the end-of-sequence token, which is added when the pair becomes tokens. Without a
    thought, ``text`` ends where the response begins. ``begun`` is how the model's turn has begun
    before ``completion``: it is tokenised together with that, but has no loss.
    """

    text: str
    completion: str
    begun: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed completion. An unclosed thought has no answer.

    ``closed`` is True where no thought was asked for and none was begun.
    """

    thought: str
    answer: str
    closed: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """A raw completion: its text, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


Generate = Callable[[Sequence[str]], list[Generation]]
"""Generates one completion per prompt, in order; evaluation knows a model only as this."""


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The negative log-likelihood of one completion: its sum in nats, over ``tokens`` tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Return the loss per token, in nats."""
        return self.total / self.tokens


Score = Callable[[Sequence[Prompt]], list[TokenLoss]]
"""Returns the loss of each prompt's completion, end-of-sequence token included."""

OptionScore = Callable[[Sequence[tuple[str, Sequence[str]]]], list[list[TokenLoss]]]
"""Returns the loss of each option after its prompt, without an end-of-sequence token."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault in one row of a data set."""

    where: str
    field: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}, {self.field}: {self.what}"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """How far one training of a study is, and its loss once that is known."""

    state: Literal["waiting", "training", "trained", "scored"]
    step: int = 0
    steps: int = 0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class StudyState:
    """How far a study is: the trainings of each arm, how many arms are done, and the time left.

    ``seconds_left`` is None while nothing is known of it.
    """

    arms: Mapping[str, Sequence[TrainingState]]
    done: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """One optimizer step, as ``events.jsonl``, the terminal and the notebook show it."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    """None where an fp16 gradient overflowed: such a step changes nothing."""
    tokens: int
    tokens_per_second: float
    memory_gib: float
    eta_s: float
    validation_loss: float | None = None
    """Nats per completion token of the validation rows; None where they were not scored."""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Split:
    """Row ids by part. A row's part depends on its own question only."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out of a data set, and why."""

    id: str
    reason: str | Message

    def to_json(self) -> dict[str, Any]:
        """Return the record as a cache keeps it."""
        reason = self.reason
        return {
            "id": self.id,
            "reason": reason.to_json() if isinstance(reason, Message) else reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dropped:
        """Read what :meth:`to_json` returns."""
        reason = data["reason"]
        return cls(data["id"], reason if isinstance(reason, str) else Message.from_json(reason))

    def in_english(self) -> Dropped:
        """Return the record with its reason as a plain English text, as reports show it."""
        return Dropped(self.id, str(self.reason))


@dataclass(frozen=True, slots=True)
class Dataset:
    """The cases of one source, ready to split, with the dropped rows and the source's revision.

    ``fingerprint`` is a SHA-256 over the cases in order; ``revision`` the hub commit or "".
    ``thinks`` tells whether the cases have thoughts.
    """

    name: str
    cases: Sequence[Case]
    dropped: tuple[Dropped, ...] = ()
    revision: str = ""
    fingerprint: str = ""
    synthetic: bool = False
    notes: tuple[str, ...] = field(default=())
    thinks: bool = True
