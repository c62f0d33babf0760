"""The report as records; :mod:`medcot.reporting.storage` reads and writes them.

Every record is frozen. A field that ``report.json`` leaves out when it does not apply is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, cast

from medcot.catalog import Message, say
from medcot.config.schema import RunConfig
from medcot.data.contamination import Overlap
from medcot.evaluation.judge import GradeResult, JudgeResult
from medcot.evaluation.rubric import ClaimFinding
from medcot.evaluation.suite import Summary
from medcot.records import Dropped
from medcot.stats.crossed import CrossedDifference
from medcot.stats.paired import PairedDifference, Verdict

SCHEMA_VERSION = 1
"""Version of ``report.json``. Reports without one were written before versions existed."""

Measure = Literal[
    "nll",
    "mcq",
    "abilities",
    "closed_rate",
    "finished_rate",
    "repetition_rate",
    "language_match_rate",
    "answer_tokens",
    "thought_tokens",
    "thought_gain",
    "thought_harm",
    "claims_rate",
]
MEASURES: tuple[Measure, ...] = (
    "nll",
    "mcq",
    "abilities",
    "closed_rate",
    "finished_rate",
    "repetition_rate",
    "language_match_rate",
    "answer_tokens",
    "thought_tokens",
    "thought_gain",
    "thought_harm",
    "claims_rate",
)
"""What is compared, in the order of a report's table."""

Endpoints = Literal["nll", "mcq", "abilities"]
"""Measures that have a verdict."""


@dataclass(frozen=True, slots=True)
class VerdictMessages:
    """What may be said of each measure that has a verdict, as codes of the catalog."""

    nll: tuple[Message, ...] = ()
    mcq: tuple[Message, ...] = ()
    abilities: tuple[Message, ...] = ()

    def all(self) -> tuple[Message, ...]:
        """Return everything that may be said, measure by measure."""
        return (*self.nll, *self.mcq, *self.abilities)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What may be said of the test loss, of all questions together, and of each set.

    ``abilities`` is what training cost: the verdict on all general items together, and on each
    kind. ``messages`` say it in either language, ``sentence`` in English. ``mcq`` and ``abilities``
    are None if nothing was asked for them.
    """

    nll: Verdict
    mcq: Verdict | None = None
    mcq_sets: Mapping[str, Verdict] | None = None
    abilities: Verdict | None = None
    ability_kinds: Mapping[str, Verdict] | None = None
    sentence: str = ""
    messages: VerdictMessages = VerdictMessages()


@dataclass(frozen=True, slots=True)
class Endpoint(PairedDifference):
    """A comparison that has a verdict, with its statistical power.

    ``detectable`` is the smallest difference found with a power of 80 %; ``needed_rows`` would show
    the difference seen, and is None if it was shown.
    """

    detectable: float | None = None
    needed_rows: int | None = None


@dataclass(frozen=True, slots=True)
class ChoiceEndpoint(Endpoint):
    """The comparison of right answers: all items together, and each set corrected for number.

    Without a question that both sides answered, ``n`` is 0 and nothing else has a meaning.
    """

    needed_for_5_points: int | None = None
    sets: Mapping[str, PairedDifference] = field(default_factory=dict[str, PairedDifference])


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The paired differences, after minus before. None: no row to compare."""

    nll: Endpoint | None = None
    closed_rate: PairedDifference | None = None
    finished_rate: PairedDifference | None = None
    repetition_rate: PairedDifference | None = None
    language_match_rate: PairedDifference | None = None
    answer_tokens: PairedDifference | None = None
    thought_tokens: PairedDifference | None = None
    thought_gain: PairedDifference | None = None
    thought_harm: PairedDifference | None = None
    claims_rate: PairedDifference | None = None
    mcq: ChoiceEndpoint | None = None
    abilities: ChoiceEndpoint | None = None

    def of(self, measure: Measure) -> PairedDifference | None:
        """Return the comparison of ``measure``; None without a row to compare."""
        found = cast("PairedDifference | None", getattr(self, measure))
        return found if found and found.n else None

    def endpoints(self) -> dict[Endpoints, Endpoint]:
        """Return the comparisons that have a verdict and rows to carry it."""
        found: dict[Endpoints, Endpoint | None] = {
            "nll": self.nll,
            "mcq": self.mcq,
            "abilities": self.abilities,
        }
        return {name: one for name, one in found.items() if one and one.n}


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer. ``tokens`` counts thought and answer; see :class:`ScoredRow`."""

    thought: str
    answer: str
    closed: bool
    finished: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A test row and how its loss changed. The answers are None if it was only scored."""

    id: str
    question: str
    reference: str
    nll_before: float
    nll_after: float
    difference: float
    before: Answer | None
    after: Answer | None


@dataclass(frozen=True, slots=True)
class ChangedQuestion:
    """A question whose grade changed. ``before`` and ``after`` are letters; None: none stated."""

    set: str
    id: str
    question: str
    reference: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class LostAbility:
    """A general item that passed before and fails after, with both answers."""

    kind: str
    id: str
    prompt: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ChangedList:
    """Questions that changed the same way: their number, and the first few."""

    n: int = 0
    shown: tuple[ChangedQuestion, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangedQuestions:
    """Questions whose grade changed, by direction."""

    became_right: ChangedList = ChangedList()
    became_wrong: ChangedList = ChangedList()


@dataclass(frozen=True, slots=True)
class ClaimFindings:
    """What the two answers to the fixed question say about each claim."""

    before: tuple[ClaimFinding, ...] = ()
    after: tuple[ClaimFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class Passed:
    """Whether the two answers to the fixed question state every claim; None without claims."""

    before: bool | None
    after: bool | None


@dataclass(frozen=True, slots=True)
class FixedQuestion:
    """The fixed question, its reference, and the answers before and after."""

    question: str
    reference: str
    before: Answer | None
    after: Answer | None
    claims: ClaimFindings
    passed: Passed


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of ``n`` questions lm_eval and medcot graded alike, before and after."""

    before: int
    after: int
    n: int


@dataclass(frozen=True, slots=True)
class LetterShare:
    """The letter that a model chose most often, and its share of all ``readings``."""

    letter: str
    share: float
    readings: int


@dataclass(frozen=True, slots=True)
class LetterBias:
    """What the letters of the options did to the exam, where questions were read in several orders.

    ``expected`` is the share of a letter without a preference. ``as_given`` compares the answers to
    the options in their given order alone, whose rates are ``rate_before`` and ``rate_after``;
    the report's verdict rests on all orders.
    """

    before: LetterShare
    after: LetterShare
    expected: float
    rate_before: float
    rate_after: float
    as_given: PairedDifference
    verdict_as_given: Verdict


@dataclass(frozen=True, slots=True)
class Truncated:
    """Outputs that reached ``max_new_tokens``, before and after, ``of`` outputs on each side."""

    before: int
    after: int
    of: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class RowLoss:
    """A test row's loss before and after, in nats per token."""

    id: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest detectable difference of each verdict; with several seeds, of the recipe."""

    nll: float | None = None
    mcq: float | None = None
    abilities: float | None = None


@dataclass(frozen=True, slots=True)
class NeededRows:
    """The rows that would show the difference seen, for each comparison that has a verdict."""

    nll: int | None = None
    mcq: int | None = None
    abilities: int | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: its file, relative to the run directory, and its title."""

    file: str
    title: str


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Which data set a run used; see :class:`medcot.records.Dataset`."""

    name: str = ""
    revision: str = ""
    fingerprint: str = ""
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class FallbackFact:
    """Something that the run did the slower or less precise way, and what that costs."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EnvironmentFacts:
    """What a reader of the report must know about where the run happened."""

    fallbacks: tuple[FallbackFact, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportFact:
    """What the proof of an export found: ``same``, ``changed``, ``broken`` or ``unproved``."""

    format: str
    outcome: str
    sentence: Message


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The validation loss after a step, in nats per completion token."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class ValidationFacts:
    """The validations of a training on ``rows`` rows, in order.

    ``kept_step`` is the step of the adapter that is scored and ``steps`` the last one.
    """

    rows: int
    kept_step: int
    steps: int
    losses: tuple[StepLoss, ...]
    stopped_early: bool = False

    @property
    def kept_loss(self) -> float:
        """Return the loss of the adapter that was kept, or else of the last validation."""
        by_step = {one.step: one.loss for one in self.losses}
        return by_step.get(self.kept_step, self.losses[-1].loss)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run knows besides its scores. Two runs with the same seed have the same facts."""

    dataset: DatasetFacts | None = None
    rows: int | None = None
    dropped: tuple[Dropped, ...] | None = None
    steps: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    judge: JudgeResult | None = None
    environment: EnvironmentFacts | None = None
    exports: tuple[ExportFact, ...] | None = None
    validation: ValidationFacts | None = None
    grades: GradeResult | None = None


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """What one of several trainings changed, by its own rows, with its own verdicts.

    ``kept`` tells that the adapter of the run is this one.
    """

    number: int
    seed: int
    kept: bool
    validation_loss: float | None
    nll: PairedDifference | None
    nll_verdict: Verdict
    mcq: PairedDifference | None = None
    mcq_verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """Several trainings of one recipe: each by itself, and what they say of the recipe."""

    runs: tuple[SeedOutcome, ...]
    nll: CrossedDifference | None
    mcq: CrossedDifference | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report says; ``report.json`` holds it, the renderers word it.

    ``chance`` is the accuracy of guessing, by set; ``cautions`` are what a reader should keep in
    mind. ``leaks`` are training rows left out because an
    evaluation set holds them, ``withheld`` questions left out because they were trained on. With
    ``seeds`` the verdicts on test loss and right answers are about the recipe; all else is about
    the adapter that was kept.
    """

    verdict: Verdicts
    before: Summary
    after: Summary
    paired: Comparisons
    detectable: Detectable
    needed_rows: NeededRows
    better_rows: tuple[ChangedRow, ...]
    worse_rows: tuple[ChangedRow, ...]
    fixed_question: FixedQuestion | None
    truncated: Truncated
    chance: Mapping[str, float]
    differences: tuple[RowLoss, ...]
    config: RunConfig
    cautions: tuple[Message, ...] = ()
    leaks: tuple[Overlap, ...] = ()
    withheld: tuple[Overlap, ...] = ()
    changed_questions: ChangedQuestions = ChangedQuestions()
    lost_abilities: tuple[LostAbility, ...] = ()
    letter_bias: LetterBias | None = None
    lm_eval_agreement: Mapping[str, Agreement] = field(default_factory=dict[str, Agreement])
    facts: Facts = Facts()
    figures: tuple[Figure, ...] = ()
    seeds: SeedComparison | None = None
    not_medical_advice: str = field(default_factory=partial(say, "research_output", "en"))
    schema_version: int = SCHEMA_VERSION
