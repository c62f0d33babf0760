"""The report as records, and its one reader and writer: ``report.json``.

Every record is frozen. A field that ``report.json`` leaves out when it does not apply is None here.
Reports of earlier versions, without ``schema_version``, are brought up to date when read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

from medcot.config.schema import RunConfig
from medcot.data.contamination import Overlap
from medcot.errors import InputError, one_line
from medcot.evaluation.judge import JudgeResult
from medcot.evaluation.rubric import ClaimFinding
from medcot.evaluation.suite import Summary
from medcot.records import Dropped
from medcot.stats.paired import PairedDifference, Verdict

SCHEMA_VERSION = 1
"""Version of ``report.json``. Reports without one were written before versions existed."""

NOT_MEDICAL_ADVICE = (
    "Research output, not medical advice: the answers below come from a language model and may be"
    " wrong or harmful."
)

Measure = Literal[
    "nll",
    "mcq",
    "closed_rate",
    "finished_rate",
    "repetition_rate",
    "language_match_rate",
    "answer_tokens",
    "thought_tokens",
]
MEASURES: tuple[Measure, ...] = (
    "nll",
    "mcq",
    "closed_rate",
    "finished_rate",
    "repetition_rate",
    "language_match_rate",
    "answer_tokens",
    "thought_tokens",
)
"""What is compared, in the order of a report's table."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What may be said of the test loss, of all questions together, and of each set.

    ``sentence`` is English. ``mcq`` is None if no question was asked.
    """

    nll: Verdict
    mcq: Verdict | None = None
    mcq_sets: Mapping[str, Verdict] | None = None
    sentence: str = ""


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
    """The comparison of right answers: all questions together, and each set corrected for number.

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
    mcq: ChoiceEndpoint | None = None

    def of(self, measure: Measure) -> PairedDifference | None:
        """Return the comparison of ``measure``; None without a row to compare."""
        found = cast("PairedDifference | None", getattr(self, measure))
        return found if found and found.n else None

    def endpoints(self) -> dict[Literal["nll", "mcq"], Endpoint]:
        """Return the comparisons that have a verdict and rows to carry it."""
        found: dict[Literal["nll", "mcq"], Endpoint | None] = {"nll": self.nll, "mcq": self.mcq}
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
    """The smallest detectable difference of each comparison that has a verdict."""

    nll: float | None = None
    mcq: float | None = None


@dataclass(frozen=True, slots=True)
class NeededRows:
    """The rows that would show the difference seen, for each comparison that has a verdict."""

    nll: int | None = None
    mcq: int | None = None


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
class Facts:
    """What a run knows besides its scores. Two runs with the same seed have the same facts."""

    dataset: DatasetFacts | None = None
    rows: int | None = None
    dropped: tuple[Dropped, ...] | None = None
    steps: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    judge: JudgeResult | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a report says; ``report.json`` holds it, the renderers word it.

    ``chance`` is the accuracy of guessing, by set. ``leaks`` are training rows left out because an
    evaluation set holds them, ``withheld`` questions left out because they were trained on.
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
    leaks: tuple[Overlap, ...] = ()
    withheld: tuple[Overlap, ...] = ()
    changed_questions: ChangedQuestions = ChangedQuestions()
    lm_eval_agreement: Mapping[str, Agreement] = field(default_factory=dict[str, Agreement])
    facts: Facts = Facts()
    figures: tuple[Figure, ...] = ()
    not_medical_advice: str = NOT_MEDICAL_ADVICE
    schema_version: int = SCHEMA_VERSION


_ORDER = (
    "schema_version",
    "not_medical_advice",
    "verdict",
    "before",
    "after",
    "paired",
    "detectable",
    "needed_rows",
    "better_rows",
    "worse_rows",
    "changed_questions",
    "fixed_question",
    "lm_eval_agreement",
    "truncated",
    "leaks",
    "withheld",
    "chance",
    "differences",
    "config",
    "facts",
    "figures",
)


def report_to_json(report: Report) -> dict[str, Any]:
    """Convert a report to the object that ``report.json`` holds."""
    found: dict[str, Any] = _adapter().dump_python(report, mode="json")
    if report.paired.mcq is None:
        for part in ("verdict", "before", "after", "paired", "detectable", "needed_rows"):
            del found[part]["mcq"]
        del found["verdict"]["mcq_sets"]
    if report.paired.nll is None:
        for part in ("detectable", "needed_rows"):
            del found[part]["nll"]
    found["facts"] = {name: one for name, one in found["facts"].items() if one is not None}
    if not report.figures:
        del found["figures"]
    return {name: found[name] for name in _ORDER if name in found}


def report_from_json(found: Mapping[str, Any], where: str = "report.json") -> Report:
    """Read the object that ``report.json`` holds, of this version or an earlier one.

    Raises:
        InputError: it lacks a field, has one of a wrong type, or is of a later version.
    """
    from pydantic import ValidationError

    version = found.get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        needs = f"expected {SCHEMA_VERSION} or lower: update medcot, which wrote it"
        raise InputError(where, f"found schema_version {version}", needs)
    try:
        return _adapter().validate_python(_upgrade(found))
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(map(str, first["loc"]))
        raise InputError(
            where,
            f"{field_name}: {one_line(first['msg'])}",
            "expected a report as medcot writes it",
        ) from None


def _upgrade(found: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a report without ``schema_version`` to the current version."""
    paired = dict(found.get("paired", {}))
    if "mcq" in paired:
        # A comparison without rows once held nothing but their number.
        paired["mcq"] = {"difference": 0.0, "low": None, "high": None, "p_value": 1.0} | paired[
            "mcq"
        ]
    return {**found, "paired": paired, "schema_version": SCHEMA_VERSION}


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)
