from pathlib import Path

import pytest

from medcot.config.resolve import read_config_file, resolve
from medcot.errors import InputError
from medcot.paths import cache_folder


def choose_demo():
    return "demo", "there is no GPU"


def resolve_with(tmp_path: Path, options=None, environment=None, toml=None):
    path = None
    if toml is not None:
        path = tmp_path / "run.toml"
        path.write_text(toml)
    return resolve(options or {}, choose_demo, environment or {}, path)


def test_an_option_beats_the_environment_beats_the_file_beats_the_preset(tmp_path):
    toml = "rank = 4\nalpha = 4\nseed = 4\nsteps = 3"
    environment = {"MEDCOT_RANK": "5", "MEDCOT_ALPHA": "5", "MEDCOT_SEED": "5"}
    config = resolve_with(tmp_path, {"rank": 6, "alpha": 6}, environment, toml).config
    assert (config.rank, config.alpha, config.seed, config.steps, config.batch) == (6, 6, 5, 3, 4)


def test_auto_says_which_preset_and_why(tmp_path):
    resolved = resolve_with(tmp_path)
    assert resolved.config.preset == "demo"
    assert resolved.preset_reason == "there is no GPU"


def test_a_preset_in_the_file_is_overridden_by_the_option(tmp_path):
    resolved = resolve_with(tmp_path, {"preset": "tutorial"}, toml='preset = "demo"')
    assert resolved.config.preset == "tutorial"
    assert resolved.preset_reason == ""


def test_epochs_on_the_command_line_replace_steps_of_the_file(tmp_path):
    config = resolve_with(tmp_path, {"epochs": 2.0}, toml="steps = 9").config
    assert (config.steps, config.epochs) == (None, 2.0)


def test_a_saved_config_gives_the_same_config(tmp_path):
    config = resolve_with(tmp_path, {"preset": "gpu-24g", "rank": 8, "mcq": ("sample",)}).config
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert resolve({}, choose_demo, {}, path).config == config


def test_mcq_in_the_environment_is_a_list_of_paths(tmp_path):
    config = resolve_with(tmp_path, environment={"MEDCOT_MCQ": "a.jsonl:sample"}).config
    assert config.mcq == ("a.jsonl", "sample")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("off", False)])
def test_a_flag_in_the_environment_is_a_word(tmp_path, text, value):
    config = resolve_with(tmp_path, environment={"MEDCOT_DETERMINISTIC": text}).config
    assert config.deterministic is value


def test_out_and_resume_may_come_from_anywhere_but_are_not_part_of_the_config(tmp_path):
    resolved = resolve_with(tmp_path, environment={"MEDCOT_RESUME": "1"}, toml='out = "there"')
    assert resolved.out == Path("there")
    assert resolved.resume
    assert "out" not in type(resolved.config).model_fields


@pytest.mark.parametrize(
    ("environment", "toml", "words"),
    [
        ({"MEDCOT_RNK": "4"}, None, ["MEDCOT_RNK", "MEDCOT_RANK"]),
        ({"MEDCOT_RANK": "many"}, None, ["MEDCOT_RANK", "'many'", "1 to 256"]),
        ({"MEDCOT_DETERMINISTIC": "perhaps"}, None, ["MEDCOT_DETERMINISTIC", "true or false"]),
        ({"MEDCOT_LANGUAGE": "fr"}, None, ["MEDCOT_LANGUAGE", "en, zh"]),
        ({"MEDCOT_PRESET": "demoo"}, None, ["MEDCOT_PRESET", "'demo'"]),
        ({}, "rnk = 4", ["run.toml", "'rnk'", "'rank'"]),
        ({}, "rank = 'x'", ["run.toml, rank", "1 to 256"]),
        ({}, "rank = ", ["run.toml", "not valid TOML"]),
        ({"MEDCOT_RESUME": "perhaps"}, None, ["MEDCOT_RESUME", "'perhaps'", "true or false"]),
        ({}, "resume = 'no'", ["run.toml, resume", "'no'", "true or false"]),
        ({}, "rank = true", ["run.toml, rank", "True", "1 to 256"]),
        ({}, "steps = 3\nepochs = 2.0", ["run.toml", "either steps or epochs"]),
        ({}, 'preset = "demoo"', ["run.toml, preset", "'demo'"]),
    ],
)
def test_a_wrong_value_names_its_source(tmp_path, environment, toml, words):
    with pytest.raises(InputError) as caught:
        resolve_with(tmp_path, {}, environment, toml)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_before_a_config_is_no_part_of_it(tmp_path):
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfrank = 8\n")
    assert read_config_file(path) == {"rank": 8}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("deep.toml", b"rank = " + b"[" * 100_000, "nested too deeply"),
        ("large.toml", b"#" * 2_000_000, "a larger file"),
        ("wide.toml", "rank = 8".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_hostile_config_is_refused_in_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_config_file(path)


def test_a_config_that_never_ends_is_not_read():
    with pytest.raises(InputError, match="not a regular file"):
        read_config_file(Path("/dev/zero"))


def test_the_users_folder_stands_for_a_tilde_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDCOT_CACHE", "~/cache")
    file = tmp_path / "options.toml"
    file.write_text('preset = "demo"\nout = "~/run"\nmodel = "~/model"\n')
    environment = {"MEDCOT_MCQ": "~/exam.jsonl", "MEDCOT_DATASET": "~nobody-of-this-name/x.jsonl"}
    found = resolve({}, lambda: ("demo", ""), environment, file)
    assert (found.out, found.config.model) == (tmp_path / "run", str(tmp_path / "model"))
    assert found.config.mcq == (str(tmp_path / "exam.jsonl"),)
    assert found.config.dataset == "~nobody-of-this-name/x.jsonl"
    assert cache_folder() == tmp_path / "cache"
