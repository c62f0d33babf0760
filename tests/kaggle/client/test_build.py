"""Building the kernel folder: checked, small, and the same everywhere."""

from __future__ import annotations

import ast
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.credentials import known_secrets
from medcot.errors import InputError
from medcot.kaggle.client.account import connect
from medcot.kaggle.client.build import KernelOptions, build, find_owner
from medcot.kaggle.client.bundle import (
    Bundle,
    carry_data,
    checksum_of,
    collect,
    pack,
    read_script,
    write_script,
)
from medcot.kaggle.client.metadata import check_metadata, check_source, make_metadata, slug_of
from medcot.kaggle.client.retry import RetryPolicy
from medcot.kaggle.client.sources import STAYS, collect_package
from medcot.kaggle.session.job import JobSpec
from medcot.kaggle.session.requirements import requirements
from medcot.paths import CARRIED, PACKAGE, PROJECT
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, config_with
from tests.support.kaggle_server import KEY, USER, KaggleServer
from tests.support.paths import ROOT

pytest_plugins = ["tests.support.kaggle_fixtures"]
T4 = make_config("kaggle-t4")
STEPS = ("look", "install", "train", "publish", "finish")


def wheel_files(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def checkout(folder: Path) -> Path:
    """A copy of what a build takes from a checkout, with the litter that one collects."""
    shutil.copytree(PACKAGE, folder / "medcot", ignore=shutil.ignore_patterns(CARRIED))
    shutil.copytree(PROJECT / "kaggle", folder / "kaggle")
    (folder / "apps").mkdir()
    (folder / "apps" / "tutorial.py").write_text("import marimo\n", encoding="utf-8")
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (folder / "medcot" / ".notes.md").write_text(str(folder), encoding="utf-8")
    return folder


def test_two_builds_on_two_folders_are_identical(tmp_path: Path) -> None:
    scripts = []
    for name in ("one", "another place"):
        project = checkout(tmp_path / name)
        kernel = build(T4, RunDirectory(tmp_path / f"run {name}"), "ann", KernelOptions(), project)
        scripts.append({path.name: path.read_bytes() for path in kernel.folder.iterdir()})
    assert scripts[0] == scripts[1]
    assert set(scripts[0]) == {"kernel.py", "kernel-metadata.json"}


def test_criteria_of_a_judge_are_not_sent() -> None:
    with pytest.raises(InputError, match=r"--judge-criteria .*leave it out on Kaggle"):
        carry_data(make_config("kaggle-t4", {"judge_criteria": "criteria.jsonl"}))


def test_the_bundle_is_under_300_kb_without_data(tmp_path: Path) -> None:
    project = checkout(tmp_path / "project")
    for path in (project / "medcot" / "data" / "samples").glob("*.jsonl"):
        path.unlink()
    kernel = build(T4, RunDirectory(tmp_path / "run"), "ann", KernelOptions(), project)
    assert kernel.size < 300 * 1024


@pytest.mark.checkout
def test_the_bundle_carries_the_files_of_the_built_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [made] = tmp_path.glob("*.whl")
    theirs = wheel_files(made.read_bytes())
    ours = {name.removeprefix("package/"): text for name, text in collect_package().items()}
    stays = (*map(re.escape, STAYS), "runs/finished/[^/]+/adapter/")  # nothing that a kernel runs
    unsent = re.compile(rf"medcot/(?:{'|'.join(stays)})")
    package = {name for name in theirs if name.startswith("medcot/") and not unsent.match(name)}
    assert any(name.endswith("adapter_model.safetensors") for name in theirs)
    assert package == {name for name in ours if name.startswith("medcot/")}
    assert all(code_of(name, theirs[name]) == code_of(name, ours[name]) for name in package)


def code_of(name: str, content: bytes) -> bytes | tuple[str, list[int]]:
    """Return a file's content; of Python, its statements other than bare strings, with lines.

    JSON and TOML are read, so that spaces and comments do not count.
    """
    if name.endswith(".json"):
        return json.dumps(json.loads(content)).encode()
    if name.endswith(".toml"):
        return json.dumps(tomllib.loads(content.decode())).encode()
    if not name.endswith(".py"):
        return content
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not is_prose(one)]
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    return ast.dump(tree), lines


def is_prose(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return is_text or isinstance(statement, ast.Pass)


def test_the_unpacked_bundle_knows_the_requirements_without_an_installation(
    tmp_path: Path,
) -> None:
    for name, content in collect(CONFIG, JobSpec()).files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from medcot.kaggle.session.requirements import requirements\n"
        "print(*requirements(), sep='\\n')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "package")]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == requirements(PROJECT / "pyproject.toml")


def test_line_ends_of_a_windows_checkout_do_not_change_the_bundle(tmp_path: Path) -> None:
    project = checkout(tmp_path / "project")
    before = collect_package(project)
    for path in (project / "medcot").rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert collect_package(project) == before


def test_the_script_unpacks_to_the_bundle_and_notices_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = collect(CONFIG, JobSpec())
    script = write_script(bundle, pack(bundle), PROJECT / "kaggle" / "kernel.py")
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path / "unpacked"))
    monkeypatch.setenv("KAGGLE_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.path", list(sys.path))
    session = unpacked(script)
    assert capsys.readouterr().out == f"medcot bundle {bundle.checksum}\n"
    folder = tmp_path / "unpacked"
    assert {name: (folder / name).read_bytes() for name in bundle.files} == bundle.files
    assert session.session.bundle == bundle.checksum
    other = Bundle({**bundle.files, "package/medcot/__init__.py": b""})
    with pytest.raises(SystemExit, match="damaged"):
        unpacked(write_script(bundle, pack(other), PROJECT / "kaggle" / "kernel.py"))
    # Who copies the kernel and changes an option has a run of another checksum.
    unpacked(script.replace('"seed": 3407', '"seed": 7'))
    shown = capsys.readouterr().out
    changed = collect(config_with(seed=7), JobSpec())
    assert json.loads((folder / "config.json").read_text("utf-8"))["seed"] == 7
    assert bundle.checksum not in shown
    assert shown.endswith("this is a run of its own\n")
    assert changed.code_checksum == bundle.code_checksum


def unpacked(script: str) -> Any:
    space: dict[str, Any] = {"__name__": "kernel"}
    exec(compile(script, "kernel.py", "exec"), space)
    return space["unpack"]()


def test_a_script_begins_with_what_it_is_its_options_and_its_steps(tmp_path: Path) -> None:
    bundle = collect(T4, JobSpec())
    script = write_script(bundle, pack(bundle), PROJECT / "kaggle" / "kernel.py")
    body = ast.parse(script).body
    assert ast.get_docstring(ast.parse(script))
    names = [
        getattr(node, "name", None) or ast.unparse(node.targets[0])
        for node in body[1:-1]
        if isinstance(node, ast.Assign | ast.FunctionDef)
    ]
    assert names == ["OPTIONS", "SESSION", "run", "unpack", "BUNDLE", "CODE", "PACKED"]
    assert ast.literal_eval(body[1].value) == T4.model_dump(mode="json")  # type: ignore[attr-defined]
    steps = [ast.unparse(one) for one in body[3].body[1:]]  # type: ignore[attr-defined]
    assert steps == ["session = unpack()", *(f"session.{name}()" for name in STEPS)]
    assert body[5].lineno > 100 > body[3].end_lineno  # type: ignore[operator]


def test_a_notebook_has_the_same_contents_and_steps_as_the_script(
    tmp_path: Path, project: Path
) -> None:
    kernels = [
        build(
            CONFIG, RunDirectory(tmp_path / kind / str(n)), "ann", KernelOptions(kind=kind), project
        )
        for kind, n in (("script", 1), ("notebook", 1), ("notebook", 2))
    ]
    script, first, second = [
        (kernel.folder / kernel.metadata["code_file"]).read_text("utf-8") for kernel in kernels
    ]
    assert first == second
    assert read_script(first) == read_script(script)
    assert checksum_of(first) == checksum_of(script) == kernels[0].checksum
    assert kernels[1].metadata["kernel_type"] == "notebook"
    notebook = json.loads(first)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = ["".join(one["source"]) for one in notebook["cells"] if one["cell_type"] == "code"]
    steps = ["session = unpack()", *(f"session.{name}()" for name in (*STEPS, "show"))]
    assert code[-len(steps) :] == steps
    folded = [one["id"] for one in notebook["cells"] if one["metadata"].get("_kg_hide-input")]
    assert len(folded) == 2


def test_the_committed_template_says_what_to_do_and_takes_no_gpu(tmp_path: Path) -> None:
    metadata = json.loads((ROOT / "kaggle" / "kernel-metadata.json").read_text("utf-8"))
    assert (metadata["enable_gpu"], metadata["machine_shape"]) == (False, "")
    command = [sys.executable, "-I", "-S", str(ROOT / "kaggle" / metadata["code_file"])]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "python kaggle/push.py build --preset kaggle-t4" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}


def test_config_and_job_are_in_the_bundle_unchanged() -> None:
    bundle = collect(T4, JobSpec(session=3, previous="ann/medcot"))
    assert json.loads(bundle.files["config.json"]) == T4.model_dump(mode="json")
    job = json.loads(bundle.files["job.json"])
    assert (job["session"], job["previous"]) == (3, "ann/medcot")
    carried = {"apps/tutorial.py", "kaggle/constraints.txt"}
    assert carried <= set(bundle.files)
    assert all(path.name in str(bundle.files) for path in (PROJECT / "apps").glob("*.md"))


def test_every_setting_changes_the_checksum() -> None:
    bundles = [
        collect(CONFIG, JobSpec()),
        collect(config_with(seed=1), JobSpec()),
        collect(CONFIG, JobSpec(session=2)),
        collect(CONFIG, JobSpec(limit_s=3600)),
    ]
    assert len({bundle.checksum for bundle in bundles}) == len(bundles)


def test_local_files_travel_and_are_named_by_where_they_are_there(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(folder, encoding="utf-8")
    config = config_with(
        dataset=str(tmp_path / "a" / "rows.jsonl"),
        mcq=(str(tmp_path / "b" / "rows.jsonl"), str(tmp_path / "a" / "rows.jsonl"), "sample"),
    )
    files = collect(config, JobSpec()).files
    sent = json.loads(files["config.json"])
    assert sent["dataset"] == "rows.jsonl"
    assert sent["mcq"] == ["1-rows.jsonl", "rows.jsonl", "sample"]
    assert files["data/rows.jsonl"] == b"a"
    assert files["data/1-rows.jsonl"] == b"b"
    assert str(tmp_path) not in files["config.json"].decode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": "gone.jsonl"}, r"--dataset gone\.jsonl: no such file"),
        ({"mcq": ("no.csv",)}, "--mcq"),
    ],
)
def test_a_file_that_is_not_there_cannot_travel(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        collect(config_with(**changes), JobSpec())


def test_a_model_folder_cannot_travel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--model.*a folder on this machine"):
        collect(config_with(model=str(tmp_path)), JobSpec())


def test_a_large_bundle_goes_into_a_private_data_set(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(random.Random(0).randbytes(700_000))
    run = RunDirectory(tmp_path / "run")
    kernel = build(config_with(dataset=str(data)), run, "ann", KernelOptions())
    assert kernel.size < 10_000
    assert kernel.metadata["dataset_sources"] == ["ann/medcot-fine-tuning-bundle"]
    assert kernel.dataset is not None
    files = {path.name for path in kernel.dataset.iterdir()}
    made = collect(config_with(dataset=str(data)), kernel.job)
    assert files == {"dataset-metadata.json", made.file_name}


def test_the_committed_metadata_is_what_a_build_writes() -> None:
    committed = json.loads((ROOT / "kaggle" / "kernel-metadata.json").read_text("utf-8"))
    built = make_metadata("ann", "medcot fine-tuning", gpu=False, shape="")
    assert committed | {"id": built["id"]} == built


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"title": "four"}, "5 to 50 characters"),
        ({"title": "x" * 51}, "5 to 50 characters"),
        ({"title": "médecine"}, "ASCII"),
        ({"title": "medcot  two spaces"}, "single spaces"),
        ({"id": "ann/another"}, "the title's slug, 'medcot-fine-tuning'"),
        ({"id": "OWNER/medcot-fine-tuning"}, "--owner"),
        ({"id": "/medcot-fine-tuning"}, "--owner"),
        ({"is_private": "true"}, "is_private: found 'true'; expected true or false"),
        ({"language": "r"}, "language"),
        ({"kernel_type": "notebook"}, "kernel_type"),
        ({"enable_gpu": False}, "machine_shape"),
        ({"dataset_sources": ["nobody"]}, "OWNER/NAME"),
        ({"kernel_sources": ["a/b/3"]}, "OWNER/NAME"),
        ({"accelerator": "T4"}, "Kaggle ignores this field"),
    ],
)
def test_metadata_that_kaggle_would_misread_is_refused(changes: dict[str, Any], says: str) -> None:
    good = make_metadata("ann", "medcot fine-tuning", gpu=True, shape="NvidiaTeslaT4")
    with pytest.raises(InputError, match=says):
        check_metadata(good | changes)


def test_our_slug_is_the_clients_slug() -> None:
    from slugify import slugify

    for title in ("medcot fine-tuning", "Medcot RUN 2", "a1-b2 C3d4"):
        assert slug_of(title) == slugify(title)


def test_a_source_over_the_limit_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"2 KB.*--code dataset"):
        check_source("#" * 2048, limit=1024)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (KernelOptions(limit_s=13 * 3600), "--hours"),
        (KernelOptions(limit_s=60), "--hours"),
        (
            KernelOptions(limit_s=3600, margin_s=3000),
            "--margin: found 50; expected 1 minute to half",
        ),
        (KernelOptions(margin_s=0), "--margin: found 0"),
    ],
)
def test_impossible_sessions_are_refused(
    options: KernelOptions, says: str, run: RunDirectory
) -> None:
    with pytest.raises(InputError, match=says):
        build(CONFIG, run, "ann", options)
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("preset", "shape"),
    [("demo", ""), ("kaggle-t4", "NvidiaTeslaT4"), ("kaggle-t4x2", "NvidiaTeslaT4")],
)
def test_each_preset_gets_its_machine(
    preset: str, shape: str, run: RunDirectory, project: Path
) -> None:
    kernel = build(make_config(preset), run, "ann", KernelOptions(), project)
    assert kernel.metadata["machine_shape"] == shape
    assert kernel.metadata["enable_gpu"] is bool(shape)
    assert kernel.metadata["is_private"] is True


def test_a_run_directory_of_another_config_is_not_taken_over(
    run: RunDirectory, project: Path
) -> None:
    build(CONFIG, run, "ann", KernelOptions(), project)
    with pytest.raises(InputError, match="a run of another config"):
        build(config_with(seed=2), run, "ann", KernelOptions(), project)


def test_the_owner_comes_from_the_environment_or_kaggle_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="--owner"):
        find_owner()
    folder = Path.home() / ".kaggle"
    folder.mkdir()
    (folder / "kaggle.json").write_text('{"username": "bob", "key": "x"}', encoding="utf-8")
    assert find_owner() == "bob"
    monkeypatch.setenv("KAGGLE_USERNAME", "ann")
    assert find_owner() == "ann"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_a_login_file_is_read_in_the_encodings_that_windows_writes(
    encoding: str, kaggle: KaggleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    folder = Path.home() / ".kaggle"
    folder.mkdir(exist_ok=True)
    path = folder / "kaggle.json"
    path.write_text(json.dumps({"username": USER, "key": KEY}) + "\r\n", encoding=encoding)
    path.chmod(0o600)
    before = dict(os.environ)
    assert find_owner() == USER
    account = connect(RetryPolicy())
    assert account.user == USER
    assert account.quota() is not None
    assert KEY in [secret.value for secret in known_secrets()]
    assert dict(os.environ) == before


def test_folders_and_several_sets_are_carried_with_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.jsonl.gz", "b.csv", "README.md", ".hidden.csv"):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "more.tsv").write_text("question\tanswer\n")
    config = config_with(dataset=f"{folder} + {tmp_path / 'more.tsv'} + owner/name")
    sent, files = carry_data(config)
    assert sent.dataset == "set + more.tsv + owner/name"
    assert sorted(files) == ["data/more.tsv", "data/set/a.jsonl.gz", "data/set/b.csv"]


def test_folders_of_one_name_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "set").mkdir(parents=True)
        (tmp_path / place / "set" / f"{place}.csv").write_text(f"question\n{place}\n")
    first, second = tmp_path / "a" / "set", tmp_path / "b" / "set"
    sent, files = carry_data(config_with(dataset=f"{first} + {second} + {first}"))
    assert sent.dataset == "set + 1-set + set"
    assert sorted(files) == ["data/1-set/b.csv", "data/set/a.csv"]
    monkeypatch.chdir(first)
    sent, files = carry_data(config_with(dataset="."))
    assert (sent.dataset, sorted(files)) == ("set", ["data/set/a.csv"])


def test_push_py_and_kernel_py_do_not_shadow_the_client() -> None:
    """`kaggle/` beside the library: no package of that name, from the root or from inside."""
    assert not (ROOT / "kaggle" / "__init__.py").exists()
    code = "import importlib.util as u; print(u.find_spec('kaggle').origin)"
    for folder in (ROOT, ROOT / "kaggle"):
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
        origin = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert "site-packages" in origin.stdout


def test_the_kernel_needs_only_the_standard_library_before_the_bundle_is_open() -> None:
    tree = ast.parse((PROJECT / "kaggle" / "kernel.py").read_text(encoding="utf-8"))
    names = {
        alias.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= set(sys.stdlib_module_names)
