"""Every loader and parser as a function of bytes: it returns, or raises an error for the user."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from medcot.config.presets import make_config
from medcot.config.resolve import read_config_file, read_environment
from medcot.config.schema import build_config
from medcot.data.chat_templates import render_user_turn
from medcot.data.dataset import load_dataset
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.file_signatures import find_wrong_file
from medcot.data.inspection import describe_inspection, inspect_dataset
from medcot.data.mcq import read_question_set
from medcot.data.patterns import check_pattern
from medcot.data.prompts import parse
from medcot.data.sources import kind_of
from medcot.engines.model_files import check_model_files
from medcot.errors import InputError, RunFailed
from medcot.evaluation.answer_extraction import extract_letter
from medcot.evaluation.interface import rows_from_json
from medcot.evaluation.rubric import check_claims
from medcot.kaggle.session.manifest import read_manifest
from medcot.planning.model_specs import find_model_spec
from medcot.records import Claim
from medcot.reporting.storage import read_report
from medcot.runs.directory import RunDirectory
from medcot.runs.history import read_run
from medcot.terminal import escape_controls, show_line

Target = Callable[[bytes], None]

TOKENIZER = json.dumps(
    {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
)
OPTIONS = {"A": "Iron", "B": "Zinc", "C": "E. coli", "D": "Vitamin C"}
CONFIG = make_config("demo").model_dump_json().encode()


def on_file(suffix: str, use: Callable[[Path], object]) -> Target:
    """Return a target that writes its bytes to a file first."""

    def target(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"input{suffix}"
            path.write_bytes(content)
            use(path)

    return target


def in_run(name: str) -> Target:
    """Return a target whose bytes are a file of a run."""

    def target(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            (path / "config.json").write_bytes(CONFIG)
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)
            use_run(path)

    return target


def use_run(path: Path) -> None:
    directory = RunDirectory(path)
    read_run(path)
    read_report(path)
    for phase in ("before", "after"):
        file = directory.evaluation(phase)
        rows_from_json(directory.rows(file), where=str(file))


def use_cases(path: Path) -> None:
    config = make_config("demo", {"dataset": str(path)})
    for line in describe_inspection(inspect_dataset(config)):
        assert "\n" not in show_line(line)
    load_dataset(config)


def use_turns(path: Path) -> None:
    load_dataset(make_config("demo", {"dataset": str(path), "train_turns": "all"}))


def use_saved(path: Path) -> None:
    path.rename(path.with_name("state.json"))
    load_dataset(make_config("demo", {"dataset": str(path.parent)}))


def use_columns(content: bytes) -> None:
    build_config({"columns": content.decode("utf-8", "replace")})


def use_questions(path: Path) -> None:
    read_question_set(str(path), "en")


def use_model(path: Path) -> None:
    check_model_files(path.parent)
    find_wrong_file(path)
    path.rename(path.with_name("config.json"))
    find_model_spec(make_config("demo", {"model": str(path.parent)}))


def use_weights(path: Path) -> None:
    check_model_files(path.parent)


def use_tokenizer(path: Path) -> None:
    (path.parent / "tokenizer.json").write_text(TOKENIZER)
    path.rename(path.with_name("tokenizer_config.json"))
    load_fast_tokenizer(path.parent)


def use_pattern(content: bytes) -> None:
    pattern, _, answer = content.decode("utf-8", "replace").partition("\n")
    try:
        check_pattern(pattern)
    except ValueError:
        return
    check_claims(answer, [Claim("It is so.", (pattern,), (pattern,))])


def use_template(content: bytes) -> None:
    render_user_turn(content.decode("utf-8", "replace"), "Why?", {"bos_token": "<s>"})


def use_answer(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")
    parse(text)
    for language in ("en", "zh"):
        assert extract_letter(text, OPTIONS, language) in (None, *OPTIONS)


def use_environment(content: bytes) -> None:
    name, _, value = content.decode("utf-8", "replace").partition("=")
    read_environment({f"MEDCOT_{name}": value})


def use_name(content: bytes) -> None:
    name = content.decode("utf-8", "surrogateescape")
    escape_controls(name).encode()
    kind_of(name)


def use_manifest(content: bytes) -> None:
    try:
        read_manifest(content.decode("utf-8", "replace"))
    except ValueError:
        return


TARGETS: dict[str, Target] = {
    "jsonl": on_file(".jsonl", use_cases),
    "json": on_file(".json", use_cases),
    "csv": on_file(".csv", use_cases),
    "parquet": on_file(".parquet", use_cases),
    "chat": on_file(".jsonl", use_turns),
    "gzip": on_file(".jsonl.gz", use_cases),
    "zstd": on_file(".csv.zst", use_cases),
    "arrow": on_file(".arrow", use_cases),
    "tsv": on_file(".tsv", use_cases),
    "saved": on_file(".json", use_saved),
    "columns": use_columns,
    "questions": on_file(".jsonl", use_questions),
    "toml": on_file(".toml", read_config_file),
    "config": on_file(".json", read_config_file),
    "environment": use_environment,
    "name": use_name,
    "pattern": use_pattern,
    "template": use_template,
    "answer": use_answer,
    "model": on_file(".json", use_model),
    "tokenizer": on_file(".json", use_tokenizer),
    "weights": on_file(".safetensors", use_weights),
    "manifest": use_manifest,
    **{
        f"run/{name}": in_run(name)
        for name in (
            "config.json", "status.json", "plan.json", "environment.json", "split.json",
            "training.json", "report.json", "error.json", "events.jsonl",
            "evaluation/before.jsonl",
        )
    },
}  # fmt: skip


def run_target(name: str, content: bytes) -> str:
    """Return "" or the refusal; anything that is no error for the user is raised."""
    try:
        TARGETS[name](content)
    except (InputError, RunFailed) as error:
        line = show_line(error)
        assert "\n" not in line
        json.dumps(line).encode()
        return line
    return ""
