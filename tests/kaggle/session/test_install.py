"""What a session installs: only what the image lacks, at the pins, and never another torch."""

from __future__ import annotations

import re
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from medcot.errors import RunFailed
from medcot.kaggle.session import install, steps
from medcot.kaggle.session.job import JobSpec, RunSettings
from tests.support.kaggle_scripts import Lines

pytest_plugins = ["tests.support.kaggle_fixtures"]


def test_only_what_is_absent_or_of_another_version_is_missing() -> None:
    wanted = [
        "pydantic>=2", "pydantic<2", "no-such-thing>=1",
        'another-thing; extra == "gpu"', 'windows-thing; sys_platform == "win32"',
        'third-thing; (sys_platform == "linux") and extra == "app"',
    ]  # fmt: skip
    linux = {"sys_platform": "linux"}
    assert install.find_missing(wanted, [], linux) == ["pydantic<2", "no-such-thing>=1"]
    assert "another-thing" in install.find_missing(wanted, ["gpu"], linux)
    assert "third-thing" in install.find_missing(wanted, ["app"], linux)


@pytest.mark.parametrize(("engine", "left_out"), [("auto", ["unsloth"]), ("unsloth", [])])
def test_a_copied_kernel_installs_the_engine_that_its_options_name(
    engine: str, left_out: list[str], tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def find_missing(*_: object, unused: list[str]) -> list[str]:
        asked.append(unused)
        return []

    monkeypatch.setattr(install, "find_missing", find_missing)
    settings = RunSettings("kaggle-t4", "someone/model", "off", 8, engine)
    job = JobSpec(unused=("unsloth",))
    steps.prepare(steps.Session(tmp_path, tmp_path, job, settings, "", 0.0, lines))
    assert asked == [left_out]
    assert "installing: nothing is missing" in lines


def test_constraints_keep_the_images_torch_and_pin_what_is_absent_or_too_old() -> None:
    text = install.make_constraints("torch==9.9\npydantic==0.1\nno-such-thing==1.2  # why\n\n")
    have = install.installed_version("torch")
    assert f"torch=={have}" in text
    assert "9.9" not in text
    assert "pydantic" not in text
    assert "pydantic==0.1\n" in install.make_constraints("pydantic==0.1\n", ["Pydantic<1"])
    # Somebody may need the newer one, and pip would take the newest of all.
    assert "pydantic==9.9\n" in install.make_constraints("pydantic==9.9\n")
    assert "no-such-thing==1.2\n" in text


def test_a_package_that_must_stay_is_never_handed_to_pip(lines: Lines) -> None:
    have = install.installed_version("torch")
    assert have is not None
    newer, older = f"torch<{have.partition('+')[0]}", "torch>=99,<100"
    assert install.find_missing([newer, older], []) == []
    install.check_kept([newer, "pydantic<1"], [], lines)
    assert f"the image's torch {have} is outside of {newer[5:]}: untested" in lines.text
    with pytest.raises(RunFailed, match=rf"image's torch {re.escape(have)} is outside of .*newer"):
        install.check_kept([older], [], lines)


def make_wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + (f"Requires-Dist: {needs}\n" if needs else ""),
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own to install into."""
    folder = tmp_path_factory.mktemp("image")
    venv.create(folder, with_pip=True, symlinks=True)
    return folder


def test_missing_packages_are_installed_at_their_pins_and_optional_ones_may_fail(
    image: Path, tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "1.1", "1.2"):
        make_wheel(tmp_path, "needed_thing", version)
    monkeypatch.setattr("sys.executable", str(image / "bin" / "python"))
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    wanted = ["needed-thing>=1", "unsloth==2026.10.7"]
    install.install(wanted, "needed-thing==1.1\n", tmp_path, lines)
    shown = [str(image / "bin" / "python"), "-c", "import needed_thing as n; print(n.VERSION)"]
    answer = subprocess.run(shown, capture_output=True, text=True, check=True)
    assert answer.stdout == "1.1\n"
    assert "installing: unsloth==2026.10.7 failed; the run continues without" in lines.text
    with pytest.raises(RunFailed, match=r"could not install absent-thing.*Internet"):
        install.install(["absent-thing"], "", tmp_path, lines)
    make_wheel(tmp_path, "greedy_thing", "1.0", needs="needed-thing>=9")
    pins = "needed-thing==1.1\n"
    with pytest.raises(RunFailed, match=r"could not install greedy-thing.*must keep.*torch"):
        install.install(["greedy-thing", "needed-thing"], pins, tmp_path, lines)
