"""Exports a run: checks room, makes each format beside its place, proves it, moves it there."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from medcot.catalog import Message
from medcot.data.tokenization import chat_template
from medcot.errors import InputError, RunFailed
from medcot.exporting import checks, gguf, hub, make
from medcot.exporting.card import write_card
from medcot.exporting.converter import find_converter
from medcot.exporting.formats import QUANTIZATIONS, ROUNDING, TOLERANCES, Format, Quantization
from medcot.exporting.gguf_weights import check_gguf_weights
from medcot.exporting.measure import (
    LoadFailed,
    Measured,
    Progress,
    cancel_when,
    measure_adapter,
    measure_merged,
)
from medcot.exporting.proof_file import ExportRecord, Part, read_record, write_record
from medcot.exporting.proof_set import ProofSet, load_proof_set, prompt_around
from medcot.exporting.room import require_room
from medcot.exporting.run_model import RunModel
from medcot.exporting.verdict import Comparison, compare
from medcot.listener import Listener
from medcot.reporting.exports import read_exports
from medcot.reporting.figures import write_figures
from medcot.reporting.storage import report_from_json, report_to_json
from medcot.reporting.webpage import write_report_files
from medcot.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

SHOWN_FINDINGS = 5
"""Findings of a broken export that are said; its ``proof.json`` has all of them."""


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a run, and where.

    ``out`` is None for the run's own ``export/``. ``answers`` test rows are answered in full in
    the proof, besides the fixed question.
    """

    formats: tuple[Format, ...]
    quantizations: tuple[Quantization, ...] = ()
    out: Path | None = None
    prove: bool = True
    answers: int = 4
    repository: str = ""
    public: bool = False

    @property
    def uploaded(self) -> Format:
        """Return the format that goes to the hub: the merged model if it is asked for, too."""
        return "merged" if "merged" in self.formats else "adapter"

    @property
    def ollama_quantization(self) -> Quantization:
        """Return the one quantisation of an Ollama export: Q8_0 where it is among those given."""
        return "Q8_0" if "Q8_0" in self.quantizations else self.quantizations[0]


@dataclass
class Export:
    """One call of ``medcot export``: what its steps share, loaded when first needed."""

    model: RunModel
    options: ExportOptions
    listener: Listener
    _asked: list[ProofSet] = field(default_factory=list[ProofSet])

    @property
    def root(self) -> Path:
        """Return the folder that holds one folder for each format."""
        return self.options.out or self.model.directory.path / "export"

    def asked(self) -> ProofSet:
        """Return the proof set of the run."""
        if not self._asked:
            model = self.model
            self._asked.append(
                load_proof_set(
                    model.directory, model.tokenizer, model.end_ids, self.options.answers
                )
            )
        return self._asked[0]

    @property
    def prompt_around(self) -> tuple[str, str]:
        """Return the run's prompt before and after the question."""
        return prompt_around(self.model.config, chat_template(self.model.tokenizer))

    def progress(self) -> Progress:
        """Return what reports the rows of a proof and hears of a cancel."""
        return cancel_when(self.listener.should_stop, self.listener.progress)

    def decode(self, ids: Sequence[int]) -> str:
        """Turn the tokens of an answer into text, as the run does."""
        tokenizer = self.model.tokenizer
        silent = {tokenizer.bos_token_id, tokenizer.pad_token_id}
        kept = [one for one in ids if one not in silent]
        return tokenizer.decode(kept, skip_special_tokens=False)


def export_run(
    directory: RunDirectory, options: ExportOptions, listener: Listener | None = None
) -> list[ExportRecord]:
    """Make and prove every format of ``options`` that is not there yet; return their records.

    Raises:
        InputError: The run or the options do not allow it; nothing was made.
        RunFailed: An export is broken; what was made of it is kept as ``FORMAT.broken``.
        Cancelled: The listener asked to stop; whole formats are kept.
    """
    export = Export(RunModel.of(directory), options, listener or Listener())
    directory.lock.take()
    try:
        if "hub" in options.formats:
            hub.check_repository(options.repository)
        wanted = _with_uploaded(options)
        known = {name: _find_made(export, name) for name in wanted}
        missing: list[Format] = [name for name in wanted if known[name] is None]
        if missing:
            _get_ready(export, missing)
        records = [known[name] or _export_one(export, name) for name in wanted]
        if "hub" in options.formats:
            records.append(_upload(export))
    finally:
        _write_into_report(directory)
        directory.lock.release()
    return records


def _write_into_report(directory: RunDirectory) -> None:
    """Put what the proofs found into the run's report, if it has one."""
    if not directory.has("report.json"):
        return
    report = report_from_json(directory.read_json("report.json"))
    exports = read_exports(directory)
    if exports == report.facts.exports:
        return
    report = replace(report, facts=replace(report.facts, exports=exports))
    if not report.figures and (directory.path / "figures").is_dir():
        # Written before 0.3, when report.json did not list them.
        events = list(directory.rows(directory.events))
        report = replace(report, figures=write_figures(report, events, directory.path))
    directory.write_json("report.json", report_to_json(report))
    write_report_files(directory, report)


def _silence_progress_bars() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def _with_uploaded(options: ExportOptions) -> list[Format]:
    """Return the formats to make: with ``hub``, also the one that is uploaded."""
    wanted: list[Format] = [name for name in options.formats if name != "hub"]
    if "hub" in options.formats and options.uploaded not in wanted:
        wanted.insert(0, options.uploaded)
    return wanted


def _upload(export: Export) -> ExportRecord:
    """Upload an export that is made and proved, and keep a record of it in ``export/hub``."""
    options, source = export.options, export.root / export.options.uploaded
    export.listener.say(Message("export_uploading", {"repository": options.repository}))
    done = hub.upload(source, options.repository, public=options.public)
    proved = read_record(source)
    assert proved is not None
    values = {"address": done.address, "revision": done.revision}
    export.listener.say(Message("export_uploaded", values))
    made_from = {**proved.made_from, "uploaded": options.uploaded, **asdict(done)}
    record = ExportRecord("hub", made_from, {}, proved.parts)
    folder = export.root / "hub"
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, record)
    return record


def _find_made(export: Export, name: Format) -> ExportRecord | None:
    """Return the record of a format that needs nothing done, else None."""
    folder = export.root / name
    known = read_record(folder)
    if (
        known is None
        or (export.options.prove and not known.is_proved)
        or not known.is_made_from(describe_sources(export, name))
        or not known.is_intact(folder)
    ):
        return None
    export.listener.say(Message("export_there", {"folder": str(folder)}))
    return known


def _get_ready(export: Export, formats: Sequence[Format]) -> None:
    """Check what the formats need, and read what their proofs ask, before anything is made."""
    options = export.options
    require_room(export.model, export.root, formats, options.quantizations, prove=options.prove)
    if {"gguf", "ollama"} & set(formats):
        gguf.require_llama()
        find_converter()
    _silence_progress_bars()
    if options.prove:
        export.asked()


def _export_one(export: Export, name: Format) -> ExportRecord:
    """Make one format and prove it."""
    export.listener.say(Message("export_making", {"format": name}))
    if export.model.is_quantized and name != "adapter":
        export.listener.say(export.model.dequantized)
    with _beside(export.root, name) as temporary:
        _MAKERS[name](export, temporary)
        parts = _prove(export, name, temporary)
        record = ExportRecord.of(name, describe_sources(export, name), temporary, parts)
        write_record(temporary, record)
        write_card(export.model, temporary, record, name)
        _finish(export, temporary, export.root / name, record)
    return record


def _prove(export: Export, name: Format, folder: Path) -> tuple[Part, ...]:
    if not export.options.prove:
        return (Part(name, Comparison("unproved", Message("proof_unproved", {"format": name}))),)
    export.listener.say(Message("export_proving", {"format": name}))
    return _PROVERS[name](export, folder)


def prove_adapter(export: Export, folder: Path) -> tuple[Part, ...]:
    """Load the adapter by peft on its base and compare it with the run."""
    model, asked = export.model, export.asked()
    findings = [*checks.check_adapter(model, folder), *checks.check_tokenizer(model, folder, asked)]
    measured = _measured(lambda: measure_adapter(model, folder, asked, export.progress()), findings)
    found = compare("adapter", asked, measured, findings, ROUNDING, export.decode)
    return (Part("adapter", found),)


def prove_merged(export: Export, folder: Path) -> tuple[Part, ...]:
    """Load the merged model by transformers and compare it with the run."""
    model, asked = export.model, export.asked()
    findings = [*checks.check_config(model, folder), *checks.check_tokenizer(model, folder, asked)]
    measured = _measured(lambda: measure_merged(model, folder, asked, export.progress()), findings)
    if measured is not None:
        findings += checks.check_merged_weights(model, folder)
    found = compare("merged", asked, measured, findings, ROUNDING, export.decode)
    return (Part("merged", found),)


def _measured(measure: Callable[[], Measured], findings: list[Message]) -> Measured | None:
    """Measure an export; where it cannot be loaded, add that to ``findings`` and return None."""
    try:
        return measure()
    except LoadFailed as error:
        findings.insert(0, Message("proof_not_loaded", {"why": checks.shorten(str(error))}))
        return None


def make_gguf(
    export: Export, folder: Path, quantizations: Sequence[Quantization] | None = None
) -> None:
    """Convert the merged model to F16, and quantise that."""
    with _merged_model(export, folder) as merged:
        gguf.convert(merged, folder / gguf.file_name("F16"))
    for one in quantizations or export.options.quantizations:
        if one != "F16":
            gguf.quantize(folder / gguf.file_name("F16"), folder / gguf.file_name(one), one)
    if not export.options.prove:
        _drop_unasked(folder, quantizations or export.options.quantizations)


def make_ollama(export: Export, folder: Path) -> None:
    """Make one GGUF file with the Modelfile that ``ollama create`` reads."""
    chosen = export.options.ollama_quantization
    if (made := _made_gguf(export, chosen)) is not None:
        shutil.copyfile(made, folder / made.name)
    else:
        make_gguf(export, folder, (chosen,))
    gguf.make_modelfile(export.model, folder, chosen, export.prompt_around)


def _made_gguf(export: Export, quantization: Quantization) -> Path | None:
    """Return the GGUF file that is exported and proved already, None where there is none."""
    folder = export.root / "gguf"
    sources = describe_sources(export, "gguf") | {"quantizations": [quantization]}
    known = read_record(folder)
    if known is None or not (known.is_proved and known.is_made_from(sources)):
        return None
    return folder / gguf.file_name(quantization) if known.is_intact(folder) else None


@contextmanager
def _merged_model(export: Export, folder: Path) -> Iterator[Path]:
    """Yield the merged model that is exported already, or one made and checked for the while."""
    made = export.root / "merged"
    known = read_record(made)
    if (
        known is not None
        and known.is_proved
        and known.is_made_from(describe_sources(export, "merged"))
        and known.is_intact(made)
    ):
        yield made
        return
    temporary = folder / ".merged"
    temporary.mkdir()
    make.make_merged(export.model, temporary)
    if findings := list(checks.check_merged_weights(export.model, temporary)):
        # Should not happen: peft's own merge is wrong.
        raise RunFailed("export", findings[0], Message("needs_other_format"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prove_gguf(
    export: Export,
    folder: Path,
    quantizations: Sequence[Quantization] | None = None,
    name: Format = "gguf",
) -> tuple[Part, ...]:
    """Load each file by llama.cpp and compare it with the run.

    The F16 file is compared even where it is only a step on the way: what is wrong there is not
    the cost of a quantisation, however large that may be.
    """
    wanted = quantizations or export.options.quantizations
    parts: list[Part] = []
    for one in QUANTIZATIONS:
        if not (folder / gguf.file_name(one)).is_file():
            continue
        part = f"{name} {one}"
        parts.append(Part(part, _prove_file(export, folder / gguf.file_name(one), part, one)))
    _drop_unasked(folder, wanted)
    return tuple(parts)


def _prove_file(export: Export, file: Path, name: str, kind: Quantization) -> Comparison:
    asked, findings = export.asked(), list[Message]()
    measured: Measured | None = None
    try:
        measured, facts = gguf.measure_gguf(file, asked, export.progress())
        findings += gguf.check_gguf(export.model, facts, asked)
        # What is broken already need not be read once more. Rounding to fewer bits may take a small
        # adapter back to the base's own values: there the loss says what it cost.
        if kind == "F16" and not findings:
            findings += check_gguf_weights(export.model, file)
    except LoadFailed as error:
        findings.append(Message("proof_not_loaded", {"why": checks.shorten(str(error))}))
    return compare(name, asked, measured, findings, TOLERANCES[kind], export.decode)


def prove_ollama(export: Export, folder: Path) -> tuple[Part, ...]:
    """Prove the GGUF by llama.cpp, which Ollama runs, and read the Modelfile back."""
    parts = prove_gguf(export, folder, (export.options.ollama_quantization,), "ollama")
    checked = gguf.check_modelfile(export.model, folder, export.asked(), export.prompt_around)
    if findings := tuple(checked):
        sentence = Message("proof_broken", {"format": "Modelfile", "first": findings[0]})
        return (*parts, Part("Modelfile", Comparison("broken", sentence, findings)))
    return parts


def _drop_unasked(folder: Path, quantizations: Sequence[Quantization]) -> None:
    """Remove the F16 file where it was only a step on the way."""
    if "F16" not in quantizations:
        (folder / gguf.file_name("F16")).unlink(missing_ok=True)


_MAKERS: dict[Format, Callable[[Export, Path], None]] = {
    "adapter": lambda export, folder: make.make_adapter(export.model, folder),
    "merged": lambda export, folder: make.make_merged(export.model, folder),
    "gguf": make_gguf,
    "ollama": make_ollama,
}
_PROVERS: dict[Format, Callable[[Export, Path], tuple[Part, ...]]] = {
    "adapter": prove_adapter,
    "merged": prove_merged,
    "gguf": prove_gguf,
    "ollama": prove_ollama,
}


def describe_sources(export: Export, name: Format) -> dict[str, Any]:
    """Return what an export is made from: with the same sources it need not be made again."""
    model, options = export.model, export.options
    quantizations: dict[str, Sequence[Quantization]] = {
        "gguf": options.quantizations,
        "ollama": [options.ollama_quantization] if name == "ollama" else [],
    }
    return {
        "adapter": model.adapter_digest,
        "base": make.base_name(model),
        "base_revision": model.location.recorded or "",
        "base_precision": model.quantization,
        "quantizations": list(quantizations.get(name, ())),
    }


@contextmanager
def _beside(root: Path, name: Format) -> Iterator[Path]:
    """Yield a new folder beside the place of a format; what is left of earlier ones is removed."""
    temporary = root / f".making-{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        got = error.strerror or str(error)
        raise InputError(f"--out {root}", got, "use a writable folder") from None
    try:
        yield temporary
    except OSError as error:
        raise RunFailed(
            "export",
            Message("export_unwritten", {"folder": str(root), "why": error.strerror or str(error)}),
            Message("needs_space"),
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _finish(export: Export, temporary: Path, folder: Path, record: ExportRecord) -> None:
    """Move a made folder to its place, or aside where it is broken."""
    broken = folder.with_name(f"{folder.name}.broken")
    target = broken if record.outcome == "broken" else folder
    replace_folder(temporary, target)
    for part in record.parts:
        export.listener.say(part.comparison.sentence)
    if record.outcome == "broken":
        findings = [one for part in record.parts for one in part.comparison.findings]
        for one in findings[1:SHOWN_FINDINGS]:
            export.listener.say(one)
        logger.error(
            "export %s is broken: %s", record.format, "; ".join(map(str, findings[:SHOWN_FINDINGS]))
        )
        raise RunFailed(
            "export",
            record.worst.sentence,
            Message("export_kept_broken", {"folder": str(broken)}),
        )
    shutil.rmtree(broken, ignore_errors=True)


def replace_folder(made: Path, target: Path) -> None:
    """Rename ``made`` to ``target``; what was there goes only when the new one is in place."""
    former = target.with_name(f".former-{target.name}-{os.getpid()}")
    if target.exists():
        target.rename(former)
    made.rename(target)
    shutil.rmtree(former, ignore_errors=True)
