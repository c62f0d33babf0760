"""What is served: a run's tuned model or an export of it, with the prompt that the run measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from medcot.config.schema import RunConfig
from medcot.data.fast_tokenizer import FastTokenizer, load_fast_tokenizer
from medcot.data.prompts import CLOSINGS
from medcot.data.prompts import ask as ask_prompt
from medcot.data.tokenization import chat_template, encode_text
from medcot.errors import InputError
from medcot.exporting.formats import QUANTIZATIONS
from medcot.exporting.gguf import file_name
from medcot.exporting.proof_file import PROOF, ExportRecord, read_record
from medcot.exporting.run_model import RunModel
from medcot.planning.model_specs import find_model_spec
from medcot.records import Turn
from medcot.runs.directory import RunDirectory
from medcot.serving.chat_request import Refusal

Kind = Literal["run", "adapter", "merged", "gguf"]

USUAL_CONTEXT = 8192
"""Tokens of prompt and answer, unless the run's rows are longer. Some models take 131,072, and a
server would set many gigabytes of memory aside for that."""


@dataclass(frozen=True)
class Target:
    """The model to serve. ``path`` is the run, the export's folder or the GGUF file."""

    kind: Kind
    path: Path
    directory: RunDirectory
    config: RunConfig

    @property
    def name(self) -> str:
        """Return the name by which clients ask for the model: that of the run."""
        return self.directory.path.resolve().name

    @property
    def adapter(self) -> Path:
        """Return the folder of the adapter, for a run or an export of the adapter."""
        return self.path if self.kind == "adapter" else self.directory.adapter

    @cached_property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
        config = self.config
        wanted = max(USUAL_CONTEXT, config.max_length + config.max_new_tokens)
        return min(find_model_spec(config).context or wanted, wanted)

    @cached_property
    def tokenizer(self) -> FastTokenizer:
        """The tokenizer that the run trained and scored with."""
        return load_fast_tokenizer(self.directory.adapter)

    def write_prompt(self, turns: Sequence[Turn]) -> tuple[str, bool]:
        """Return the prompt for a conversation, and whether the run measured such prompts.

        It measured single questions. A conversation or a system prompt is rendered by the model's
        own chat template, with the run's instruction around the last question.

        Raises:
            Refusal: The run's prompt has no place for more than a question.
        """
        config, chat = self.config, chat_template(self.tokenizer)
        *earlier, last = turns
        if earlier and (config.style == "tutorial" or chat is None):
            message = (
                "The prompt of this run holds one question: send one user message, without a"
                " system prompt and without earlier turns."
            )
            raise Refusal(400, message, code="unsupported_value", parameter="messages")
        try:
            prompt = ask_prompt(
                last.content,
                config.style,
                config.language,
                chat,
                thinks=config.thinks,
                turns=[_without_thought(turn) for turn in earlier],
            )
            return prompt, not earlier
        except InputError as error:
            message = f"The model's chat template refuses these turns: {error}"
            raise Refusal(400, message, code="invalid_value", parameter="messages") from None

    def encode(self, prompt: str, answer: int) -> list[int]:
        """Return the tokens of a prompt that leaves room for ``answer`` tokens.

        Raises:
            Refusal: It does not.
        """
        ids = encode_text(self.tokenizer, prompt)
        if len(ids) + answer > self.context:
            message = (
                f"The prompt has {len(ids):,} tokens and the answer may have {answer:,}; the model"
                f" takes {self.context:,} together."
            )
            raise Refusal(400, message, code="context_length_exceeded", parameter="messages")
        return ids


def _without_thought(turn: Turn) -> Turn:
    """Leave out a thought that a client sends back: chat templates keep none of earlier turns."""
    if turn.role != "assistant":
        return turn
    *_, answer = re.split(CLOSINGS, turn.content)
    return turn if answer == turn.content else Turn(turn.role, answer.strip())


def open_run(directory: RunDirectory) -> Target:
    """Return the tuned model of a run.

    Raises:
        InputError: The run has no adapter.
    """
    if not (directory.adapter / "adapter_config.json").exists():
        got = "the run has no adapter"
        raise InputError(f"--run {directory.path}", got, "train it first: medcot train")
    return Target("run", directory.path, directory, directory.config())


def open_export(folder: Path, directory: RunDirectory | None) -> Target:
    """Return an export whose files are those that were proved.

    Args:
        directory: The run that it was made from; None if it lies in that run's ``export/``.

    Raises:
        InputError: It is no export, is broken, has changed, or its run is not known.
    """
    where = f"--export {folder}"
    record = read_record(folder)
    if record is None:
        raise InputError(where, f"no readable {PROOF} in it", "make it: medcot export")
    if record.outcome == "broken":
        got = f"this export is broken: {record.worst.sentence}"
        raise InputError(where, got, "serve another format, or export it again")
    if record.format == "hub":
        raise InputError(where, "the model is on the hub", "serve the format that was uploaded")
    if not record.is_intact(folder):
        got = "its files are not those that were proved"
        raise InputError(where, got, "export it again: medcot export")
    directory = directory or _run_of(folder, where)
    _check_source(record, directory, where)
    kind: Kind = "gguf" if record.format in ("gguf", "ollama") else record.format  # type: ignore[assignment]
    path = _best_file(folder, record) if kind == "gguf" else folder
    return Target(kind, path, directory, directory.config())


def _run_of(folder: Path, where: str) -> RunDirectory:
    directory = RunDirectory(folder.resolve().parent.parent)
    if not directory.exists():
        got = "it does not lie in its run, whose prompt it needs"
        raise InputError(where, got, "add --run DIR")
    return directory


def _check_source(record: ExportRecord, directory: RunDirectory, where: str) -> None:
    """Refuse an export of another adapter than the run has now."""
    made_from = record.made_from.get("adapter")
    now = RunModel(directory, directory.config(), {}).adapter_digest
    if made_from != now:
        got = f"it was made from another adapter than that of {directory.path}"
        raise InputError(where, got, "export the run again, or name its run with --run")


def _best_file(folder: Path, record: ExportRecord) -> Path:
    """Return the most precise GGUF file of an export."""
    made = [folder / file_name(one) for one in QUANTIZATIONS if file_name(one) in record.files]
    if not made:
        raise InputError(f"--export {folder}", "no GGUF file in it", "export it again")
    return made[0]
