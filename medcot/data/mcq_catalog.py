"""Catalog of medical multiple-choice benchmarks on the hub, with converters for their rows."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from medcot.data.readers import Values
from medcot.data.sources import is_data_file, stem_of
from medcot.records import Language

ANSWER = "answer_idx"
"""The field of the local schema that holds the right option's letter."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A question set on the hub: its place, and the converter to the schema of a local file.

    ``convert`` returns None for rows that by the set's design have no single answer.
    """

    repository: str
    configs: tuple[str | None, ...]
    split: str
    language: Language
    convert: Callable[[Values], Values | None]


def _letters(texts: Iterable[Any]) -> dict[str, Any]:
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def _keyed(options: Any) -> dict[str, Any]:
    """Convert ``[{key: A, value: text}, ...]`` to ``{A: text, ...}``."""
    return {option["key"]: option["value"] for option in options}


def _from_medqa(row: Values) -> Values:
    names = ("question", "options", ANSWER, "answer")
    return {name: row.get(name) for name in names}


def _from_medmcqa(row: Values) -> Values | None:
    """Convert a row; ``cop`` counts the options from 0 and is -1 where no answer is given."""
    options = _letters(row.get(name) for name in ("opa", "opb", "opc", "opd"))
    if row["cop"] not in range(4):
        return None
    named = {"id": row["id"], "question": row["question"], "options": options}
    return named | {ANSWER: string.ascii_uppercase[row["cop"]]}


def _from_pubmedqa(row: Values) -> Values:
    options = _letters(("yes", "no", "maybe"))
    answer = next((k for k, v in options.items() if v == row["final_decision"]), None)
    return {
        "id": str(row["pubid"]),
        "question": row["question"],
        "context": "\n".join(row["context"]["contexts"]),
        "options": options,
        ANSWER: answer,
    }


def _from_mmlu(row: Values) -> Values:
    options = _letters(row["choices"])
    answer = string.ascii_uppercase[row["answer"]]
    return {"question": row["question"], "options": options, ANSWER: answer}


def _from_mcmle(row: Values) -> Values:
    return {"question": row["question"], "options": _keyed(row["options"]), ANSWER: row[ANSWER]}


def _from_cmexam(row: Values) -> Values | None:
    """Convert a row; questions with several right answers are a different task, left out."""
    if len(row["Answer"] or "") != 1:
        return None
    options = _keyed(row["Options"])
    return {"question": row["Question"], "options": options, ANSWER: row["Answer"]}


_MMLU_MEDICAL = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)

BENCHMARKS: dict[str, Benchmark] = {
    "medqa": Benchmark("GBaker/MedQA-USMLE-4-options", (None,), "test", "en", _from_medqa),
    "medmcqa": Benchmark("openlifescienceai/medmcqa", (None,), "validation", "en", _from_medmcqa),
    "pubmedqa": Benchmark("qiaojin/PubMedQA", ("pqa_labeled",), "train", "en", _from_pubmedqa),
    "mmlu-medical": Benchmark("cais/mmlu", _MMLU_MEDICAL, "test", "en", _from_mmlu),
    "medqa-mcmle": Benchmark(
        "fzkuji/MedQA", ("med_qa_zh_4options_source",), "test", "zh", _from_mcmle
    ),
    "cmexam": Benchmark("fzkuji/CMExam", (None,), "test", "zh", _from_cmexam),
}
"""Question sets by their short names. PubMedQA's 1,000 expert-labelled rows have one split."""


def label_sets(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a short name for each set, used in rows and reports: a file's is its stem.

    So a report names no folder of the machine it was made on. Where a stem is ``taken``, or an
    earlier set has it, the whole name is used: a set added later changes no other's label.
    """
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        stem = stem_of(name) if is_data_file(name) else name
        reserved = {*taken, *labels.values(), *BENCHMARKS, "sample"}
        labels[name] = name if stem in reserved else stem
    return labels
