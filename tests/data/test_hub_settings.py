"""The hub behind a mirror and a proxy, with a private token, switched off, and as a folder.

The real clients talk to a stand-in on the loopback, as the command line starts them. One process
meets it through an HTTP proxy under a mirror's address that no name server knows; a second one has
only the first one's cache.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medcot.config.presets import make_config
from medcot.data.snapshots import find_snapshot
from medcot.errors import InputError
from medcot.kaggle.client.bundle import carry_data
from tests.support.hub_server import GOOD_TOKEN, HubServer, Repo, play_scenes, serve_hub

pytestmark = pytest.mark.xdist_group("hub")

ROWS = [
    {"Question": f"What is wrong with patient {n}?", "Complex_CoT": "Hm.", "Response": f"R{n}."}
    for n in range(12)
]
FAULTY = {"Question": "And now?", "Complex_CoT": "Hm.", "Response": ""}


def parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


CARD = """---
configs:
- config_name: en
  data_files: data/en-*.parquet
- config_name: zh
  data_files: data/zh-*.parquet
---
"""
DATA = Repo(
    "org/cases",
    {
        "README.md": CARD.encode(),
        "data/en-00000-of-00001.parquet": parquet([*ROWS, FAULTY]),
        "data/zh-00000-of-00001.parquet": parquet(ROWS[:5]),
    },
    trouble="private",
)
CONFIG = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
MODEL = Repo(
    "org/tiny", {"config.json": json.dumps(CONFIG).encode()}, kind="model", trouble="private"
)
GATED = Repo("org/gated", MODEL.files, kind="model", trouble="gated")

CODE = """
import json, os, sys
from medcot.credentials import prepare_credentials
from medcot.network import prepare_network
prepare_credentials()
prepare_network()
from medcot.config.presets import make_config
from medcot.data.dataset import load_dataset
from medcot.data.hub import load_hub_rows
from medcot.engines.loading import locate
from medcot.errors import InputError, RunFailed
from medcot.planning.model_specs import find_model_spec

def cases(name, **options):
    data = load_dataset(make_config("demo", {"dataset": name, **options}))
    return [len(data.cases), len(data.dropped), data.revision, data.fingerprint, list(data.notes)]

def model(name, revision=""):
    spec = find_model_spec(make_config("demo", {"model": name, "model_revision": revision}))
    where = locate(name, revision)
    return [spec.hidden, where.commit or where.revision, where.source, where.cached]

def snapshot(kind, name):
    from huggingface_hub import snapshot_download
    return snapshot_download(name, repo_type=kind)

def outcome(function, *arguments):
    try:
        return globals()[function](*arguments)
    except (InputError, RunFailed) as error:
        return f"{type(error).__name__}: {error}"

scenes = json.loads(os.environ["SCENES"])
print(json.dumps({name: outcome(*scene) for name, scene in scenes.items()}))
"""
MIRROR = "http://mirror.invalid"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serve_hub(DATA, MODEL, GATED) as server:
        yield server


@pytest.fixture(scope="module")
def mirrored(hub: HubServer, home: Path) -> dict[str, Any]:
    """What was found under a mirror's address, which only the proxy leads to."""
    scenes = {
        "data": ["cases", "org/cases"],
        "model": ["model", "org/tiny"],
        "gated": ["model", "org/gated"],
        "data folder": ["snapshot", "dataset", "org/cases"],
        "model folder": ["snapshot", "model", "org/tiny"],
    }
    proxy = {"http_proxy": hub.url, "HTTP_PROXY": hub.url, "no_proxy": ""}
    return play_scenes(f" {MIRROR}/ ", CODE, home, scenes, HUGGINGFACE_TOKEN=GOOD_TOKEN, **proxy)


@pytest.fixture(scope="module")
def folders(mirrored: dict[str, Any]) -> tuple[str, str]:
    return mirrored["data folder"], mirrored["model folder"]


@pytest.fixture(scope="module")
def switched_off(mirrored: dict[str, Any], folders: tuple[str, str], home: Path) -> dict[str, Any]:
    """What is found in the cache alone, with ``HF_HUB_OFFLINE=1`` and no token."""
    data, model = folders
    scenes = {
        "data": ["cases", "org/cases"],
        "model": ["model", "org/tiny"],
        "other model": ["model", "org/other"],
        "data folder": ["cases", data],
        "data repository": ["cases", str(Path(data).parents[1])],
        "model folder": ["model", model],
        "model repository": ["model", str(Path(model).parents[1])],
    }
    return play_scenes("http://127.0.0.1:9", CODE, home, scenes, HF_HUB_OFFLINE="1")


def test_private_repositories_load_through_a_mirror_and_a_proxy(mirrored: dict[str, Any]) -> None:
    kept, dropped, revision, _, _ = mirrored["data"]
    assert (kept, dropped, revision) == (12, 1, DATA.commit)
    assert mirrored["model"] == [8, MODEL.commit, "org/tiny", False]


def test_without_its_token_a_private_repository_names_what_to_set(
    hub: HubServer, home: Path, tmp_path: Path
) -> None:
    scenes = {"data": ["cases", "org/cases"], "model": ["model", "org/tiny"]}
    scenes["gated"] = ["model", "org/gated"]
    found = play_scenes(hub.url, CODE, tmp_path, scenes)
    assert "org/cases: no such dataset on the hub" in found["data"]
    assert "--model org/tiny: no such model on the hub" in found["model"]
    for said in (found["data"], found["model"]):
        assert "or set HF_TOKEN or HUGGINGFACE_TOKEN" in said
    assert "(https://huggingface.co/org/gated)" in found["gated"]


def test_switched_off_the_cache_answers_with_the_commit(
    mirrored: dict[str, Any], switched_off: dict[str, Any]
) -> None:
    assert switched_off["data"][2:4] == mirrored["data"][2:4]
    assert switched_off["model"] == [8, MODEL.commit, "org/tiny", True]
    assert "HF_HUB_OFFLINE=1" in switched_off["other model"]


def test_a_folder_of_the_cache_is_the_set_and_the_model_at_its_commit(
    mirrored: dict[str, Any], switched_off: dict[str, Any], folders: tuple[str, str]
) -> None:
    kept, dropped, revision, _, notes = switched_off["data folder"]
    assert [kept, dropped, revision] == mirrored["data"][:3]
    assert f"org/cases at commit {DATA.commit[:12]}" in notes
    assert switched_off["data repository"][:3] == mirrored["data"][:3]
    for place in ("model folder", "model repository"):
        assert switched_off[place] == [8, MODEL.commit, folders[1], True]


def test_what_is_no_folder_of_the_cache_is_none(tmp_path: Path) -> None:
    commit = "a" * 40
    folder = tmp_path / "datasets--org--cases" / "snapshots" / commit
    assert find_snapshot(str(folder)) is None
    folder.mkdir(parents=True)
    found = find_snapshot(f"{folder}/")
    assert found is not None
    assert (found.kind, found.repository, found.commit) == ("dataset", "org/cases", commit)
    for other in (folder.parent, tmp_path, "org/cases", "x\0y", "sample"):
        assert find_snapshot(str(other)) is None


def test_a_folder_of_the_cache_is_not_sent_to_kaggle(tmp_path: Path) -> None:
    folder = tmp_path / "datasets--org--cases" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match="use org/cases, with --dataset-revision aaaaaaaaaaaa"):
        carry_data(make_config("demo", {"dataset": str(folder)}))
