"""Write what a run on Kaggle measured as Markdown, to be pasted into `docs/experiments.md`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from medcot.catalog import duration
from medcot.errors import RunFailed
from medcot.kaggle.client.build import FOLDER
from medcot.kaggle.client.probe import ImageFacts
from medcot.kaggle.client.push_state import PushRecord
from medcot.kaggle.client.session_plan import StageEstimate
from medcot.kaggle.session.manifest import NAME, STAMP, read_manifest
from medcot.runs.directory import RunDirectory

FILE = "proof.md"

_SHORT: dict[str, Any] = {
    "samples": 64,
    "steps": 8,
    "warmup_steps": 1,
    "test_samples": 8,
    "generate_samples": 1,
    "max_new_tokens": 128,
    "ability_samples": 0,
    "thought_samples": 0,
    "wandb": "off",
}

_STAGE = re.compile(r"(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ INFO medcot\.\S+: stage (\w+)$")
_TIME = "%Y-%m-%d %H:%M:%S"
_TIMES = re.compile(r"(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),")
_STAGES = {
    "planned": "load",
    "before": "evaluate",
    "training": "train",
    "after": "evaluate",
    "report": "report",
}
_INSTALLED = re.compile(r"(?m)^installing: took (\d+) s$")
_MACHINE = re.compile(r"(?m)^(?:python 3\.|\d+ CPU cores).*$")


def options_for(preset: str) -> dict[str, Any]:
    """Return the options with which a run of ``preset`` shows every stage in about ten minutes."""
    return _SHORT if preset != "demo" else {"steps": 2, "samples": 8, "test_samples": 4}


def make_snippet(
    run: RunDirectory, sent: PushRecord, planned: Sequence[StageEstimate], image: ImageFacts
) -> str:
    """Return the Markdown on the fetched version ``sent`` of ``run``.

    Raises:
        RunFailed: the run has not ended well, or a file of it is missing.
    """
    if run.stage() != "done" or not run.has("training.json"):
        raise RunFailed("proof", f"{run.path} holds no finished run.", "Fetch it, or run it again.")
    log = run.path / FOLDER / f"v{sent.version}.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    manifest = read_manifest((run.path / FOLDER / NAME).read_text(encoding="utf-8"))
    training, plan = run.read_json("training.json"), run.read_json("plan.json")
    seconds = stage_seconds(run.log.read_text(encoding="utf-8") if run.log.exists() else "")
    if (queued := _queue_seconds(run, sent)) is not None:
        seconds["queue"] = queued
    if found := _INSTALLED.search(text):
        seconds["install"] = float(found[1])
    events = list(run.rows(run.events))
    peak = max((row.get("memory_gib") or 0.0 for row in events), default=0.0)
    expected = _merge(planned)
    names = expected | dict.fromkeys(seconds)
    rows = [_row(name, seconds.get(name), expected.get(name)) for name in names]
    measured = training["tokens"] / training["seconds"] if training["seconds"] else 0.0
    config = run.config()
    machine = [f"- {line.group()}" for line in _MACHINE.finditer(text)]
    return "\n".join(
        [
            f"## A run on Kaggle ({image.at})",
            "",
            f"`make kaggle-proof`: `{config.model}`, preset `{config.preset}`, {training['steps']} "
            f"steps of {config.batch} rows, {plan['engine']}, {plan['quantization']}, "
            f"{plan['precision']}, {plan['gpus']} processes. Version {sent.version} of a private "
            f"kernel, session of {duration(manifest.seconds, 'en')}, exit code "
            f"{manifest.exit_code}.",
            "",
            *machine,
            f"- image: Python {image.python}, {image.build or 'no build date'}, "
            f"{len(image.packages)} packages",
            f"- training: {training['tokens']:,} tokens in {training['seconds']:.0f} s, "
            f"{measured:,.0f} tokens/s (planned {plan['tokens_per_second']:,.0f}); peak "
            f"{peak:.1f} GiB (planned {plan['peak_gib']:.1f})",
            "",
            "| stage | measured | planned | the plan's source |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _queue_seconds(run: RunDirectory, sent: PushRecord) -> float | None:
    """Return the seconds from the push to the session's begin, by the clocks of both machines."""
    stamp = run.read_json(f"{FOLDER}/{STAMP}") if run.has(f"{FOLDER}/{STAMP}") else {}
    try:
        began, pushed = (datetime.fromisoformat(str(at)) for at in (stamp.get("at"), sent.at))
        seconds = (began - pushed).total_seconds()
    except (TypeError, ValueError):  # an older session's stamp, or one time without its zone
        return None
    return seconds if seconds >= 0 else None  # clocks that differ, or a push taken over later


def stage_seconds(log: str) -> dict[str, float]:
    """Return the seconds of each stage by the times in ``medcot.log``; ``load`` is all before."""
    times = [datetime.strptime(at, _TIME) for at in _TIMES.findall(log)[:1]]
    found = [(time, "load") for time in times]
    found += [
        (datetime.strptime(at, _TIME), _STAGES.get(name, "")) for at, name in _STAGE.findall(log)
    ]
    seconds: dict[str, float] = {}
    for (begun, name), (ended, _) in pairwise(found):
        if name:
            seconds[name] = seconds.get(name, 0.0) + (ended - begun).total_seconds()
    return seconds


def _merge(planned: Sequence[StageEstimate]) -> dict[str, StageEstimate]:
    """Return the estimates by stage; what a log cannot tell from loading counts as that."""
    found: dict[str, StageEstimate] = {}
    for one in planned:
        name = "load" if one.stage in ("download", "quantize") else one.stage
        if old := found.get(name):
            one = StageEstimate(name, old.seconds + one.seconds, f"{old.source}; {one.source}")
        found[name] = one
    return found


def _row(name: str, seconds: float | None, planned: StageEstimate | None) -> str:
    measured = "not measured" if seconds is None else duration(seconds, "en")
    expected = duration(planned.seconds, "en") if planned else ""
    what = "download, load, quantize" if name == "load" else name
    return f"| {what} | {measured} | {expected} | {planned.source if planned else ''} |"
