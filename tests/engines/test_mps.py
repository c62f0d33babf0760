"""A whole run as on a Mac: planned for MPS, computed by the CPU, which refuses what MPS lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medcot.config.presets import make_config
from medcot.engines import hf
from medcot.hardware.machine import Machine
from medcot.listener import Listener
from medcot.pipeline import prepare
from medcot.pipeline.run import run
from medcot.runs.directory import RunDirectory
from tests.support.short_runs import SHORT, write_rows

MAC = Machine((), 8, 12.0, "Darwin arm64", mps=True)


class WithoutDoubles(TorchDispatchMode):
    """Refuses 64-bit floats, which MPS does not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        several = found if isinstance(found, (tuple, list)) else (found,)
        for one in several:
            if isinstance(one, torch.Tensor) and one.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func} gives {one.dtype}, which MPS does not have")
        return found


def test_a_run_that_is_planned_for_mps_needs_no_64_bit_floats(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "detect_machine", lambda: MAC)
    asked: list[str] = []

    def stand_in(plan: Any) -> str:
        asked.append(plan.device)
        return "cpu"

    monkeypatch.setattr(hf, "current_device", stand_in)
    rows = write_rows(tmp_path / "rows.jsonl")
    fewer = {"steps": 2, "max_new_tokens": 2, "mcq": ()}
    options = SHORT | fewer | {"model": str(tiny_model), "dataset": str(rows)}
    directory = RunDirectory(tmp_path / "run")
    with WithoutDoubles():
        run(make_config("demo", options), directory, Listener())
    assert asked
    assert set(asked) == {"mps"}
    plan = directory.read_json("plan.json")
    assert (plan["device"], plan["engine"], plan["precision"]) == ("mps", "transformers", "fp32")
    assert directory.stage() == "done"


def test_the_stand_in_refuses_64_bit_floats() -> None:
    with WithoutDoubles(), pytest.raises(TypeError, match="MPS"):
        torch.ones(2).double()
