"""Finding out what machine this is: GPUs, RAM and cores within a container's limits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from medcot.cli import doctor
from medcot.cli.doctor import examine_machine
from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.hardware import machine as hardware
from medcot.hardware.gpu_specs import Gpu, recognise_gpu, supports_bf16
from medcot.hardware.host_memory import available_memory_gib
from medcot.hardware.machine import (
    Machine,
    available_cores,
    choose_preset,
    detect_machine,
    named_machine,
    read_gpus,
    usable_gpus,
)
from medcot.planning.model_specs import find_model_spec
from medcot.planning.plan import make_plan

TWO_T4 = (
    "0, GPU-aaaa1111, Tesla T4, 15095, 7.5\n"
    "1, GPU-bbbb2222, Tesla T4, 14000, 7.5\n"
)  # fmt: skip


def write_nvidia_smi(folder: Path, answer: str, code: int = 0) -> None:
    """A program of that name that answers like the driver's."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}END\nexit {code}\n")
    program.chmod(0o755)


def test_named_gpus_have_their_memory_and_generation() -> None:
    assert named_machine("T4").gpus[0].compute_capability == (7, 5)
    assert len(named_machine("2xT4").gpus) == 2
    assert 75 < named_machine("h100").gpus[0].memory_gib < 80
    assert named_machine("rtx-4090") == named_machine("RTX 4090")


@pytest.mark.parametrize(("name", "near"), [("H10", "H100"), ("4090", "RTX 4090"), ("A10", "A10")])
def test_an_unknown_gpu_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match="--gpu") as caught:
        named_machine(name)
    assert near in caught.value.needs


def test_gpus_are_read_from_the_drivers_listing() -> None:
    first, second = read_gpus(TWO_T4)
    assert first.memory_gib == pytest.approx(14.74, abs=0.01)
    assert second.memory_gib < first.memory_gib
    assert first.compute_capability == (7, 5)


@pytest.mark.parametrize(
    ("visible", "memory_mib"),
    [
        (None, [15095, 14000]),
        ("0,1", [15095, 14000]),
        ("1,0", [14000, 15095]),
        ("1", [14000]),
        ("GPU-bbbb", [14000]),
        ("", []),
        ("-1", []),
        ("0,7,1", [15095]),
    ],
)
def test_visible_devices_choose_and_order_gpus(visible: str | None, memory_mib: list[int]) -> None:
    found = [round(gpu.memory_gib * 1024) for gpu in read_gpus(TWO_T4, visible)]
    assert found == memory_mib


@pytest.mark.parametrize("noise", ["", "No devices were found\n", "0, GPU, T4, [N/A], 7.5\n"])
def test_a_driver_without_gpus_means_none(noise: str) -> None:
    assert read_gpus(noise) == ()


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 780),
        ("NVIDIA L40S", 285.5),
        ("NVIDIA L4", 95.4),
        ("NVIDIA A100-SXM4-40GB", 246.1),
        ("NVIDIA A100-SXM4-80GB", 246.1),
    ],
)
def test_gpus_are_recognised_by_their_whole_name(name: str, tflops: float) -> None:
    assert recognise_gpu(name, 40.0, (8, 0)).tflops_16bit == tflops


def test_an_unlisted_gpu_gets_its_generations_speed() -> None:
    assert recognise_gpu("NVIDIA L40", 44.0, (8, 9)).tflops_16bit == 100.0


def test_bfloat16_is_only_counted_where_the_hardware_has_it() -> None:
    assert not supports_bf16(named_machine("T4").gpus[0])
    assert supports_bf16(named_machine("A10G").gpus[0])


def machine_with(*gpus: Gpu) -> Machine:
    return Machine(gpus, 8, 32.0, "Linux")


@pytest.mark.parametrize(
    ("machine", "preset", "why"),
    [
        (machine_with(), "demo", "no GPU was found"),
        (machine_with(Gpu("Tesla P100", 15.9, (6, 0), 19)), "demo", "too old"),
        (machine_with(Gpu("GTX 1650", 3.8, (7, 5), 10)), "demo", "too little"),
        (machine_with(Gpu("RTX 3060", 11.6, (8, 6), 50)), "kaggle-t4", "RTX 3060"),
        (named_machine("T4"), "kaggle-t4", "Tesla T4"),
        (named_machine("2xT4"), "kaggle-t4", "2 x Tesla T4"),
        (named_machine("L4"), "gpu-24g", "22 GiB"),
        (named_machine("RTX 4090"), "gpu-24g", "4090"),
        (named_machine("H100"), "gpu-80g", "H100"),
        (named_machine("H200"), "gpu-80g", "H200"),
    ],
)
def test_auto_chooses_by_the_machine_and_says_why(machine: Machine, preset: str, why: str) -> None:
    chosen, reason = choose_preset(machine)
    assert chosen == preset
    assert why in str(reason)
    assert make_config(chosen).preset == preset


def test_a_mixed_machine_counts_only_gpus_that_are_new_enough() -> None:
    old, new = Gpu("Tesla P100", 15.9, (6, 0), 19), named_machine("T4").gpus[0]
    assert usable_gpus(machine_with(old, new)) == (new,)


def test_a_machine_without_gpu_is_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = detect_machine()
    assert machine.cpu_cores >= 1
    assert machine.memory_gib > 0.1
    assert machine.processes == 1


def test_gpus_are_found_by_the_drivers_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_nvidia_smi(tmp_path / "bin", TWO_T4)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        hardware, "torch_build", lambda toolkit: "12.8" if toolkit == "cuda" else None
    )
    assert [gpu.name for gpu in detect_machine().gpus] == ["Tesla T4", "Tesla T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert len(detect_machine().gpus) == 1


def test_a_gpu_that_torch_cannot_use_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_nvidia_smi(tmp_path / "bin", TWO_T4)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "torch_build", lambda _: None)
    machine = detect_machine()
    assert machine.gpus == ()
    preset, why = choose_preset(machine)
    assert (preset, str(why)) == ("demo", "Tesla T4: torch is a build without CUDA")


def test_a_failing_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_nvidia_smi(tmp_path / "bin", "NVIDIA-SMI has failed\n", code=9)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(hardware, "torch_build", lambda _: None)
    assert detect_machine().gpus == ()


def test_the_toolkit_that_torch_is_built_with_is_read_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "torch" / "__init__.py"
    place.parent.mkdir()
    version = place.with_name("version.py")
    monkeypatch.setattr(hardware, "find_spec", lambda _: SimpleNamespace(origin=str(place)))
    version.write_text("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482-0f2d60242'\n")
    assert (hardware.torch_build("cuda"), hardware.torch_build("hip")) == (None, "6.4.43482")
    version.write_text("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    assert (hardware.torch_build("cuda"), hardware.torch_build("hip")) == ("12.8", None)


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with an MI300X, as a ROCm build of torch describes it."""
    import torch

    for module in (hardware, doctor):
        monkeypatch.setattr(module, "torch_build", lambda kind: "6.4" if kind == "hip" else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "AMD Instinct MI300X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 4))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (191 * 2**30, 192 * 2**30))
    return detect_machine()


def test_an_amd_gpu_is_recognised_and_gets_what_is_not_nvidias(amd: Machine) -> None:
    (gpu,) = amd.gpus
    assert (gpu.name, gpu.memory_gib, gpu.rocm) == ("AMD Instinct MI300X", 191.0, True)
    assert supports_bf16(gpu)
    assert choose_preset(amd)[0] == "gpu-80g"
    with_packages = replace(amd, packages=("bitsandbytes", "unsloth"))
    config = make_config("gpu-80g", {"samples": 100})
    plan = make_plan(config, with_packages, find_model_spec(config), 100, 500.0, 900)
    chosen = (plan.device, plan.engine, plan.precision, plan.quantization)
    assert chosen == ("cuda", "transformers", "bf16", "none")
    assert any("never run on ROCm" in str(one) for one in plan.warnings)
    told = {one.name: one.detail for one in examine_machine(amd)}
    assert "built for ROCm, HIP 6.4" in told["torch"]
    assert "by ROCm; medcot was never run" in told["gpu"]


def test_a_macs_gpu_is_asked_for_and_trains_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(hardware.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    mac = detect_machine()
    assert mac.mps
    preset, why = choose_preset(mac)
    assert (preset, "Mac" in str(why)) == ("demo", True)
    config = make_config("demo", {})
    plan = make_plan(config, mac, find_model_spec(config), 50, 150.0, 200)
    assert (plan.device, plan.engine, plan.precision) == ("mps", "transformers", "fp32")
    assert any("never run on MPS" in str(one) for one in plan.warnings)
    assert "by MPS" in next(one.detail for one in examine_machine(mac) if one.name == "gpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert not detect_machine().mps, "an old system, or a virtual machine"


@pytest.mark.parametrize(("value", "processes"), [("4", 4), ("0", 1), ("many", 1), (None, 1)])
def test_the_launchers_processes_are_counted(
    value: str | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if value is not None:
        monkeypatch.setenv("WORLD_SIZE", value)
    assert detect_machine().processes == processes


# --- containers -------------------------------------------------------------------------------


def fake_proc(root: Path, available_kib: int, cgroup: str) -> Path:
    proc = root / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kib} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    return proc


def test_free_memory_is_the_systems_without_a_container(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, 8 * 2**20, "0::/\n")
    assert available_memory_gib(proc, tmp_path / "cgroup") == 8.0


def test_free_memory_respects_a_container_of_version_two(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, 64 * 2**20, "0::/pod/me\n")
    group = tmp_path / "cgroup" / "pod" / "me"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{4 * 2**30}\n")
    (group.parent / "memory.current").write_text(f"{2 * 2**30}\n")
    (group.parent / "memory.stat").write_text(f"anon 5\ninactive_file {2**30}\n")
    assert available_memory_gib(proc, tmp_path / "cgroup") == 3.0


def test_free_memory_respects_a_container_of_version_one(tmp_path: Path) -> None:
    # The path is the host's and not mounted; the limit stands at the root of the mount.
    proc = fake_proc(tmp_path, 64 * 2**20, "5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    group = tmp_path / "cgroup" / "memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{3 * 2**30}\n")
    (group / "memory.usage_in_bytes").write_text(f"{1 * 2**30}\n")
    assert available_memory_gib(proc, tmp_path / "cgroup") == 2.0


def test_cores_respect_a_containers_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores(tmp_path) == available_cores(tmp_path / "absent")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_heap_gives_freed_tensors_back_to_the_system() -> None:
    """Blocks of 8 MiB freed in between others come back only when they are mapped apart."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medcot.hardware.host_memory import keep_heap_small\n"
        "if sys.argv[1] == 'small' and not keep_heap_small(): sys.exit(77)\n"
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "libc.malloc.argtypes = [ctypes.c_size_t]\n"
        "def fill(size):\n"
        "    block = libc.malloc(size); ctypes.memset(block, 1, size); return block\n"
        "libc.free(fill(30 * 2**20))\n"  # raises glibc's own limit
        "blocks = [fill(8 * 2**20) for _ in range(20)]\n"
        "for block in blocks[:-1]: libc.free(block)\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(next(l.split()[1] for l in status.splitlines() if l.startswith('VmRSS')))\n"
    )
    sizes: dict[str, int] = {}
    for heap in ("usual", "small"):
        done = subprocess.run(
            [sys.executable, "-c", code, heap], capture_output=True, text=True, timeout=60
        )
        if done.returncode == 77:
            pytest.skip("the C library is not glibc")
        sizes[heap] = int(done.stdout)
    assert sizes["usual"] - sizes["small"] > 100 * 1024
