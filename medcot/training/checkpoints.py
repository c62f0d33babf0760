"""Saves only checkpoints whose numbers are finite, and finds the newest whole one."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medcot.distributed import comm
from medcot.errors import RunFailed, one_line
from medcot.runs.checkpoints import MANIFEST, STATE, find_damage, list_checkpoints, write_manifest
from medcot.runs.directory import RunDirectory

logger = logging.getLogger(__name__)

REMEDY = (
    "Start a new run with a lower --learning-rate: --resume goes back to the newest checkpoint"
    " before that step and repeats it with the same settings."
)
"""What to do after a number that is not finite."""


def newest_whole_checkpoint(directory: RunDirectory) -> Path | None:
    """Return the newest checkpoint that can be resumed from, None where there is none.

    Newer ones that are damaged are named in a warning and removed: what they held is computed
    again.
    """
    for checkpoint in list_checkpoints(directory.checkpoints):
        damage = find_damage(checkpoint)
        if damage is None:
            damage = _find_unreadable(checkpoint)
        if not damage:
            return checkpoint
        logger.warning("%s is passed over and removed: %s.", checkpoint, damage)
        shutil.rmtree(checkpoint)
    return None


def remove_checkpoints_from(directory: RunDirectory, step: int) -> None:
    """Remove the checkpoints of ``step`` and later: none of them is worth resuming from."""
    for checkpoint in list_checkpoints(directory.checkpoints):
        if comm.is_main() and int(checkpoint.name.rpartition("-")[2]) >= step:
            shutil.rmtree(checkpoint)


def check_before_saving(optimizer: Any, step: int) -> None:
    """Check the trained weights and the optimizer's state, which the next checkpoint would hold.

    Raises:
        RunFailed: A number is not finite; nothing is saved.
    """
    groups = [value for group in optimizer.param_groups for value in group["params"]]
    states = [value for state in optimizer.state.values() for value in _tensors(state)]
    for what, tensors in (("a trained weight", groups), ("the optimizer's state", states)):
        if not all(bool(tensor.detach().isfinite().all()) for tensor in tensors):
            raise RunFailed("training", f"{what} became NaN or infinite at step {step}.", REMEDY)


def manifest_callback(save_best: Callable[[Path], None]) -> Any:
    """Return the trainer callback that completes a checkpoint, with its manifest last.

    ``save_best`` writes into the checkpoint's folder before the trainer does, so that a checkpoint
    without a manifest has all of it too.
    """
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_save and comm.is_main():
                save_best(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # A worker's folder is a scratch copy, from which nobody resumes.
            if comm.is_main():
                write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Callback()


def last_step_kept(save_best: Callable[[Path], None]) -> Any:
    """Return the trainer callback that can save the last whole step after a step was abandoned."""
    import torch
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The abandoned step will have drawn dropout, which resuming draws again.
            self._random = torch.get_rng_state()

        def save(self, trainer: Any) -> None:
            """Save a checkpoint of the trainer's last whole step, if it is not saved yet."""
            step = trainer.state.global_step
            checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{step}"
            if step and not checkpoint.exists():
                save_best(checkpoint)
                torch.set_rng_state(self._random)
                check_before_saving(trainer.optimizer, step)
                # As the trainer itself does after a step.
                trainer._save_checkpoint(trainer.model, None)
                trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)

    return Callback()


def _find_unreadable(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint that has no manifest, "" where nothing is."""
    import torch
    from safetensors.torch import load_file

    name = STATE
    try:
        state = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
            return f"{name} is damaged"
        name = "adapter_model.safetensors"
        if not all(one.isfinite().all() for one in load_file(checkpoint / name).values()):
            return f"{name} holds NaN or infinity"
        name = "optimizer.pt"
        optimizer = torch.load(checkpoint / name, map_location="cpu", weights_only=True)
        if not all(one.isfinite().all() for one in _tensors(optimizer)):
            return f"{name} holds NaN or infinity"
        for name in ("scheduler.pt", *(one.name for one in checkpoint.glob("rng_state*.pth"))):
            with zipfile.ZipFile(checkpoint / name) as archive:
                if archive.testzip():
                    return f"{name} is damaged"
    except FileNotFoundError:
        return f"neither {MANIFEST} nor {name} is there"
    except Exception as error:  # noqa: BLE001 - unpickling raises whatever the damage suggests
        return f"{name} is damaged ({one_line(f'{type(error).__name__}: {error}', 80)})"
    return ""


def _tensors(value: Any) -> Iterator[Any]:
    """Yield all tensors in nested containers."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "isfinite"):
        yield value
