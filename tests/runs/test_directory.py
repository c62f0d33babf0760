import json

import pytest

from medcot.config.presets import make_config
from medcot.errors import InputError
from medcot.runs.directory import RunDirectory, newest_run


@pytest.fixture
def directory(tmp_path):
    made = RunDirectory(tmp_path / "run")
    made.create(make_config("demo", {"rank": 4}))
    return made


def test_the_config_reads_back(directory):
    assert directory.config() == make_config("demo", {"rank": 4})


def test_a_run_is_never_overwritten(directory):
    with pytest.raises(InputError, match="--resume"):
        directory.create(make_config("demo"))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        RunDirectory(tmp_path).create(make_config("demo"))


def test_a_line_cut_by_a_kill_is_passed_over_and_the_next_one_is_whole(directory):
    directory.append(directory.events, {"step": 1})
    with directory.events.open("a") as file:
        file.write('{"step": 2, "lo')
    directory.append(directory.events, {"step": 3})
    assert [row["step"] for row in directory.rows(directory.events)] == [1, 3]


def test_a_failed_write_leaves_the_old_file(directory):
    directory.write_json("report.json", {"a": 1})
    with pytest.raises(TypeError):
        directory.write_json("report.json", {"a": object()})
    assert directory.read_json("report.json") == {"a": 1}
    assert not list(directory.path.glob(".report*"))


def test_events_after_a_checkpoint_are_forgotten(directory):
    for step in (1, 2, 3):
        directory.append(directory.events, {"step": step})
    directory.truncate_events(2)
    assert [row["step"] for row in directory.rows(directory.events)] == [1, 2]


def test_an_unfinished_checkpoint_is_not_resumed_from(directory):
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = directory.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "trainer_state.json").write_text("{}")
    assert directory.last_checkpoint().name == "checkpoint-10"


def test_what_a_killed_process_was_writing_is_removed(directory):
    checkpoint = directory.checkpoints / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    kept = {checkpoint / "trainer_state.json", checkpoint / "manifest.json"}
    for one in kept | {checkpoint / ".manifest.json", directory.path / ".report.md.k2x8_a1b"}:
        one.write_text("{}")
    directory.remove_unfinished()
    assert kept == set(checkpoint.iterdir())
    assert not list(directory.path.glob(".report*"))


def test_a_damaged_config_names_the_file(directory):
    (directory.path / "config.json").write_text('{"rank": ')
    with pytest.raises(InputError, match=r"config\.json"):
        directory.config()


def test_the_newest_run_is_found(directory, tmp_path):
    assert newest_run(tmp_path).name == "run"
    assert newest_run(tmp_path / "nothing") is None


def test_chinese_is_written_as_itself(directory):
    directory.write_json("x.json", {"问": "答"})
    text = (directory.path / "x.json").read_text(encoding="utf-8")
    assert "问" in text
    assert json.loads(text) == {"问": "答"}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_row_may_hold_any_line_separator(directory, separator):
    path = directory.evaluation("before")
    rows = [{"id": f"{n}", "output": f"one{separator}two"} for n in range(3)]
    for row in rows:
        directory.append(path, row)
    assert list(directory.rows(path)) == rows
