"""Large data sets: stored in files, cached between runs, and the same as small ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medcot.config.presets import make_config
from medcot.data import case_list, dataset, readers, selection, store
from medcot.data.case_list import CaseSubset, list_case_ids
from medcot.data.cases import fingerprint_cases, validate_rows
from medcot.data.dataset import load_dataset, split_cases
from medcot.data.fast_tokenizer import load_fast_tokenizer
from medcot.data.hub import HubRows
from medcot.data.inspection import inspect_dataset
from medcot.data.readers import SourceRow
from medcot.data.selection import select_training_rows
from medcot.data.sources import read_file
from medcot.data.tokenization import TokenizedRow
from medcot.data.tokenized import StoredRows, list_row_ids, list_row_lengths, to_training_dataset
from medcot.engines.bundled_model import bundled_model
from medcot.errors import InputError
from tests.support.paths import REAL_CACHE, ROOT
from tests.support.training_run import Training, make_rows

ROWS = 300
TEXTS = {"set": [("e1", "Patient 7 has fever and a cough for many days. What is the cause?" * 2)]}


def case_row(number: int) -> dict[str, Any]:
    question = f"Patient {number} has fever and a cough for many days. What is the cause?" * 2
    row = {"Question": question, "Complex_CoT": f"Hm {number}. " * (number % 40 + 1)}
    row |= {"Response": f"Infection № {number}\n咳嗽", "specialty": ["lungs", ""][number % 2]}
    if number % 50 == 0:
        row["claims"] = [{"text": "c \ud83e", "states": [f"yes {number}"], "contradicts": []}]
    return row


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, with the bundled model in it."""
    folder = tmp_path / "cache"
    folder.mkdir()
    model = bundled_model()
    (folder / model.name).symlink_to(REAL_CACHE / model.name)
    monkeypatch.setenv("MEDCOT_CACHE", str(folder))
    return folder


@pytest.fixture
def large(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some hundred rows in a file, and bounds beyond which they count as many."""
    monkeypatch.setattr(case_list, "IN_MEMORY", 2_000)
    monkeypatch.setattr(selection, "CACHED_FROM", 20)
    path = own_cache.parent / "rows.jsonl"
    rows = [case_row(number) for number in range(ROWS)]
    rows += [case_row(3), case_row(4) | {"Response": "another"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def everything(path: Path, texts: Any = TEXTS, tokenizer: Any = None, **options: Any) -> Any:
    """All that a run takes from its data, as plain values; and the note of what was written."""
    given = {"samples": 10_000, "max_length": 250, "style": "tutorial"} | options
    config = make_config("demo", {"dataset": str(path), **given})
    data = load_dataset(config)
    split = split_cases(data.cases, config)
    at = {row_id: position for position, row_id in enumerate(list_case_ids(data.cases))}
    picked = CaseSubset(data.cases, (at[row_id] for row_id in split.train))
    tokenizer = tokenizer or load_fast_tokenizer(bundled_model())
    choice = select_training_rows(picked, data.fingerprint, texts, config, tokenizer)
    known = asdict(data) | {"cases": list(data.cases), "split": split}
    known |= {"dropped rows": choice.dropped, "overlaps": choice.overlaps}
    known |= {"rows": [(row.id, row.prompt_ids, row.completion_ids) for row in choice.rows]}
    assert list(list_row_ids(choice.rows)) == [row.id for row in choice.rows]
    assert list(list_row_lengths(choice.rows)) == [len(row) for row in choice.rows]
    return known, choice.note


def entries() -> list[str]:
    return sorted(path.name for path in store.entries_folder().glob("*"))


def test_in_memory_cold_warm_and_without_a_cache_all_is_the_same(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold, wrote = everything(large)
    made = entries()
    warm, silent = everything(large)
    assert [name.partition("-")[0] for name in made] == ["cases", "tokens"]
    assert entries() == made
    assert str(store.entries_folder()) in wrote
    assert not silent
    monkeypatch.setenv("MEDCOT_CACHE", str(large))  # a file: nothing can be written below it
    none, silent = everything(large, tokenizer=load_fast_tokenizer(REAL_CACHE / bundled_name()))
    assert not silent
    monkeypatch.setattr(case_list, "IN_MEMORY", 1 << 30)
    monkeypatch.setattr(selection, "CACHED_FROM", 1 << 30)
    plain, _ = everything(large, tokenizer=load_fast_tokenizer(REAL_CACHE / bundled_name()))
    assert plain["fingerprint"] == fingerprint_cases(plain["cases"])
    assert len(plain["cases"]) == ROWS
    assert len(plain["dropped"]) == 2
    assert plain["dropped rows"]
    assert plain["overlaps"]
    assert cold == warm == none == plain


def bundled_name() -> str:
    return next(path.name for path in REAL_CACHE.glob("smollm2-135m-*") if path.is_dir())


def test_whatever_changes_the_tokens_changes_the_entry(large: Path) -> None:
    everything(large)
    other = load_fast_tokenizer(bundled_model())
    other.backend.add_tokens(["cough"])
    changes: list[dict[str, Any]] = [
        {"max_length": 240},
        {"samples": 100},
        {"style": "chat"},
        {"test_fraction": 0.3},
        {"texts": {"set": [("e1", "Another question?")]}},
        {"tokenizer": other},
        {"language": "zh"},
    ]
    for change in changes:
        before = entries()
        everything(large, **change)
        made = set(entries()) - set(before)
        assert any(name.startswith("tokens-") for name in made), change
    before = entries()
    everything(large, rank=4, learning_rate=1e-3, seed=1, steps=2)
    assert entries() == before
    large.write_text(large.read_text().replace("Infection", "infection", 1))
    everything(large)
    assert len(entries()) == len(before) + 2


def spoil(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "flip":
        raw[len(raw) // 2] ^= 1
    elif how == "cut":
        del raw[len(raw) // 2 :]
    elif how == "more":
        raw += b"x"
    path.unlink()
    if how != "gone":
        path.write_bytes(raw)


@pytest.mark.parametrize("how", ["flip", "cut", "more", "gone"])
def test_a_spoilt_entry_is_noticed_and_made_again(large: Path, how: str) -> None:
    whole, _ = everything(large)
    made = entries()
    files = [path for name in made for path in sorted((store.entries_folder() / name).iterdir())]
    assert {path.name for path in files} >= {"seal.json", "facts.json", "tokens.arrow"}
    for path in files:
        spoil(path, how)
        assert everything(large)[0] == whole, path
        assert entries() == made
        assert store.find_entry(path.parent.name), path


def test_an_entry_of_another_shape_is_made_again(large: Path) -> None:
    whole, _ = everything(large)
    for name in entries():
        folder = store.entries_folder() / name
        (folder / "facts.json").write_text("{}")
        seal = json.loads((folder / "seal.json").read_text())
        seal["facts.json"] = store._checksum(folder / "facts.json")
        (folder / "seal.json").write_text(json.dumps(seal))
        assert everything(large)[0] == whole


def test_a_file_that_changes_while_it_is_read_is_not_kept(large: Path) -> None:
    config = make_config("demo", {"dataset": str(large)})
    key = dataset._key("file", ".jsonl", store.hash_file(large), "en")
    dataset._cached(key, lambda: validate_rows(read_file(large), "en"), lambda: False)
    assert not entries()
    assert load_dataset(config).cases


def test_two_processes_at_once_end_with_one_whole_entry(large: Path) -> None:
    code = f"""
import sys, hashlib
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.data.test_store import case_list, selection, everything
case_list.IN_MEMORY, selection.CACHED_FROM = 2_000, 20
known, _ = everything(Path({str(large)!r}))
print(hashlib.sha256(repr(known).encode("utf-8", "surrogatepass")).hexdigest())
"""
    command = [sys.executable, "-c", code]
    two = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in two]
    assert said[0] == said[1]
    assert len(said[0]) == 65
    assert [name.partition("-")[0] for name in entries()] == ["cases", "tokens"]
    assert all(store.find_entry(name) for name in entries())


def test_cases_stay_readable_after_their_entry_is_removed(large: Path) -> None:
    config = make_config("demo", {"dataset": str(large)})
    load_dataset(config)
    data = load_dataset(config)
    for name in entries():
        store.remove_entry(store.entries_folder() / name)
    assert not entries()
    assert data.cases[250].question.startswith("Patient 250 ")
    assert len(list(data.cases)) == ROWS


def test_the_cache_forgets_what_was_not_used_for_longest(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(name: str, age_s: float) -> None:
        scratch = store.ScratchFolder()
        (scratch.path / "file").write_bytes(bytes(10_000))
        assert scratch.become_entry(name)
        os.utime(store.entries_folder() / name, (time.time() - age_s,) * 2)

    keep("a-old", 300)
    keep("b-older", 400)
    killed = store.ScratchFolder()
    os.utime(killed.path, (time.time() - 2 * store.ABANDONED_S,) * 2)
    working = store.ScratchFolder()
    monkeypatch.setattr(store, "MAX_CACHE_GIB", 30_000 / 2**30)
    keep("c-new", 100)
    assert [name for name in entries() if name[0] != "."] == ["a-old", "c-new"]
    assert working.path.exists()
    assert not killed.path.exists()
    monkeypatch.setattr(store, "MAX_CACHE_GIB", 0.0)
    keep("d-newest", 0)
    assert [name for name in entries() if name[0] != "."] == ["d-newest"]


def test_a_scratch_that_is_not_kept_goes_away(own_cache: Path) -> None:
    scratch = store.ScratchFolder()
    assert scratch.path.exists()
    path = scratch.path
    del scratch
    assert not path.exists()


def test_rows_from_the_hub_are_kept_by_their_commit(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_list, "IN_MEMORY", 2_000)
    config = make_config("demo", {"dataset": "owner/name"})

    def gather(revision: str, count: int) -> list[Any]:
        rows = (
            SourceRow(number, f"row {number}", case_row(number)) for number in range(1, count + 1)
        )
        found = HubRows(rows, revision)
        monkeypatch.setattr(dataset, "load_hub_rows", lambda *_, **__: found)
        return list(dataset.read_source(config).found.cases)

    first = gather("a" * 40, 60)
    assert gather("a" * 40, 0) == first
    assert len(gather("b" * 40, 50)) == 50
    assert len(gather("", 40)) == 40
    assert len(entries()) == 2


def test_an_inspection_says_the_same_of_cases_on_disk(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("demo", {"dataset": str(large)})
    on_disk = inspect_dataset(config)
    monkeypatch.setattr(case_list, "IN_MEMORY", 1 << 30)
    assert inspect_dataset(config) == on_disk
    assert on_disk.specialties == {"lungs": ROWS // 2}


def test_a_full_disk_is_one_line_with_a_remedy(large: Path) -> None:
    import resource

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = (
        "from medcot.data import case_list; case_list.IN_MEMORY = 2000\n"
        "from medcot.config.presets import make_config\n"
        "from medcot.data.dataset import load_dataset\n"
        "from medcot.errors import RunFailed\n"
        f"try: load_dataset(make_config('demo', {{'dataset': {str(large)!r}}}))\n"
        "except RunFailed as error: print(error.stage, error.message, error.remedy)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=fill, check=True)
    assert done.stdout.startswith("data cannot write ")
    assert "MEDCOT_CACHE" in done.stdout


def peak_mib(work: str, count: int) -> float:
    """The highest resident memory of a process that does ``work`` with ``count`` rows."""
    code = f"import resource, sys\ncount = {count}\n{work}\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


LOAD = """
import json, tempfile
from medcot.config.presets import make_config
from medcot.data.dataset import load_dataset, split_cases
with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    for n in range(count):
        row = {"Question": f"Question {n}? " * 40, "Complex_CoT": f"t{n} " * 500, "Response": "r"}
        file.write(json.dumps(row) + "\\n")
    file.flush()
    config = make_config("demo", {"dataset": file.name, "samples": count})
    cases = load_dataset(config).cases
    assert len(split_cases(cases, config).train) > count / 2
    assert sum(len(case.thought) for case in cases) > 1000 * count
"""
TOKENS = """
from array import array
from medcot.data.tokenized import StoredRows
from medcot.data.tokenization import TokenizedRow
rows = StoredRows.write(
    TokenizedRow(str(n), array("i", [n] * 100), array("i", [n] * 700)) for n in range(count)
)
assert sum(len(row) for row in rows) == 800 * count
"""


@pytest.mark.parametrize(("work", "least"), [(LOAD, 8_000), (TOKENS, 4_000)])
def test_memory_grows_by_less_than_a_kilobyte_a_row(own_cache: Path, work: str, least: int) -> None:
    few, many = peak_mib(work, least), peak_mib(work, 4 * least)
    grown = (many - few) * 2**20 / (3 * least)
    assert grown < 1_000, f"{few:.0f} MiB at {least} rows, {many:.0f} MiB at four times as many"


def test_training_reads_rows_from_the_file_and_learns_the_same(
    own_cache: Path, tmp_path: Path, tiny_model: Path
) -> None:
    rows = make_rows(tiny_model)
    kept = StoredRows.write(rows)
    assert list(kept) == list(rows)
    assert kept[-3:] == rows[-3:]
    data = to_training_dataset(kept)
    assert data.cache_files[0]["filename"] == str(kept.path)
    assert list(data) == list(to_training_dataset(rows))
    plain, lazy = (
        Training(tmp_path / name, tiny_model, some, steps=3)
        for name, some in (("plain", rows), ("lazy", kept))
    )
    plain.fit()
    lazy.fit()
    assert plain.losses() == lazy.losses()
    adapters = [one.directory.adapter / "adapter_model.safetensors" for one in (plain, lazy)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_training_needs_an_entry_no_more_once_it_was_found_and_writes_nothing_into_it(
    large: Path, tiny_model: Path, tmp_path: Path
) -> None:
    everything(large)
    (name,) = (one for one in entries() if one.startswith("tokens-"))
    rows, _ = StoredRows.load(name, needs=()) or pytest.fail("no entry")
    data = to_training_dataset(rows)
    longer = data.map(lambda row: {"labels": row["labels"][:3]})
    assert len(longer[0]["labels"]) == 3
    assert store.find_entry(name)
    store.remove_entry(store.entries_folder() / name)
    assert list(to_training_dataset(rows)) == [row.as_row() for row in rows]


def test_a_cache_that_may_not_be_read_is_as_good_as_none(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = everything(large)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything, so be somebody else for a moment
            for folder in (*large.parents[:3], large.parent):
                folder.chmod(0o755)
            store.cache_folder().chmod(0)
            os.seteuid(65534)
        assert store.find_entry("tokens-x") is None
        assert store.ScratchFolder().path.exists()
    finally:
        os.seteuid(user)
        store.cache_folder().chmod(0o755)
    assert everything(large)[0] == plain


def test_batches_of_any_size_give_their_rows(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH_BYTES", 200_000)
    some = [TokenizedRow.of(str(n), [n], range(1 + (n % 300) * 10)) for n in range(700)]
    rows = StoredRows.write(some)
    assert [rows[at] for at in (699, 0, 255, 256, 300)] == [
        some[at] for at in (699, 0, 255, 256, 300)
    ]
    assert rows[-1] == some[-1]
    with pytest.raises(IndexError):
        rows[700]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_case_list_without_cases_has_the_fingerprint_of_none() -> None:
    cases = validate_rows(iter([]), "en").cases
    assert list(cases) == []
    assert cases.fingerprint == fingerprint_cases([])


@given(st.lists(JSON, max_size=3), st.data())
def test_a_broken_json_list_is_refused_where_the_standard_parser_refuses_it(
    values: list[Any], data: Any
) -> None:
    text = json.dumps(values, indent=1)
    at = data.draw(st.integers(0, len(text) - 1))
    text = text[:at] + data.draw(st.sampled_from(["", "x", ",", "]", '"', "\n{"])) + text[at + 1 :]
    try:
        json.loads(text)
        return
    except json.JSONDecodeError as error:
        expected = error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        path.write_text(text)
        with pytest.raises(InputError) as refusal:
            list(read_file(path))
    if text:
        assert f"{path}, line {expected.lineno}: " in str(refusal.value)
        assert f"{expected.msg} at column {expected.colno}" in str(refusal.value)


def test_a_repeated_key_in_a_json_list_is_named_with_its_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": "b7", "Question": "a", "Question": "b"}]')
    with pytest.raises(InputError, match=r"the key 'Question' twice .* begins 'id': 'b7'"):
        list(read_file(path))


def test_a_json_list_too_large_to_parse_at_once_names_the_other_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LARGEST_JSON", 1 << 20)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([case_row(number) for number in range(3_000)]))
    with pytest.raises(InputError, match=r"a JSON list of over 1 MiB; use \.jsonl"):
        list(read_file(path))


def test_a_parquet_file_of_one_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    texts = [f"{number} " * 500 for number in range(8_000)]
    pq.write_table(pa.table({"Question": texts}), path, compression="none", use_dictionary=False)
    before = pa.total_allocated_bytes()
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups == 1
    rows = read_file(path)
    assert next(rows).values["Question"] == texts[0]
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 3
    assert sum(1 for _ in rows) == 7_999


def test_a_row_that_spells_the_end_token_leaves_nothing_behind(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The end token of some models is no mark, but a word.
    monkeypatch.setattr("medcot.data.cases.find_flaw", lambda _: None)
    bad = [json.dumps(case_row(number) | {"Response": "<|im_end|>"}) for number in range(900, 910)]
    large.write_text(large.read_text() + "\n".join(bad))
    with pytest.raises(InputError, match="in the text"):
        everything(large)
    assert [name.partition("-")[0] for name in entries()] == ["cases"]
