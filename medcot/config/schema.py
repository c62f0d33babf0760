"""`RunConfig`: everything that decides a run's result, in one frozen record.

Presets are values of it; the command line's flags, the notebook's slider bounds and all
validation come from its fields.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medcot.catalog import Message
from medcot.credentials import take_judge_login
from medcot.errors import InputError, nearest
from medcot.paths import expand_home
from medcot.records import Language, Style

COLUMNS = ("question", "input", "thought", "answer", "system", "messages")
"""What ``--columns`` can name the column of."""

BETWEEN_DATA_SETS = " + "
"""Stands between the names of several data sets."""

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BUNDLED_MODEL = "smollm2-135m"
BUNDLED_DATA = "sample"
SHORT_DATA = "sample-short"
R1_LLAMA_8B = "unsloth/DeepSeek-R1-Distill-Llama-8B"
MEDICAL_O1 = "FreedomIntelligence/medical-o1-reasoning-SFT"

ARM_THOUGHTS = {"kept": "train", "none": "removed", "shuffled": "shuffled", "another": "another"}
"""Values of ``thought`` in a study, and those of ``--thought``. All arms train on the same rows."""

EngineName = Literal["fused", "unsloth", "transformers"]
PresetName = Literal["auto", "demo", "tutorial", "kaggle-t4", "kaggle-t4x2", "gpu-24g", "gpu-80g"]


def _field(default: Any, description: str, *, shown: bool = True, **bounds: Any) -> Any:
    """Define a config field; only ``--help-all`` lists those that are not ``shown``."""
    extra: dict[str, Any] = {"shown": shown}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


class RunConfig(BaseModel, frozen=True, extra="forbid"):
    """Everything that a run computes; where it is stored (``--out``) is not part of it."""

    preset: PresetName = _field("demo", "starting values; auto picks by the machine")
    model: str = _field(BUNDLED_MODEL, "hub name, folder or smollm2-135m (bundled)", min_length=1)
    dataset: str = _field(
        BUNDLED_DATA,
        "hub name, file, folder, sample, sample-short; repeatable",
        min_length=1,
    )
    columns: str = _field("", "columns, as question=NAME,thought=NAME,answer=NAME")
    language: Language = _field("en", "language of data, prompts and evaluation")
    samples: int = _field(32, "training rows", ge=1, le=1_000_000)
    rank: int = _field(16, "LoRA rank: the width of the update", ge=1, le=256)
    alpha: int = _field(16, "LoRA alpha: the update is scaled by alpha/rank", ge=1, le=512)
    steps: int | None = _field(8, "optimizer steps", ge=0, le=1_000_000)
    epochs: float | None = _field(None, "passes over the rows, instead of steps", gt=0, le=100)
    learning_rate: float = _field(5e-4, "peak learning rate", gt=0, le=1)
    max_length: int = _field(1024, "tokens per row; longer rows are left out", ge=64, le=131_072)
    batch: int = _field(2, "samples per optimizer step", ge=1, le=1024)
    seed: int = _field(3407, "seed of adapter, order and bootstrap", ge=0, le=2**31 - 1)
    seeds: int = _field(1, "trainings with other seeds, for a verdict on the recipe", ge=1, le=100)
    mcq: tuple[str, ...] = _field((), "multiple-choice set: file, name or sample (repeatable)")
    keep: Literal["best", "last"] = _field(
        "best", "adapter of the lowest validation loss, or the last"
    )
    patience: int = _field(
        0, "validations without progress until it stops; 0: never", ge=0, le=1000
    )

    thought: Literal["auto", "train", "none", "removed", "shuffled", "another"] = _field(
        "auto", "chain of thought: train it, leave it out or change it; auto: as in the data",
        shown=False,
    )  # fmt: skip
    train_turns: Literal["last", "all"] = _field(
        "last", "turns of a conversation to train: the assistant's last or all", shown=False
    )
    style: Style = _field("chat", "prompt style: tutorial or the model's chat", shown=False)
    engine: Literal["auto", EngineName] = _field(
        "auto", "what loads and speeds up the model", shown=False
    )
    quantization: Literal["auto", "4bit", "8bit", "fp8", "none"] = _field(
        "auto", "precision of the frozen weights", shown=False
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "auto", "arithmetic of the training step", shown=False
    )
    micro_batch: int = _field(
        0, "rows per forward pass; 0 lets the plan choose", shown=False, ge=0, le=1024
    )
    packing: Literal["auto", "on", "off"] = _field(
        "auto", "several rows in one sequence, attention kept apart", shown=False
    )
    checkpointing: Literal["auto", "on", "off"] = _field(
        "auto", "recompute activations to save memory", shown=False
    )
    dropout: float = _field(0.0, "LoRA dropout", shown=False, ge=0, lt=1)
    target_modules: str = _field(
        "", "layers that get LoRA, as q_proj,v_proj; empty: all linear ones", shown=False
    )
    deterministic: bool = _field(
        default=False, description="the same bits each time on one GPU", shown=False
    )
    warmup_steps: int = _field(2, "steps of rising learning rate", shown=False, ge=0, le=100_000)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = _field(
        "linear", "learning rate after the warm-up", shown=False
    )
    optimizer: Literal["adamw_8bit", "adamw_torch"] = _field(
        "adamw_torch", "optimizer (8bit needs CUDA)", shown=False
    )
    weight_decay: float = _field(0.01, "AdamW weight decay", shown=False, ge=0, le=1)
    model_revision: str = _field("", "hub branch, tag or commit of the model", shown=False)
    dataset_revision: str = _field("", "hub branch, tag or commit of the data", shown=False)
    dataset_config: str = _field("", "hub configuration; empty means the language", shown=False)
    test_samples: int = _field(12, "rows scored before and after", shown=False, ge=1, le=100_000)
    test_loss: Literal["all", "answer"] = _field(
        "all",
        "loss of thought and answer, or of the answer after the model's own thought",
        shown=False,
    )
    test_fraction: float = _field(
        0.25, "share of questions never trained on", shown=False, gt=0, le=0.5
    )
    validation_samples: int = _field(
        32, "validation rows scored while training; 0: none", shown=False, ge=0, le=100_000
    )
    validation_steps: int = _field(
        0, "optimizer steps between validations; 0 chooses", shown=False, ge=0, le=1_000_000
    )
    generate_samples: int = _field(
        4, "test rows answered in full, besides the fixed question", shown=False, ge=0, le=100_000
    )
    thought_samples: int = _field(
        0, "answered rows that test if the thought is used; 0: none", shown=False, ge=0, le=100_000
    )
    max_new_tokens: int = _field(
        160, "longest answer in tokens; reaching it is reported", shown=False, ge=1, le=32_768
    )
    mcq_samples: int = _field(
        0, "questions per multiple-choice set; 0 takes all", shown=False, ge=0, le=100_000
    )
    mcq_orders: int = _field(
        0, "cyclic orders of the options to average over; 0 takes all", shown=False, ge=0, le=100
    )
    ability_samples: int = _field(
        0, "general items that show what training cost; 0: none", shown=False, ge=0, le=100_000
    )
    choice_seed: int | None = _field(
        None,
        "seed that chooses questions and items; none: that of the run",
        shown=False,
        ge=0,
        le=2**31 - 1,
    )
    mcq_method: Literal["likelihood", "generate"] = _field(
        "likelihood", "answer by option likelihood or by reasoning", shown=False
    )
    save_steps: int = _field(
        10, "optimizer steps between checkpoints", shown=False, ge=1, le=100_000
    )
    judge_url: str = _field("", "OpenAI-compatible endpoint that judges answers", shown=False)
    judge_model: str = _field("", "model to ask at the judge's endpoint", shown=False)
    judge_criteria: str = _field("", "file of criteria by which the judge grades", shown=False)
    wandb: Literal["online", "offline", "off"] = _field("off", "Weights & Biases", shown=False)
    wandb_project: str = _field("medcot", "W&B project", shown=False, min_length=1)
    wandb_job_type: str = _field("training", "W&B job type", shown=False)
    track: Literal["none", "tensorboard", "trackio"] = _field(
        "none", "where else the events go, besides W&B", shown=False
    )

    @model_validator(mode="before")
    @classmethod
    def _one_length_of_training(cls, values: Any) -> Any:
        """Let ``epochs`` alone replace the default ``steps``; both together are refused later."""
        if isinstance(values, dict):
            given = cast("dict[str, Any]", values)
            return {"steps": None} | given if given.get("epochs") is not None else given
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number, which would be 1 and 0."""
        if isinstance(value, bool) and info.field_name != "deterministic":
            raise ValueError("found true or false")
        return value

    @field_validator("mcq", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("dataset", mode="before")
    @classmethod
    def _several_as_one(cls, value: Any) -> Any:
        """Take several data sets as a list; they are recorded as one text."""
        if isinstance(value, (list, tuple)):
            names = cast("list[Any]", list(value))  # pyright: ignore[reportUnknownArgumentType]
            several = names and all(isinstance(name, str) for name in names)
            return BETWEEN_DATA_SETS.join(names) if several else names
        return value

    @field_validator("columns", mode="after")
    @classmethod
    def _known_columns(cls, value: str) -> str:
        read_columns(value)
        return value

    @field_validator("target_modules", mode="after")
    @classmethod
    def _layer_names(cls, value: str) -> str:
        read_target_modules(value)
        return value

    @field_validator("model", "dataset", mode="after")
    @classmethod
    def _at_home(cls, value: str) -> str:
        return BETWEEN_DATA_SETS.join(map(expand_home, value.split(BETWEEN_DATA_SETS)))

    @field_validator("mcq", mode="after")
    @classmethod
    def _each_at_home(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(expand_home, value))

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> RunConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    @property
    def thinks(self) -> bool:
        """Tell whether thoughts are trained and asked for; a run's own config says so."""
        return self.thought not in ("none", "removed")

    @property
    def generates_to_score(self) -> bool:
        """Tell whether each test row's loss needs a thought that the model writes first."""
        return self.thinks and self.test_loss == "answer"

    def total_steps(self, rows: int) -> int:
        """Return the number of optimizer steps for ``rows`` training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * -(-rows // self.batch)))

    def steps_between_validations(self, steps: int, rows: int) -> int:
        """Return the optimizer steps, of ``steps``, between two validations of ``rows`` rows.

        Unless the config fixes them, there are at most ten validations, and those before the last
        take at most an eighth of the training's time: without a backward pass a row takes half of
        its time.
        """
        if self.validation_steps:
            return self.validation_steps
        return max(1, -(-steps // 10), -(-4 * rows // self.batch))


def read_columns(text: str) -> dict[str, str]:
    """Read ``question=NAME,thought=NAME,answer=NAME``: the data's columns by what they hold.

    Raises:
        ValueError: it is no such list, or repeats a part.
    """
    found: dict[str, str] = {}
    for part in text.split(",") if text.strip() else []:
        role, _, name = (one.strip() for one in part.partition("="))
        if role not in COLUMNS or role in found or not name:
            raise ValueError(f"found {part!r}")
        found[role] = name
    pair, conversation = {"question", "answer"} <= set(found), "messages" in found
    if found and (not (pair or conversation) or ("question" in found and conversation)):
        raise ValueError("expected question and answer, or messages")
    if conversation and not {"input", "thought"}.isdisjoint(found):
        raise ValueError("messages have their thoughts and inputs in them")
    if len({*found.values()}) < len(found):
        raise ValueError("one column named twice")
    return found


def read_target_modules(text: str) -> tuple[str, ...]:
    """Read ``q_proj,v_proj``: the last parts of layers' names, each once.

    Raises:
        ValueError: one is no such name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(","))) if text.strip() else ()
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"found {text!r}")
    return names


def build_config(values: dict[str, Any], where: str = "") -> RunConfig:
    """Validate ``values``; the first problem becomes one :class:`InputError`.

    ``where`` names the source (a file, say); without it the option is named. A login in the judge's
    address becomes no part of the config.
    """
    if isinstance(url := values.get("judge_url"), str):
        values = values | {"judge_url": take_judge_login(url)}
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise _as_input_error(dict(first), values, where) from None


def _as_input_error(problem: dict[str, Any], values: dict[str, Any], where: str) -> InputError:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        known = list(RunConfig.model_fields)
        needs = f"expected the name of an option{nearest(name, known)}"
        return InputError(where or option_name(name), f"unknown option {name!r}", needs)
    if not name:
        both = f"found steps={values.get('steps')!r} and epochs={values.get('epochs')!r}"
        return InputError(where or "--steps/--epochs", both, "give either steps or epochs")
    place = f"{where}, {name}" if where else option_name(name)
    found = Message("error_found", {"value": repr(values.get(name))})
    return InputError(place, found, _expected(name))


def option_name(field: str) -> str:
    """Return the command-line option of a field."""
    return "--" + field.replace("_", "-")


def choices(field: str) -> tuple[str, ...]:
    """Return the allowed words of a field, or () if it is not a choice."""
    annotation = RunConfig.model_fields[field].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def bounds(field: str) -> tuple[float | None, float | None]:
    """Return the lowest and highest value of a numeric field; None means no limit."""
    low: float | None = None
    high: float | None = None
    for rule in RunConfig.model_fields[field].metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


def _expected(field: str) -> str | Message:
    if field == "columns":
        return f"expected question=NAME,answer=NAME and so on, of {', '.join(COLUMNS)}"
    if field == "target_modules":
        return "expected names of layers, as q_proj,v_proj"
    low, high = bounds(field)
    if "int" in str(RunConfig.model_fields[field].annotation) and not choices(field):
        return Message("needs_whole_number", {"low": str(low), "high": str(high)})
    return f"expected {describe_values(field)}"


def describe_values(field: str) -> str:
    """Describe the values of a field, such as ``a whole number from 1 to 256``."""
    if words := choices(field):
        return f"one of {', '.join(words)}"
    if RunConfig.model_fields[field].annotation is bool:
        return "true or false"
    annotation = str(RunConfig.model_fields[field].annotation)
    low, high = bounds(field)
    if "int" in annotation:
        return f"a whole number from {low} to {high}"
    if "float" in annotation:
        exclusive = any(hasattr(rule, "gt") for rule in RunConfig.model_fields[field].metadata)
        return f"a number {'above' if exclusive else 'from'} {low:g} to {high:g}"
    return "a non-empty text"
