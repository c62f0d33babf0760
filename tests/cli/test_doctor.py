"""The doctor: what it finds, what it advises, and that it keeps secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medcot.catalog import Reason
from medcot.cli import doctor
from medcot.cli.doctor import Finding, describe_findings, examine_machine
from medcot.hardware.gpu_specs import Gpu
from medcot.hardware.machine import Machine, named_machine

LAPTOP = Machine((), 4, 12.0, "Linux x86_64")
SECRET = "hf_verySecretToken0123456789"


def finding(name: str, machine: Machine = LAPTOP) -> Finding:
    return next(one for one in examine_machine(machine) if one.name == name)


def test_a_machine_without_gpu_can_run_the_demo() -> None:
    assert finding("gpu").status == "missing"
    assert "demo" in finding("preset").detail
    assert finding("torch").status == "ok"
    assert finding("libraries").status == "ok"


def test_a_gpu_is_shown_with_what_it_computes_in() -> None:
    assert "no bf16" in finding("gpu", named_machine("T4")).detail
    assert "bf16" in finding("gpu", named_machine("L4")).detail


def test_an_old_gpu_is_a_problem_with_a_remedy() -> None:
    old = replace(LAPTOP, gpus=(Gpu("Tesla P100", 15.9, (6, 0), 19.0),))
    found = finding("gpu", old)
    assert found.status == "problem"
    assert found.remedy


def test_a_gpu_that_torch_cannot_use_is_a_problem() -> None:
    unused = replace(LAPTOP, unused_gpus=(Reason("preset_no_cuda", {"gpu": "Tesla T4"}),))
    assert finding("torch", unused).status == "problem"


def test_little_memory_is_a_problem() -> None:
    assert finding("memory", replace(LAPTOP, memory_gib=1.5)).status == "problem"


def test_a_full_disk_is_a_problem_only_for_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEMO_DISK_GIB", 10.0**9)
    monkeypatch.setattr(doctor, "HUB_MODEL_GIB", 10.0**10)
    assert finding("disk (runs)").status == "problem"
    assert finding("disk (hub cache)").status == "missing"


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path / "a" / "b"))
    assert finding("disk (medcot cache)").status == "ok"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("MEDCOT_CACHE", str(tmp_path / "cache"))
    assert finding("disk (medcot cache)").status == "problem"


def test_what_is_not_installed_is_named_with_its_loss_and_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(doctor.WITHOUT, "no-such-package", ("gpu", "nothing works"))
    found = finding("no-such-package")
    assert found.status == "missing"
    assert "nothing works" in found.detail
    assert "medcot[gpu]" in found.remedy


def test_a_library_outside_the_tried_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["pydantic>=999", "nobody-has-this", "unsloth; extra == 'gpu'"]
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    found = finding("libraries")
    assert found.status == "problem"
    assert "pydantic" in found.detail
    assert "nobody-has-this is not installed" in found.detail
    assert "unsloth" not in found.detail


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGINGFACE_TOKEN"])
def test_hub_tokens_are_found_by_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert finding("hub").status == "missing"
    monkeypatch.setenv(name, SECRET)
    assert finding("hub").status == "ok"


def test_offline_mode_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in finding("hub").detail


def test_no_secret_is_ever_shown(monkeypatch: pytest.MonkeyPatch, scratch_home: Path) -> None:
    names = ("HF_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY", "KAGGLE_API_TOKEN", "KAGGLE_KEY")
    for name in names:
        monkeypatch.setenv(name, SECRET)
    stored = scratch_home / ".kaggle" / "kaggle.json"
    stored.parent.mkdir()
    stored.write_text(json.dumps({"username": "me", "key": SECRET}))
    findings = examine_machine(LAPTOP)
    shown = "\n".join(describe_findings(findings)) + json.dumps([asdict(one) for one in findings])
    assert SECRET not in shown
    assert {one.name for one in findings if one.status == "ok"} >= {"W&B", "Kaggle"}


def test_the_last_line_counts_what_stands_in_the_way() -> None:
    fine = [Finding("a", "ok", "x"), Finding("b", "missing", "y", "do z")]
    assert describe_findings(fine)[-1].startswith("Ready")
    assert any("do z" in line for line in describe_findings(fine))
    assert describe_findings(fine)[1].startswith("optional ")  # nothing that is missing is needed
    bad = [*fine, Finding("c", "problem", "w")]
    assert describe_findings(bad)[-1].startswith("1 problem ")


def test_an_examination_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys\nfrom medcot.cli.doctor import examine_machine\nexamine_machine()\n"
        "assert not {'torch', 'transformers', 'wandb', 'kaggle'} & set(sys.modules)\n"
    )
    taken: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        taken.append(time.perf_counter() - started)
    assert min(taken) < 1.5
