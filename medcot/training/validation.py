"""Scores validation rows in a training, keeps the best weights, and knows when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medcot.config.schema import RunConfig
from medcot.data.tokenization import TokenizedRow
from medcot.distributed import comm
from medcot.records import TokenLoss

BEST_FILE = "best_adapter.safetensors"
"""A checkpoint's file with the weights of the lowest validation loss so far."""

ScoreRows = Callable[[Sequence[TokenizedRow]], TokenLoss]
"""Returns the loss of all rows together, of the model as it is trained so far."""


class Validation:
    """The validations of one training. Test rows have no part in it.

    ``losses`` maps steps to losses in nats per completion token, in order.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[TokenizedRow],
        config: RunConfig,
        steps: int,
        score: ScoreRows,
        *,
        shared_out: bool,
    ) -> None:
        self.rows = rows
        self.losses: dict[int, float] = {}
        self._model, self._steps, self._score = model, steps, score
        self._every = config.steps_between_validations(steps, len(rows))
        self._patience, self._keeps_best = config.patience, config.keep == "best"
        self._own = rows[comm.rank() :: comm.world_size()] if shared_out else rows
        self._shared_out = shared_out
        self._weights: dict[str, Any] = {}

    def is_due(self, step: int) -> bool:
        """Tell whether the rows are scored after ``step``: every so many steps, and at the end."""
        return len(self.rows) > 0 and (step % self._every == 0 or step == self._steps)

    def run(self, step: int) -> None:
        """Score the rows, and copy the weights if no loss before was lower. A collective."""
        found = self._score(self._own) if self._own else TokenLoss(0.0, 0)
        total, tokens = found.total, float(found.tokens)
        if self._shared_out:
            total, tokens = comm.sum_over_ranks(total), comm.sum_over_ranks(tokens)
        self.losses[step] = total / tokens
        if self._keeps_best and self.best_step == step:
            self._weights = {name: value.detach().cpu().clone() for name, value in self._trained()}

    @property
    def best_step(self) -> int | None:
        """Return the first step of the lowest loss; None before the first validation."""
        return min(self.losses, key=self.losses.__getitem__, default=None)

    @property
    def is_exhausted(self) -> bool:
        """Return whether so many validations in a row brought no lower loss that training ends."""
        best = self.best_step
        later = sum(step > best for step in self.losses) if best is not None else 0
        return bool(self._patience) and later >= self._patience

    def resume(self, losses: Mapping[int, float], checkpoint: Path | None) -> None:
        """Continue from the ``losses`` up to ``checkpoint`` and the best weights that it holds."""
        from safetensors.torch import load_file

        self.losses = dict(losses)
        if checkpoint is not None and (checkpoint / BEST_FILE).exists():
            self._weights = load_file(checkpoint / BEST_FILE)

    def save(self, checkpoint: Path) -> None:
        """Write the best weights into the folder of the checkpoint that is about to be saved."""
        from safetensors.torch import save_file

        if self._weights:
            checkpoint.mkdir(parents=True, exist_ok=True)
            save_file(self._weights, checkpoint / BEST_FILE)

    def choose_weights(self, last_step: int) -> int:
        """Give the model the weights to keep; return the step that they are of."""
        import torch

        if not self._keeps_best or not self._weights or self.best_step is None:
            return last_step
        with torch.no_grad():
            for name, value in self._trained():
                value.copy_(self._weights[name])
        return self.best_step

    def _trained(self) -> list[tuple[str, Any]]:
        return [(name, one) for name, one in self._model.named_parameters() if one.requires_grad]
