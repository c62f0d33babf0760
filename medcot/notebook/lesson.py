"""Prepares one layer of a small model so that a page can train it by hand in seconds.

Only the last feed-forward projection is trained. All that lies below it never changes, so it is
computed once for each row; what is left for each step is that layer, the norm and the output head.
The model itself is released again: a server keeps two matrices and some rows of numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medcot.config.schema import BUNDLED_MODEL, RunConfig
from medcot.data.tokenization import TokenizedRow
from medcot.engines import loading as models
from medcot.errors import InputError
from medcot.evaluation.interface import rows_from_json
from medcot.hardware.machine import detect_machine
from medcot.inference.ask import inference_plan
from medcot.notebook.preview import SelectedRows, load_material
from medcot.paths import is_folder
from medcot.planning.model_specs import CountedSpec, find_model_spec
from medcot.planning.plan import Plan, make_plan
from medcot.reporting.schema import Report
from medcot.runs.directory import RunDirectory
from medcot.runs.history import RunRecord

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 96
"""Tokens of a completion that count here: the output head takes most of the time of each."""

SMALL = 2**30
"""Bytes of the weights of a model that a page may load without being asked to train it."""

PRACTICE, TRIAL = 3, 4
"""Rows to train the layer on, besides the one that is read, and rows to score it on."""

PATIENCE_S = 120
"""Seconds after which a practice stops between two steps: other visitors wait."""


@dataclass(frozen=True, slots=True)
class LessonRows:
    """The rows to train the layer on, and those to score it on."""

    practice: Sequence[TokenizedRow]
    trial: Sequence[TokenizedRow]


@dataclass(frozen=True, slots=True)
class PairedLoss:
    """A test row's loss in nats, summed over its ``tokens``, by the base and the tuned model."""

    id: str
    before: float
    after: float
    tokens: int


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What the trained layer reads of one row, at the places that predict its completion.

    ``inputs`` [tokens, inner] go through the layer, ``residual`` [tokens, outer] past it;
    ``targets`` [tokens] are the completion's ids.
    """

    id: str
    inputs: Tensor
    residual: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class TopLayer:
    """The last feed-forward projection of a model, and what follows it.

    ``weight`` [outer, inner] is frozen; ``norm`` and ``head`` turn its sum with the residual
    stream into logits. ``rows`` are by id.
    """

    weight: Tensor
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]
    rows: dict[str, LayerRow] = field(default_factory=dict[str, LayerRow])


_LOCK = threading.Lock()
_KEPT: dict[str, TopLayer] = {}


def is_small(config: RunConfig) -> bool:
    """Return whether the model of ``config`` is on this machine and small."""
    if config.model == BUNDLED_MODEL:
        return True
    if not is_folder(config.model):
        return False
    return sum(path.stat().st_size for path in Path(config.model).glob("*.safetensors")) < SMALL


def choose_rows(
    first: TokenizedRow, training: Sequence[TokenizedRow], test: Sequence[TokenizedRow]
) -> LessonRows:
    """Return ``first`` with the shortest of ``training``, and the shortest of ``test``."""
    others = sorted((row for row in training if row.id != first.id), key=len)
    trial = sorted((row for row in test if row.id != first.id), key=len)
    return LessonRows([first, *others[: PRACTICE - 1]], trial[:TRIAL])


def plan_here(config: RunConfig, rows: SelectedRows) -> Plan:
    """Return the plan of ``config`` on this machine."""
    return make_plan(config, detect_machine(), find_model_spec(config), *rows.size)


def time_limit() -> Callable[[], bool]:
    """Return a function that is True from ``PATIENCE_S`` seconds on."""
    end = time.monotonic() + PATIENCE_S
    return lambda: time.monotonic() > end


def read_pairs(run: RunRecord, report: Report | None) -> list[PairedLoss]:
    """Return the test rows of a run, from its scored rows or else from its report.

    A report has each row's mean loss; its tokens are then counted in the data set. Where that has
    other rows now there are no pairs, since the mean over the rows could not be the report's.
    """
    directory = RunDirectory(run.path)
    sides = [
        {
            row.id: row
            for row in rows_from_json(directory.rows(directory.evaluation(phase)), where=phase)
            if row.kind == "case"
        }
        for phase in ("before", "after")
    ]
    if sides[0] and sides[0].keys() == sides[1].keys():
        return [
            PairedLoss(name, row.nll_sum or 0.0, sides[1][name].nll_sum or 0.0,
                       row.completion_tokens or 1)
            for name, row in sides[0].items()
        ]  # fmt: skip
    if report is None:
        return []
    known = load_material(report.config).rows
    if not all(row.id in known for row in report.differences):
        return []
    pairs: list[PairedLoss] = []
    for row in report.differences:
        tokens = len(known[row.id].completion_ids)
        pairs.append(PairedLoss(row.id, row.before * tokens, row.after * tokens, tokens))
    return pairs


def prepare_layer(config: RunConfig, rows: Sequence[TokenizedRow]) -> TopLayer:
    """Return the layer of the model of ``config``, with ``rows`` ready for it.

    Raises:
        InputError: the model is not built like Llama.
    """
    with _LOCK:
        known = _KEPT.get(config.model)
        if known is None or any(row.id not in known.rows for row in rows):
            missing = [row for row in rows if known is None or row.id not in known.rows]
            _KEPT.clear()
            _KEPT[config.model] = known = _compute(config, missing, known)
        return known


def _compute(config: RunConfig, rows: Sequence[TokenizedRow], known: TopLayer | None) -> TopLayer:
    if isinstance(find_model_spec(config), CountedSpec):
        # Norms after the feed-forward network, or experts, make another sum than the lesson's.
        got = f"{config.model} is built otherwise"
        raise InputError("--model", got, "expected a model built like Llama")
    loaded = models.load_base(config, inference_plan(config))
    try:
        body, head = loaded.model.model, loaded.model.lm_head
        projection, norm = body.layers[-1].mlp.down_proj, body.norm
    except AttributeError as error:
        raise InputError("--model", f"{error}", "expected a model built like Llama") from None
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(requires_grad=False)
    done = {} if known is None else known.rows
    done = done | {row.id: _read_row(body, projection, norm, row) for row in rows}
    layer = TopLayer(projection.weight.float(), norm.float(), head.float(), done)
    models.release(loaded)
    return layer


def _read_row(body: Any, projection: Any, norm: Any, row: TokenizedRow) -> LayerRow:
    """Run the model once, and keep what enters the projection and what passes it by."""
    import torch

    seen: dict[str, Tensor] = {}

    def keep_projection(_: Any, given: Any, found: Tensor) -> None:
        seen["inputs"], seen["output"] = given[0], found

    def keep_sum(_: Any, given: Any) -> None:
        seen["sum"] = given[0]

    hooks = [
        projection.register_forward_hook(keep_projection),
        norm.register_forward_pre_hook(keep_sum),
    ]
    completion = row.completion_ids[:LONGEST]
    ids = torch.tensor([row.prompt_ids + completion], device=projection.weight.device)
    try:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    # A token is predicted by the place before it.
    places = slice(len(row.prompt_ids) - 1, ids.shape[1] - 1)
    inputs, output, whole = (seen[name][0, places].float() for name in ("inputs", "output", "sum"))
    return LayerRow(row.id, inputs.clone(), whole - output, torch.tensor(completion))
