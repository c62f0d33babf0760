"""Data sets from the hub: the real clients against a stand-in on the loopback.

The clients read their settings when they are imported, so three processes of their own do the
loading, each once for all tests here: with the hub there, with it gone, and switched off.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import GOOD_TOKEN, Repo, play_scenes, serve_hub

pytestmark = pytest.mark.xdist_group("hub")

ROWS = [
    {"Question": f"What is wrong with patient {n}?", "Complex_CoT": "Hm.", "Response": f"R{n}."}
    for n in range(40)
]
BAD = [ROWS[0], ROWS[1] | {"Response": ""}, ROWS[2], ROWS[0] | {"Response": "Other."}]
CARD = b"""---
configs:
- config_name: en
  data_files: medical_en.json
- config_name: zh
  data_files: medical_zh.json
---
"""
MCQ = [
    {"question": f"Which {n}?", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "answer": "y"}
    for n in range(5)
]
SUBJECTS = [
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
    "law",
]
MMLU_CARD = "---\nconfigs:\n" + "".join(
    f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}.parquet\n"
    for name in SUBJECTS
)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def mmlu(name: str) -> bytes:
    row = {"question": f"Which of {name}?", "subject": name, "choices": ["x", "y"], "answer": 1}
    return parquet([row])


MEDICAL = Repo(
    "org/medical",
    {
        "README.md": CARD,
        "medical_en.json": json.dumps(ROWS).encode(),
        "medical_zh.json": lines([row | {"Complex_CoT": "嗯。"} for row in ROWS]),
    },
)
TRAIN = "data/train-00000-of-00001.parquet"
REPOS = [
    MEDICAL,
    Repo("org/plain", {TRAIN: parquet(ROWS)}),
    Repo("org/faulty", {TRAIN: parquet(BAD)}),
    Repo("org/columns", {TRAIN: parquet([{"q": "a", "a": "b"}] * 3)}),
    Repo("org/testonly", {"data/test-00000-of-00001.parquet": parquet(ROWS)}),
    Repo("org/empty", {"README.md": b"# nothing yet"}),
    Repo("org/garbled", {TRAIN: b"no parquet at all"}),
    Repo("org/gated", {"README.md": CARD, "medical_en.json": b"[]"}, trouble="gated"),
    Repo("org/opened", {TRAIN: parquet(ROWS)}, trouble="gated"),
    Repo("org/busy", {TRAIN: parquet(ROWS)}, trouble="busy"),
    Repo("org/broken", {TRAIN: parquet(ROWS)}, trouble="broken"),
    Repo("org/cut", {TRAIN: parquet(ROWS)}, trouble="cut"),
    Repo("org/cutonce", {TRAIN: parquet(ROWS)}, trouble="cut once"),
    Repo("GBaker/MedQA-USMLE-4-options", {"phrases_no_exclude_test.jsonl": lines(MCQ)}),
    Repo(
        "cais/mmlu",
        {"README.md": f"{MMLU_CARD}---\n".encode()}
        | {f"{name}.parquet": mmlu(name) for name in SUBJECTS},
    ),
]

Options = dict[str, Any]
ONLINE: dict[str, Options] = {
    "public": {"dataset": "org/medical", "revision": ""},
    "Chinese": {"dataset": "org/medical", "language": "zh"},
    "commit": {"dataset": "org/medical", "revision": MEDICAL.commit},
    "no such revision": {"dataset": "org/medical", "revision": "v99"},
    "no such configuration": {"dataset": "org/medical", "config": "fr"},
    "only one configuration": {"dataset": "org/plain"},
    "asked for another": {"dataset": "org/plain", "config": "en"},
    "faulty rows": {"dataset": "org/faulty"},
    "other columns": {"dataset": "org/columns"},
    "no train split": {"dataset": "org/testonly"},
    "empty": {"dataset": "org/empty"},
    "garbled": {"dataset": "org/garbled"},
    "missing": {"dataset": "org/nowhere"},
    "gated": {"dataset": "org/gated"},
    "gated, other token": {"dataset": "org/gated", "HF_TOKEN": "hf_other"},
    "gated, alias": {"dataset": "org/opened", "HUGGINGFACE_TOKEN": GOOD_TOKEN},
    "refused token": {"dataset": "org/medical", "HF_TOKEN": "hf_bad"},
    "busy": {"dataset": "org/busy"},
    "broken": {"dataset": "org/broken"},
    "cut": {"dataset": "org/cut"},
    "cut once": {"dataset": "org/cutonce"},
    "medqa": {"mcq": "medqa"},
    "mmlu": {"mcq": "mmlu-medical"},
    "cmexam": {"mcq": "cmexam"},
    "inspected": {"inspect": "org/faulty"},
}
OFFLINE: dict[str, Options] = {
    "cached": {"dataset": "org/medical"},
    "cached commit": {"dataset": "org/medical", "revision": MEDICAL.commit[:12]},
    "cached, another revision": {"dataset": "org/medical", "revision": "v2"},
    "not cached": {"dataset": "org/other"},
}

CODE = """
import json, os, sys, time
from dataclasses import asdict
from medcot.config.presets import make_config
from medcot.data.dataset import load_dataset
from medcot.errors import InputError, RunFailed
from medcot.data.inspection import inspect_dataset
from medcot.data.mcq import load_questions

NAMES = {"revision": "dataset_revision", "config": "dataset_config"}

def outcome(options):
    for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        os.environ.pop(name, None)
        if name in options:
            os.environ[name] = options.pop(name)
    try:
        if "mcq" in options:
            found = load_questions(options["mcq"], "en")
            return {"questions": [asdict(question) for question in found.questions]}
        if "inspect" in options:
            return asdict(inspect_dataset(make_config("demo", {"dataset": options["inspect"]})))
        given = {NAMES.get(name, name): value for name, value in options.items()}
        data = load_dataset(make_config("demo", given))
        dropped = [{"id": row.id, "reason": str(row.reason)} for row in data.dropped]
        return asdict(data) | {"cases": [case.id for case in data.cases], "dropped": dropped}
    except (InputError, RunFailed) as error:
        return {"error": type(error).__name__, "message": str(error)}

def timed(options):
    start = time.monotonic()
    return outcome(options) | {"seconds": time.monotonic() - start}

print(json.dumps({name: timed(o) for name, o in json.loads(os.environ["SCENES"]).items()}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(home: Path) -> Iterator[dict[str, Any]]:
    """What became of each scene with the hub there."""
    with serve_hub(*REPOS) as hub:
        yield play_scenes(hub.url, CODE, home, ONLINE)


@pytest.fixture(scope="module")
def offline(home: Path, online: dict[str, Any]) -> dict[str, Any]:
    """What became of each scene when nothing listens where the hub was, its cache still there."""
    return play_scenes("http://127.0.0.1:9", CODE, home, OFFLINE)


def test_a_public_data_set_loads_at_a_recorded_commit(online: dict[str, Any]) -> None:
    for scene in ("public", "commit"):
        assert len(online[scene]["cases"]) == 40
        assert online[scene]["revision"] == MEDICAL.commit
    assert online["public"]["fingerprint"] == online["commit"]["fingerprint"]


def test_the_language_chooses_the_configuration(online: dict[str, Any]) -> None:
    assert online["Chinese"]["fingerprint"] != online["public"]["fingerprint"]
    assert len(online["Chinese"]["cases"]) == 40


def test_the_only_configuration_is_taken_with_a_note_unless_another_was_asked_for(
    online: dict[str, Any],
) -> None:
    found = online["only one configuration"]
    assert len(found["cases"]) == 40
    assert "configuration 'default', the only one of org/plain" in found["notes"]
    assert "set --dataset-config to one of default" in online["asked for another"]["message"]


def test_faulty_and_repeated_rows_are_left_out_and_listed(online: dict[str, Any]) -> None:
    found = online["faulty rows"]
    assert found["cases"] == ["row-1", "row-3"]
    assert found["dropped"] == [
        {"id": "row-2", "reason": "Response: empty text"},
        {"id": "row-4", "reason": "same question as row-1, with another answer"},
    ]
    (problem,) = online["inspected"]["problems"]
    assert problem == {
        "where": "org/faulty, row 2",
        "field": "Response",
        "what": "found empty text; expected text",
    }


ERRORS = [
    ("no such revision", "InputError", "no such revision; expected one of its branches"),
    ("no such configuration", "InputError", "'fr'; set --dataset-config to one of en, zh"),
    ("other columns", "InputError", "org/columns, columns, Question: found only the columns q, a"),
    ("no train split", "InputError", "train"),
    ("empty", "InputError", "doesn't contain any data files"),
    ("garbled", "InputError", "Parquet magic bytes not found"),
    ("missing", "InputError", "no such dataset on the hub; check owner/name"),
    ("gated", "InputError", "no token was found; set HF_TOKEN or HUGGINGFACE_TOKEN or"),
    (
        "gated, other token",
        "InputError",
        "request access at https://huggingface.co/datasets/org/gated",
    ),
    ("refused token", "InputError", "the hub refused the token"),
    ("busy", "RunFailed", "429 (too many requests). Wait 37 s"),
    ("broken", "RunFailed", "the hub answered 503"),
    ("cut", "RunFailed", "the connection to the hub broke"),
    ("cmexam", "InputError", "--mcq fzkuji/CMExam: no such dataset"),
]


@pytest.mark.parametrize(("scene", "error", "says"), ERRORS, ids=[case[0] for case in ERRORS])
def test_what_the_hub_refuses_is_said_in_one_line(
    online: dict[str, Any], scene: str, error: str, says: str
) -> None:
    found = online[scene]
    assert (found["error"], "\n" in found["message"]) == (error, False)
    assert says in found["message"]
    assert ONLINE[scene].get("dataset", "--mcq") in found["message"]


def test_the_alias_of_the_token_opens_a_gated_data_set(online: dict[str, Any]) -> None:
    assert len(online["gated, alias"]["cases"]) == 40


def test_a_connection_cut_once_is_taken_up_again(online: dict[str, Any]) -> None:
    assert len(online["cut once"]["cases"]) == 40


def test_known_question_sets_load_from_their_repositories(online: dict[str, Any]) -> None:
    questions = online["medqa"]["questions"]
    assert [q["id"] for q in questions] == [f"medqa-{n}" for n in range(1, 6)]
    assert {(q["answer"], q["source"]) for q in questions} == {("B", "medqa")}
    asked = [q["question"] for q in online["mmlu"]["questions"]]
    assert len(asked) == 6
    assert "Which of law?" not in asked


def test_without_a_network_the_demo_is_named_and_nothing_is_substituted(
    offline: dict[str, Any],
) -> None:
    found = offline["not cached"]
    assert found["error"] == "InputError"
    assert "org/other: no connection to the hub" in found["message"]
    assert "--preset demo" in found["message"]
    assert found["seconds"] < 5


def test_without_a_network_the_cached_commit_is_used_and_a_note_says_so(
    online: dict[str, Any], offline: dict[str, Any]
) -> None:
    for scene in ("cached", "cached commit"):
        found = offline[scene]
        assert found["fingerprint"] == online["public"]["fingerprint"]
        assert found["revision"] == MEDICAL.commit
        assert any("is taken from the cache" in note for note in found["notes"])
    assert "to load revision v2" in offline["cached, another revision"]["message"]


def test_a_hub_switched_off_is_told_from_one_out_of_reach(home: Path) -> None:
    scenes = {"off": {"dataset": "org/other"}}
    found = play_scenes("http://127.0.0.1:9", CODE, home, scenes, HF_HUB_OFFLINE="1")["off"]
    assert "with HF_HUB_OFFLINE=1" in found["message"]
