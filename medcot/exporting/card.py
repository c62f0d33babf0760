"""The model card of an export, from the run directory alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, cast

from medcot.catalog import duration, say
from medcot.config.schema import (
    BETWEEN_DATA_SETS,
    BUNDLED_DATA,
    BUNDLED_MODEL,
    SHORT_DATA,
    RunConfig,
)
from medcot.data.snapshots import find_snapshot
from medcot.data.sources import Kind, kind_of, split_names
from medcot.data.tokenization import chat_template
from medcot.errors import InputError
from medcot.exporting.formats import Format
from medcot.exporting.make import base_name
from medcot.exporting.proof_file import ExportRecord
from medcot.exporting.proof_set import prompt_around
from medcot.exporting.run_model import RunModel
from medcot.records import Language
from medcot.reporting.markdown import escape
from medcot.reporting.schema import MEASURES, Report
from medcot.reporting.storage import report_from_json
from medcot.reporting.wording import format_change, format_interval, format_p, format_value

BUNDLED_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the bundled model is from; medcot uses its 4-bit GGUF file, de-quantised."""

LICENCES = {
    BUNDLED_MODEL: "apache-2.0",
    BUNDLED_DATA: "apache-2.0",
    SHORT_DATA: "apache-2.0",
    "FreedomIntelligence/medical-o1-reasoning-SFT": "apache-2.0",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "mit",
    "unsloth/DeepSeek-R1-Distill-Llama-8B": "mit",
}
"""Licences as the pages of these models and data sets state them."""

UNSAID = (
    "judge_url",
    "judge_model",
    "judge_criteria",
    "wandb",
    "wandb_project",
    "wandb_job_type",
    "track",
)
"""Settings that name services of whoever made the run, and change nothing about the model."""

LIBRARIES: dict[Format, str] = {"adapter": "peft", "hub": "peft", "merged": "transformers"}
"""Libraries by the names that the hub lists. It lists none for a GGUF, which it knows by a tag."""

RELATIONS: dict[Format, str] = {
    "adapter": "adapter", "hub": "adapter", "merged": "finetune", "gguf": "quantized",
    "ollama": "quantized",
}  # fmt: skip


def write_card(model: RunModel, folder: Path, record: ExportRecord, name: Format) -> None:
    """Write ``README.md``: metadata, then the card in English and in the run's language.

    Raises:
        ValueError: huggingface_hub does not take the metadata.
    """
    from huggingface_hub import ModelCard

    report = _report(model)
    languages: list[Language] = ["en", "zh"] if model.config.language == "zh" else ["en"]
    usage = _usage(model, folder, name)
    bodies = [_body(model, report, record, name, language, usage) for language in languages]
    header = f"---\n{_metadata(model, report, name).to_yaml()}\n---\n"
    card = ModelCard(header + "\n" + "\n\n".join(bodies))  # parses the metadata it was given
    card.save(folder / "README.md")


def _report(model: RunModel) -> Report | None:
    directory = model.directory
    if not directory.has("report.json"):
        return None
    return report_from_json(directory.read_json("report.json"))


def _metadata(model: RunModel, report: Report | None, name: Format) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    config = model.config
    recorded = model.directory.read_json("environment.json")["dataset"]
    base, datasets = _hub_name(model), _hub_datasets(config, recorded.get("revision") or "")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=datasets[0] if datasets else "medcot-sample",
            dataset_name=_data_name(config).rpartition("/")[2],
            dataset_split="test",
            dataset_revision=(report.facts.dataset.revision or None)
            if report and report.facts.dataset
            else None,
            metric_type=metric,
            metric_name=title,
            metric_value=value,
        )
        for metric, title, value in _results(report)
    ]
    tags = ["medcot", "lora", *(["chain-of-thought"] if config.thinks else [])]
    if name not in LIBRARIES:
        tags.append("gguf")
    return ModelCardData(
        model_name=_title(model),
        base_model=base,
        base_model_relation=RELATIONS[name] if base else None,
        datasets=datasets or None,
        language=config.language,
        library_name=LIBRARIES.get(name),
        license=LICENCES.get(config.model),
        pipeline_tag="text-generation",
        tags=[*tags, "medical", "not-medical-advice"],
        eval_results=results or None,
    )


def _results(report: Report | None) -> Iterator[tuple[str, str, float]]:
    if report is None:
        return
    after = report.after
    if after.nll is not None:
        yield "loss", "test loss, nats per completion token", round(after.nll, 4)
    if after.closed_rate is not None:
        yield "closed_rate", "answers with a closed thought", round(after.closed_rate, 4)
    for name, one in after.mcq.sets.items() if after.mcq else ():
        if one.accuracy is not None:
            yield "accuracy", f"multiple choice, {name}", round(one.accuracy, 4)


def _body(
    model: RunModel,
    report: Report | None,
    record: ExportRecord,
    name: Format,
    language: Language,
    usage: str,
) -> str:
    config, directory = model.config, model.directory
    environment = directory.read_json("environment.json")
    training = directory.read_json("training.json") if directory.has("training.json") else {}
    dataset = environment["dataset"]
    packages = environment.get("packages", {})
    unknown = say("card_licence_unknown", language)
    values = {
        "title": _title(model),
        "project": _medcot(),
        "kind_line": say(f"card_kind_{name}", language),
        "verdict": _verdict(report, language),
        "evaluation": _evaluation(report, language),
        "cautions": _cautions(report, language),
        "base": _with_revision(base_name(model), model.location.recorded),
        "base_licence": LICENCES.get(config.model, unknown),
        "precision": _precision(model, name, language),
        "data": _with_revision(_data_name(config), dataset.get("revision")),
        "data_licence": LICENCES.get(config.dataset, unknown),
        "fingerprint": str(dataset["fingerprint"])[:16],
        "rows": str(report.facts.rows if report else config.samples),
        "recipe": say(
            "card_recipe", language, rank=config.rank, alpha=config.alpha, batch=config.batch,
            steps=str(report.facts.steps if report else config.steps or config.epochs),
            rate=f"{config.learning_rate:g}", seed=config.seed,
        ),
        "machine": _machine(environment),
        "time": duration(float(training.get("seconds", 0)), language),
        "software": ", ".join(
            f"{one} {packages[one]}"
            for one in ("medcot", "torch", "transformers", "peft", "trl")
            if one in packages
        ),
        "synthetic": say("synthetic", language) if report and _synthetic(report) else "",
        "proofs": "\n".join(
            f"- {part.comparison.sentence.text(language)}" for part in record.parts
        ),
        "about_prompt": say(
            "card_prompt_thought" if config.thinks else "card_prompt_plain", language
        ),
        "prompt": _prompt(model),
        "usage": usage,
        "test_rows": str(report.after.rows if report else 0),
        "medcot": packages.get("medcot", ""),
        "format": name,
        "config": _toml(config),
    }  # fmt: skip
    text = files("medcot.exporting").joinpath(f"card_{language}.md").read_text(encoding="utf-8")
    # Empty parts leave empty lines.
    lines = Template(text).substitute(values).replace("\n\n\n\n", "\n\n").replace("\n\n\n", "\n\n")
    return lines.strip() + "\n"


def _precision(model: RunModel, name: Format, language: Language) -> str:
    """Return what the base was stored and computed in, and that a merge de-quantised it."""
    found = f"{model.quantization}, {model.plan.get('precision')}"
    if model.is_quantized and LIBRARIES.get(name) != LIBRARIES["adapter"]:
        return f"{found}. {model.dequantized.text(language)}"
    return found


def _verdict(report: Report | None, language: Language) -> str:
    if report is None:
        return say("card_not_scored", language)
    return f"**{' '.join(one.text(language) for one in report.verdict.messages.all())}**"


def _evaluation(report: Report | None, language: Language) -> str:
    if report is None:
        return ""
    head = [say(f"card_{one}", language) for one in ("before", "after", "difference", "interval")]
    lines = [f"| | {' | '.join(head)} | p | n |", "| :-- | --: | --: | --: | :-: | --: | --: |"]
    for measure in MEASURES:
        if (paired := report.paired.of(measure)) is None:
            continue
        cells = [
            say(f"card_measure_{measure}", language),
            format_value(measure, report.before.value(measure)),
            format_value(measure, report.after.value(measure)),
            format_change(measure, paired.difference),
            format_interval(measure, paired),
            format_p(paired.p_value),
            str(paired.n),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cautions(report: Report | None, language: Language) -> str:
    return "\n".join(f"- {one.text(language)}" for one in (report.cautions if report else ()))


def _machine(environment: Mapping[str, Any]) -> str:
    machine = environment.get("machine", {})
    gpus: Sequence[Mapping[str, Any]] = machine.get("gpus", [])
    names = ", ".join(str(gpu.get("name", "GPU")) for gpu in gpus)
    cores = f"{machine.get('cpu_cores', '?')} CPU cores, {machine.get('system', '')}"
    return escape(f"{names}; {cores}" if names else cores)


def _prompt(model: RunModel) -> str:
    """Return the run's prompt with ``{question}`` in place of the question."""
    return "{question}".join(prompt_around(model.config, chat_template(model.tokenizer)))


def _usage(model: RunModel, folder: Path, name: Format) -> str:
    """Return code or commands that load the export; ``FOLDER`` stands for where it is."""
    if name == "ollama":
        return "```\nollama create medcot-model -f Modelfile\nollama run medcot-model\n```"
    if name == "gguf":
        made = [one.name for one in sorted(folder.glob("*.gguf"))]
        file = next((one for one in made if "Q8_0" in one), made[0] if made else "model.gguf")
        return f"```\nllama-server -m {file} --host 127.0.0.1\n```"
    load = (
        "from peft import AutoPeftModelForCausalLM as Model"
        if name in ("adapter", "hub")
        else "from transformers import AutoModelForCausalLM as Model"
    )
    prompt, start = _prompt(model), model.added_start
    added = ", add_special_tokens=False" if not start or prompt.startswith(start) else ""
    return (
        f"```python\nfrom transformers import AutoTokenizer\n{load}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = Model.from_pretrained("FOLDER")\n'
        'prompt = PROMPT.replace("{question}", question)  # PROMPT: the text above\n'
        f'inputs = tokenizer(prompt, return_tensors="pt"{added})\n'
        f"output = model.generate(**inputs, max_new_tokens={model.config.max_new_tokens},"
        " do_sample=False)\n```"
    )


def _title(model: RunModel) -> str:
    return f"{base_name(model).rsplit('/', 1)[-1]}-medcot-{model.config.language}"


def _hub_name(model: RunModel) -> str | None:
    name = model.config.model
    if name == BUNDLED_MODEL:
        return BUNDLED_SOURCE
    if snapshot := find_snapshot(name):
        return snapshot.repository
    return None if Path(name).exists() else name


def _hub_datasets(config: RunConfig, revision: str) -> list[str]:
    """Return the data sets from the hub: as many as the run recorded revisions, or none.

    A folder that is no longer there may have a name like those of the hub.
    """
    names = [name for name in split_names(config.dataset) if _kind_of(name) == "hub"]
    recorded = revision.split(BETWEEN_DATA_SETS) if revision else []
    return names if len(names) == len(recorded) else []


def _data_name(config: RunConfig) -> str:
    """Return the names of the data sets; of files and folders without where they lie."""
    return BETWEEN_DATA_SETS.join(map(_shown_name, split_names(config.dataset)))


def _shown_name(name: str) -> str:
    if snapshot := find_snapshot(name):
        return snapshot.repository
    return Path(name).name if _kind_of(name) == "file" else name


def _kind_of(name: str) -> Kind:
    """Return what a data set is. What cannot be told was a folder, perhaps of another machine."""
    try:
        return kind_of(name)
    except InputError:
        return "file"


def _medcot() -> str:
    """Return the project's name with a link to its page, if its metadata name one."""
    try:
        addresses = metadata("medcot").get_all("Project-URL") or []
    except PackageNotFoundError:
        addresses = []
    return f"[medcot]({addresses[0].split(', ')[-1]})" if addresses else "medcot"


def _synthetic(report: Report) -> bool:
    return bool(report.facts.dataset and report.facts.dataset.synthetic)


def _with_revision(name: str, revision: str | None) -> str:
    return f"{escape(name)} (`{revision}`)" if revision else escape(name)


def _without_folder(value: str) -> str:
    """Return a file's or a folder's own name: its place on this machine means nothing elsewhere."""
    path = Path(value)
    return path.name if value and (path.is_absolute() or path.exists()) else value


def _toml(config: RunConfig) -> str:
    """Return the settings that differ from the defaults, as ``--config`` reads them."""
    lines: list[str] = []
    for name, value in config.model_dump(mode="json").items():
        if value == RunConfig.model_fields[name].default or value is None or name in UNSAID:
            continue
        if name == "dataset":
            value = _data_name(config)
        elif isinstance(value, str):
            value = _without_folder(value)
        elif isinstance(value, list):
            value = [_without_folder(str(one)) for one in cast("list[object]", value)]
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)
