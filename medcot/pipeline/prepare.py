"""Prepares a run up to the loading of the model: data, split, contamination, tokens, plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.config.schema import RunConfig
from medcot.data.case_list import CaseSubset, list_case_ids, select_cases
from medcot.data.contamination import Overlap
from medcot.data.dataset import (
    QuestionSet,
    load_dataset,
    load_fixed_question,
    load_questions,
    settle_thought,
    split_cases,
)
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.hub import is_out_of_reach
from medcot.data.selection import Selection, explain_nothing_left, select_training_rows
from medcot.data.thoughts import CHANGED, change_rows
from medcot.data.tokenization import TokenizedRow, shared_prefix_length
from medcot.data.tokenized import list_row_ids, list_row_lengths
from medcot.distributed import comm
from medcot.engines import loading as models
from medcot.errors import InputError
from medcot.evaluation.decontaminate import collect_texts, decontaminate_suite
from medcot.evaluation.interface import EvaluationSuite
from medcot.evaluation.judge import check_judge
from medcot.evaluation.suite import make_suite
from medcot.hardware.machine import Machine, detect_machine
from medcot.listener import Listener
from medcot.network import prepare_network
from medcot.pipeline.disk_space import require_space
from medcot.pipeline.fingerprints import check_fingerprints
from medcot.pipeline.run_log import keep_fallbacks
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.planning.typical_rows import typical_lengths
from medcot.records import Case, Dataset, Dropped, Split
from medcot.runs.directory import RunDirectory
from medcot.runs.environment import describe_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before the model is loaded."""

    config: RunConfig
    directory: RunDirectory
    plan: Plan
    dataset: Dataset
    split: Split
    rows: Sequence[TokenizedRow]
    suite: EvaluationSuite
    dropped: tuple[Dropped, ...]
    overlaps: tuple[Overlap, ...]
    withheld: tuple[Overlap, ...] = ()
    validation: Sequence[TokenizedRow] = ()
    kept_note: str = ""
    question_notes: tuple[str, ...] = ()


def prepare(
    config: RunConfig, directory: RunDirectory, listener: Listener, *, resume: bool = False
) -> Prepared:
    """Read, split and tokenize the data, plan the run, and write the decisions down.

    Raises:
        InputError: The config, the data or the directory do not allow this run.
    """
    prepare_network()
    check_judge(config)
    machine = detect_machine()
    dataset = load_dataset(config)
    config = settle_thought(config, dataset)
    models.prepare_engine(config, machine)
    tokenizer = models.load_tokenizer(config)
    prepared = _decide(config, directory, machine, dataset, tokenizer, _trained(directory))
    if config.judge_criteria:
        from medcot.evaluation.grading import require_criteria

        require_criteria(config.judge_criteria, prepared.suite)
    if not directory.exists():
        require_space(directory, config, prepared.plan)
        directory.create(config, lock=comm.is_main())
    elif not resume:
        raise InputError(
            f"--out {directory.path}", "it already holds a run", "use another folder or --resume"
        )
    _require_same_data(directory, dataset)
    template = str(getattr(tokenizer, "chat_template", None) or "")
    check_fingerprints(directory, config, prepared.suite, template)
    _write_decisions(prepared, machine)
    for line in _announcements(prepared):
        logger.info("%s", line)
        listener.say(line)
    return prepared


def plan_only(config: RunConfig, machine: Machine) -> Plan:
    """Return the plan of ``config`` on ``machine``, from the real rows. Nothing is written.

    Without a network, rows of typical length are assumed, and a warning says so.
    """
    try:
        dataset = load_dataset(config)
        config = settle_thought(config, dataset)
        tokenizer = _counting_tokenizer(config)
    except InputError as error:
        if not is_out_of_reach(error):
            raise
        return _plan_for_typical_rows(config, machine)
    return _decide(config, RunDirectory("."), machine, dataset, tokenizer).plan


def _plan_for_typical_rows(config: RunConfig, machine: Machine) -> Plan:
    mean, longest = typical_lengths(config)
    plan = make_plan(config, machine, find_model_spec(config), config.samples, mean, longest)
    values = {"dataset": config.dataset, "mean": round(mean), "longest": longest}
    return replace(plan, warnings=(Message("warning_lengths_assumed", values), *plan.warnings))


def _counting_tokenizer(config: RunConfig) -> Any:
    """Return a tokenizer for counting, where possible without the seconds transformers takes."""
    folder = models.locate(config.model, config.model_revision).source
    if (Path(folder) / "tokenizer.json").exists() and (
        Path(folder) / "tokenizer_config.json"
    ).exists():
        return load_fast_tokenizer(Path(folder))
    return models.load_tokenizer(config)


def _decide(
    config: RunConfig,
    directory: RunDirectory,
    machine: Machine,
    dataset: Dataset,
    tokenizer: Any,
    trained: frozenset[str] = frozenset(),
) -> Prepared:
    # All training rows, in order: those left out below are replaced by the ones that follow.
    split = split_cases(dataset.cases, config.model_copy(update={"samples": len(dataset.cases)}))
    at = {row_id: position for position, row_id in enumerate(list_case_ids(dataset.cases))}
    test_cases = [dataset.cases[at[row_id]] for row_id in split.test]
    if not config.thinks:
        test_cases = [replace(case, thought="") for case in test_cases]
    sets = {name: load_questions(name, config.language) for name in config.mcq}
    suite, withheld = _suite(config, sets, test_cases, select_cases(dataset.cases, trained))
    limited = config.model_copy(update={"max_length": _longest_row(config)})
    selection = select_training_rows(
        CaseSubset(dataset.cases, (at[row_id] for row_id in split.train)),
        dataset.fingerprint,
        collect_texts(suite),
        limited,
        tokenizer,
    )
    chosen = _cases_of(selection, dataset.cases, at)
    if config.thought in CHANGED:
        selection = change_rows(selection, chosen, chosen, limited, tokenizer)
    rows = selection.rows
    validated = _select_validation(
        CaseSubset(dataset.cases, (at[row_id] for row_id in split.validation)),
        dataset.fingerprint, suite, limited, tokenizer,
    )  # fmt: skip
    if config.thought in CHANGED:
        cases = _cases_of(validated, dataset.cases, at)
        validated = change_rows(validated, cases, chosen, limited, tokenizer)
    _require_embeddings(config, tokenizer)
    if not rows:
        raise explain_nothing_left(limited, selection)
    return Prepared(
        config=config,
        directory=directory,
        plan=_plan_for(config, machine, rows),
        dataset=dataset,
        split=split,
        rows=rows,
        suite=suite,
        dropped=(*dataset.dropped, *selection.dropped),
        overlaps=selection.overlaps,
        withheld=withheld,
        validation=validated.rows,
        kept_note=selection.note,
        question_notes=tuple(found.note for found in sets.values() if found.note),
    )


def _cases_of(selection: Selection, cases: Sequence[Case], at: Mapping[str, int]) -> CaseSubset:
    return CaseSubset(cases, (at[row_id] for row_id in list_row_ids(selection.rows)))


def _select_validation(
    cases: CaseSubset, fingerprint: str, suite: EvaluationSuite, config: RunConfig, tokenizer: Any
) -> Selection:
    """Select the rows to score while training; like training rows, none is in an evaluation set.

    Raises:
        InputError: There is none, and ``config.patience`` needs some.
    """
    if not len(cases) or not config.validation_samples:
        found = Selection((), (), ())
    else:
        wanted = config.model_copy(update={"samples": config.validation_samples})
        texts = collect_texts(suite)
        found = select_training_rows(cases, fingerprint, texts, wanted, tokenizer)
    if config.patience and not len(found.rows):
        got = f"--dataset {config.dataset} has no validation rows, or --validation-samples is 0"
        raise InputError(f"--patience {config.patience}", got, "use more rows, or no --patience")
    return found


def _longest_row(config: RunConfig) -> int:
    """Return the most tokens of a row: ``--max-length``, or less where the model takes less."""
    context = find_model_spec(config).context
    return min(config.max_length, context) if context else config.max_length


def _require_embeddings(config: RunConfig, tokenizer: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings."""
    tokens, embeddings = len(tokenizer), find_model_spec(config).vocab
    if tokens > embeddings:
        raise InputError(
            f"--model {config.model}",
            f"its tokenizer has {tokens:,} tokens, the model {embeddings:,} embeddings",
            "use the tokenizer that belongs to the model",
        )


def _suite(
    config: RunConfig,
    sets: Mapping[str, QuestionSet],
    test_cases: Sequence[Case],
    trained: Sequence[Case],
) -> tuple[EvaluationSuite, tuple[Overlap, ...]]:
    """Return what is asked before and after, and the questions withheld as trained on."""
    questions = {name: found.questions for name, found in sets.items()}
    # One of several seeds has this field, and answers nothing.
    unasked = config.choice_seed is not None and not config.generate_samples
    fixed = None if unasked else load_fixed_question(config.language)
    return decontaminate_suite(make_suite(config, test_cases, fixed, questions), trained)


def _plan_for(config: RunConfig, machine: Machine, rows: Sequence[TokenizedRow]) -> Plan:
    lengths = list_row_lengths(rows)
    return make_plan(
        config, machine, find_model_spec(config), len(rows), sum(lengths) / len(rows), max(lengths),
        shared_prefix_length(rows),
    )  # fmt: skip


def _trained(directory: RunDirectory) -> frozenset[str]:
    """Return the ids of the rows that the run was trained on; none before training has ended."""
    if not directory.has("training.json"):
        return frozenset()
    return frozenset(directory.read_json("split.json")["train"])


def _require_same_data(directory: RunDirectory, dataset: Dataset) -> None:
    if not directory.has("environment.json"):
        return
    if directory.read_json("environment.json")["dataset"]["fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"--dataset {dataset.name}",
            "the data changed since the run began",
            "restore the same rows, or use a new --out",
        )


def _write_decisions(prepared: Prepared, machine: Machine) -> None:
    directory, dataset = prepared.directory, prepared.dataset
    kept_facts: dict[str, Any] = {"fallbacks": [], "working_directory": str(Path.cwd())}
    if directory.has("environment.json"):
        earlier = directory.read_json("environment.json")
        kept_facts |= {name: earlier[name] for name in kept_facts if name in earlier}
    kept = tuple(list_row_ids(prepared.rows))
    directory.write_json("split.json", replace(prepared.split, train=kept))
    directory.write_json("plan.json", prepared.plan.to_json())
    config = prepared.config
    commit = models.locate(config.model, config.model_revision).recorded or ""
    shown = directory.as_recorded(config)
    dataset = replace(dataset, name=shown.dataset)
    environment = describe_environment(shown, dataset, machine, commit)
    directory.write_json("environment.json", environment | kept_facts)
    keep_fallbacks(directory)
    directory.set_stage("planned")


def _announcements(prepared: Prepared) -> Iterator[str | Message]:
    config, dropped, overlaps = prepared.config, prepared.dropped, prepared.overlaps
    yield (
        f"{len(prepared.rows)} training rows and {len(prepared.suite.cases)} test rows"
        f" of {prepared.dataset.name}; {prepared.plan.trainable_parameters:,} trainable parameters"
    )
    yield from prepared.dataset.notes
    if not len(prepared.validation) and config.validation_samples:
        yield Message("no_validation_rows")
    if len(prepared.rows) < config.samples:
        yield f"{config.samples} training rows were asked for; {len(prepared.rows)} are there."
    if (longest := _longest_row(config)) < config.max_length:
        yield (
            f"The model takes {longest} tokens at most: longer rows are left out, whatever"
            " --max-length says."
        )
    if dropped:
        yield f"{len(dropped)} rows left out, the first: {dropped[0].id}, {dropped[0].reason}"
    if overlaps:
        left_out = {overlap.case_id for overlap in overlaps}
        yield f"{len(left_out)} training rows left out because an evaluation set has them too."
    yield from prepared.question_notes
    if prepared.withheld:
        yield f"{len(prepared.withheld)} questions left out because they were trained on."
    if prepared.kept_note:
        yield prepared.kept_note
    yield from prepared.plan.warnings
