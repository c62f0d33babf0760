"""Renews the finished runs that come with medcot, in ``medcot/runs/finished/``.

    python bench/bundled_runs.py runs/EN runs/ZH

Each argument is a finished run of ``medcot run --preset demo``, with ``--language zh`` for the
Chinese one. Kept is what pages show, and the adapter in 16 bits: half of its size, and a change of
each weight by less than 1/2000 of it. The report stays that of the 32-bit adapter.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from medcot.errors import InputError
from medcot.exporting.card import BUNDLED_SOURCE
from medcot.runs.directory import RunDirectory
from medcot.runs.history import bundled_run

KEPT = (
    "config.json", "events.jsonl", "plan.json", "report.json", "status.json",
    "training.json",
)  # fmt: skip
ADAPTER_CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"


def renew(run: Path) -> Path:
    """Replace the bundled run in the language of ``run`` by ``run``; return its folder.

    Raises:
        InputError: ``run`` is no finished demo.
    """
    directory = RunDirectory(run)
    config = directory.config()
    if config.preset != "demo" or directory.stage() != "done":
        got = f"found preset {config.preset}, stage {directory.stage()}"
        raise InputError(str(run), got, "expected a finished run of --preset demo")
    target = bundled_run(config.language).path
    for name in KEPT:
        shutil.copyfile(run / name, target / name)
    environment = directory.read_json("environment.json")
    of_one_machine = ("platform", "working_directory")
    kept = {name: value for name, value in environment.items() if name not in of_one_machine}
    write_json(target / "environment.json", kept)
    (target / "adapter").mkdir(exist_ok=True)
    halve(run / WEIGHTS, target / WEIGHTS)
    name_base(run / ADAPTER_CONFIG, target / ADAPTER_CONFIG)
    return target


def name_base(config: Path, target: Path) -> None:
    """Write peft's config with the model's name on the hub, in place of a folder here."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = BUNDLED_SOURCE
    write_json(target, values)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write ``values`` for people and programs."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def halve(weights: Path, target: Path) -> None:
    """Write the tensors of ``weights`` to ``target`` in 16-bit floating point."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: one.to(torch.float16) for name, one in load_file(weights).items()}
    save_file(tensors, target, metadata={"format": "pt"})
    target.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Renew the finished runs that come with medcot.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    for path in parser.parse_args().runs:
        print(renew(path))
