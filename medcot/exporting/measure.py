"""Loads an export as its users will, by plain transformers or peft, and asks it the proof set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medcot.errors import Cancelled
from medcot.exporting.proof_set import ProofSet
from medcot.exporting.run_model import RunModel

Progress = Callable[[int, int], None]


class LoadFailed(Exception):
    """Report that the program of a format could not load an export, or not all of it."""


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """The tokens of a greedy answer, without its end token, and whether it ended by itself."""

    ids: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What an export said: the loss of each row (nats, summed) and the greedy answers.

    ``program`` names what loaded it, with its version; ``computed_in`` the precision.
    """

    losses: tuple[float, ...]
    answers: tuple[GreedyAnswer, ...]
    program: str
    computed_in: str
    missing: tuple[str, ...] = ()


def measure_merged(model: RunModel, folder: Path, asked: ProofSet, progress: Progress) -> Measured:
    """Load a merged model by ``AutoModelForCausalLM`` and ask it the proof set.

    Raises:
        LoadFailed: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    device, dtype = _where_and_how(model)
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, local_files_only=True,
            trust_remote_code=False,
            device_map={"": device} if device != "cpu" else None,
        )  # fmt: skip
    except Exception as error:
        # A damaged file makes the loaders raise whatever the damage suggests.
        raise LoadFailed(f"{type(error).__name__}: {error}") from error
    loaded, notes = answer
    missing = {*notes["missing_keys"], *(str(one) for one in notes["mismatched_keys"])}
    return _measure(loaded, asked, progress, "transformers", dtype, tuple(sorted(missing)))


def measure_adapter(model: RunModel, folder: Path, asked: ProofSet, progress: Progress) -> Measured:
    """Load the base by transformers and the adapter by peft, and ask the proof set.

    Raises:
        LoadFailed: peft cannot load the adapter on its base.
    """
    from peft import PeftModel

    device, dtype = _where_and_how(model)
    base = model.load_base(dtype, device=device, packed=device != "cpu")
    try:
        loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    except Exception as error:
        raise LoadFailed(f"{type(error).__name__}: {error}") from error
    return _measure(loaded, asked, progress, "peft", dtype)


def _where_and_how(model: RunModel) -> tuple[str, Any]:
    """Return device and dtype: the run's own where there is a GPU, else float32 on the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", torch.float32
    names = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return "cuda:0", names.get(str(model.plan.get("precision")), torch.float32)


def _measure(
    loaded: Any,
    asked: ProofSet,
    progress: Progress,
    program: str,
    dtype: Any,
    missing: tuple[str, ...] = (),
) -> Measured:
    import torch

    total = len(asked.rows) + len(asked.questions)
    losses: list[float] = []
    answers: list[GreedyAnswer] = []
    loaded.eval()
    with torch.inference_mode():
        for row in asked.rows:
            losses.append(_loss(loaded, list(row.prompt_ids), list(row.completion_ids)))
            progress(len(losses), total)
        for question in asked.questions:
            answers.append(_answer(loaded, list(question.prompt_ids), asked.max_new_tokens))
            progress(len(losses) + len(answers), total)
    named = f"{program} {version(program)}"
    return Measured(
        tuple(losses), tuple(answers), named, str(dtype).removeprefix("torch."), missing
    )


def _loss(loaded: Any, prompt: list[int], completion: list[int]) -> float:
    import torch

    ids = torch.tensor([prompt + completion], device=loaded.device)
    logits = loaded(input_ids=ids, logits_to_keep=len(completion) + 1, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[0, :-1].float(), ids[0, len(prompt) :], reduction="sum"
    ).item()


def _answer(loaded: Any, prompt: list[int], limit: int) -> GreedyAnswer:
    """Generate as a user does: greedily, ended by the export's own end tokens alone."""
    import torch

    ids = torch.tensor([prompt], device=loaded.device)
    made = loaded.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )[0, len(prompt) :].tolist()
    named = loaded.generation_config.eos_token_id
    ends = set(named if isinstance(named, list) else [named])
    finished = bool(made) and made[-1] in ends
    return GreedyAnswer(tuple(made[:-1] if finished else made), finished)


def cancel_when(should_stop: Callable[[], bool], then: Progress) -> Progress:
    """Return a progress function that raises Cancelled once ``should_stop`` says so."""

    def progress(done: int, total: int) -> None:
        then(done, total)
        if should_stop():
            raise Cancelled

    return progress
