"""No secret is in what is built, whatever packs or encodes it, and none is shown."""

from __future__ import annotations

import gzip
import json
import shutil
import string
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcot.credentials import Redactor, Secret, known_secrets
from medcot.errors import InputError
from medcot.kaggle.client.build import KernelOptions, build
from medcot.kaggle.client.bundle import (
    collect,
    scan_files,
)
from medcot.kaggle.client.sources import PROJECT, collect_package
from medcot.kaggle.session.job import JobSpec
from medcot.kaggle.session.secret_scan import find_secrets
from medcot.runs.directory import RunDirectory
from tests.support.kaggle_scripts import CONFIG, config_with

pytest_plugins = ["tests.support.kaggle_fixtures"]

TOKENS = st.text(
    string.ascii_letters + string.digits + "-_+/=. \"'\\äß", min_size=12, max_size=48
).map(lambda text: f"Zq7{text}J9")
PLACES = ("config", "notebook", "data", "package")


def plant(folder: Path, place: str, token: str) -> tuple[Path, Any]:
    """A small checkout and a config with ``token`` in one ``place``."""
    project = folder / "project"
    for name in ("medcot", "kaggle", "apps"):
        (project / name).mkdir(parents=True)
    shutil.copy(PROJECT / "kaggle" / "kernel.py", project / "kaggle")
    notebook = f"def cell():\n    login({token!r})\n" if place == "notebook" else "x = 1\n"
    (project / "apps" / "tutorial.py").write_text(notebook, encoding="utf-8")
    code = f"KEY = {token!r}\n" if place == "package" else "x = 1\n"
    (project / "medcot" / "__init__.py").write_text(code, encoding="utf-8")
    rows = folder / "rows.jsonl"
    row = {"Question": f"why {token}?" if place == "data" else "why?"}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    name = f"medcot {token}" if place == "config" else "medcot"
    return project, config_with(dataset=str(rows), wandb_job_type=name)


def everything_under(folder: Path) -> Mapping[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes().decode("utf-8", errors="replace") for path in paths}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(token=TOKENS, place=st.sampled_from(PLACES))
def test_a_planted_token_never_leaves_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, token: str, place: str
) -> None:
    with tempfile.TemporaryDirectory() as temporary, monkeypatch.context() as patch:
        patch.setenv("SOME_API_KEY", token)
        folder = Path(temporary)
        project, config = plant(folder, place, token)
        run = RunDirectory(folder / "run")
        with pytest.raises(InputError) as caught:
            build(config, run, "ann", KernelOptions(), project)
        assert token not in str(caught.value)
        assert "SOME_API_KEY" in str(caught.value)
        assert not run.path.exists()
        project, config = plant(folder / "clean", "nowhere", token)
        build(config, run, "ann", KernelOptions(code="dataset"), project)
        build(config, run, "ann", KernelOptions(), project)
        assert all(token not in text for text in everything_under(run.path).values())
        shown = Redactor(known_secrets())(f"error: HTTP 401 for {token} and {json.dumps(token)}")
        assert token not in shown
        assert "[hidden: SOME_API_KEY]" in shown


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_token_in_a_compressed_column_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    from pyarrow import table
    from pyarrow.parquet import write_table

    token = "correct-horse-battery-staple"
    rows = [f"row {number}: why?" for number in range(50)]
    file = tmp_path / "rows.parquet"
    write_table(table({"Question": [*rows, f"why {token}?"]}), file, compression=compression)
    monkeypatch.setenv("SOME_API_KEY", token)
    with pytest.raises(InputError, match=r"rows\.parquet, line 51.*the value of SOME_API_KEY"):
        build(
            config_with(dataset=str(file)), RunDirectory(tmp_path / "run"), "ann", KernelOptions()
        )
    file.write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match=r"rows\.parquet: not a Parquet file"):
        build(
            config_with(dataset=str(file)), RunDirectory(tmp_path / "run"), "ann", KernelOptions()
        )


def test_a_token_in_a_packed_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    token = "correct-horse-battery-staple"
    monkeypatch.setenv("SOME_API_KEY", token)
    row = json.dumps({"question": f"why {token}?"}).encode()
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([("question", pa.string())])) as writer:
        writer.write_table(pa.table({"question": [f"why {token}?"]}))
    packed = {
        "data/a.jsonl.gz": gzip.compress(row),
        "data/a.csv.zst": pa.compress(row, codec="zstd", asbytes=True),
        "data/a.csv": f"question\n{token}\n".encode("utf-16"),
        "data/set/a.arrow": stream.getvalue().to_pybytes(),
    }
    assert {match.where.split(",")[0] for match in scan_files(packed, known_secrets())} == {*packed}
    for name in ("data/a.jsonl.gz", "data/a.arrow"):
        with pytest.raises(InputError, match=f"{name}: not a"):
            scan_files({name: b"nothing of the kind"}, [])


def test_a_token_with_quotes_is_found_in_csv() -> None:
    secret = Secret("KEY", 'with"quotes"inside')
    assert find_secrets("rows.csv", '1,"with""quotes""inside"\n', [secret])


SHAPED = [
    "hf_" + "aB3dE6gH9jK2mN5pQ8sT",
    "KGAT_" + "0123456789abcdefABCD",
    "wandb_v1_" + "0123456789abcdefABCD",
    "sk-proj-" + "0123456789abcdefABCD",
    "ghp_" + "0123456789abcdefABCDEF",
    "AKIA" + "ABCDEFGHIJ012345",
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    'wandb.login(key="' + "0123456789abcdef0123456789abcdef01234567" + '")',
    'os.environ["MY_TOKEN"] = "' + "s3cretS3cretS3cret99" + '"',
    "Authorization: Bearer " + "0123456789abcdefABCDEF",
    "https://ann:" + "hunter22@example.org/",
]


@pytest.mark.parametrize("text", SHAPED)
def test_tokens_that_nobody_knows_are_found_by_their_shape(text: str) -> None:
    [match, *_] = find_secrets("cell", f"first line\n  {text}\n", [])
    assert match.where == "cell, line 2"
    assert text not in Redactor([])(f"log: {text}")


def test_our_own_files_look_like_no_secret() -> None:
    assert not [match for name, text in collect_package().items()
                for match in find_secrets(name, text, [])]  # fmt: skip


def test_secrets_are_known_from_accounts_files_and_netrc(scratch_home: Path) -> None:
    (scratch_home / ".kaggle").mkdir()
    (scratch_home / ".kaggle" / "kaggle.json").write_text(
        '{"username": "ann", "key": "kaggle-key-value"}', encoding="utf-8"
    )
    (scratch_home / ".netrc").write_text(
        "machine api.wandb.ai login user password netrc-password\n", encoding="utf-8"
    )
    (scratch_home / "huggingface").mkdir()
    (scratch_home / "huggingface" / "token").write_text("stored-hub-token", encoding="utf-8")
    environ = {
        "HOME": str(scratch_home),
        "HF_HOME": str(scratch_home / "huggingface"),
        "WANDB_API_KEY": "wandb-key-value",
        "SIGNING_KEY": "line one of many\nline two of many",
        "KEYBOARD": "not-a-secret-at-all",
        "MONKEY": "not-a-secret-at-all",
        "SHORT_KEY": "short",
    }
    values = {secret.value for secret in known_secrets(environ)}
    assert values == {
        "kaggle-key-value", "netrc-password", "stored-hub-token", "wandb-key-value",
        "line one of many", "line two of many",
    }  # fmt: skip


def test_a_secret_is_found_in_base64_at_any_offset() -> None:
    import base64

    secret = Secret("KEY", "correct-horse-battery")
    for offset in range(3):
        text = base64.b64encode(b"x" * offset + secret.value.encode() + b"tail").decode()
        assert find_secrets("file", text, [secret])
        assert text not in Redactor([secret])(text)


def test_a_secret_is_not_part_of_its_own_description() -> None:
    assert "hidden-value" not in repr(Secret("KEY", "hidden-value"))


def test_the_job_in_the_bundle_names_labels_and_never_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "a-value-that-stays-here")
    job = replace(JobSpec(), hub_labels=("MY_HUB_TOKEN",))
    text = collect(CONFIG, job).files["job.json"].decode()
    assert "MY_HUB_TOKEN" in text
    assert "a-value-that-stays-here" not in text
