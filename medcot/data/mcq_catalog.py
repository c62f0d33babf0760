"""Known multiple-choice sets on the hub, and how their rows become those of a local file."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from medcot.data.readers import READERS, Values
from medcot.records import Language

ANSWER = "answer_idx"
"""The field of the local schema that holds the right option's letter."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A question set on the hub: where it is, and how its rows become those of a local file.

    ``convert`` gives None for rows that are no single-answer question by the set's own design.
    """

    repository: str
    configs: tuple[str | None, ...]
    split: str
    language: Language
    convert: Callable[[Values], Values | None]


def _letters(texts: Iterable[Any]) -> dict[str, Any]:
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def _keyed(options: Any) -> dict[str, Any]:
    """``[{key: A, value: text}, ...]`` as ``{A: text, ...}``."""
    return {option["key"]: option["value"] for option in options}


def _from_medqa(row: Values) -> Values:
    names = ("question", "options", ANSWER, "answer")
    return {name: row.get(name) for name in names}


def _from_medmcqa(row: Values) -> Values | None:
    """``cop`` counts the options from 0 and is -1 where the answer is withheld."""
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
    """Questions with several right answers are another task, and left out."""
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
    """A short name for each set, by which rows and reports know it: a file's is its stem.

    A report then names no folder of the machine it was made on. A stem that is ``taken`` already,
    by an earlier name too, is kept apart by the whole name: a set added later changes no other's.
    """
    labels: dict[str, str] = {}
    for name in dict.fromkeys(names):
        path = PurePath(name)
        stem = path.stem if path.suffix.lower() in READERS else name
        reserved = {*taken, *labels.values(), *BENCHMARKS, "sample"}
        labels[name] = name if stem in reserved else stem
    return labels
