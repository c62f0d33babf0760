"""Files of options as editors see them: the schema accepts what a run accepts, and no more."""

import json
import tomllib

import pytest
from jsonschema import Draft202012Validator

from medcot.cli.main import main
from medcot.config.file_schema import describe_file, write_options
from medcot.config.presets import PRESETS, make_config
from medcot.config.resolve import read_config_file
from medcot.config.schema import RunConfig, build_config
from medcot.errors import InputError
from medcot.pipeline.study import TRAINING_FIELDS

RUN = Draft202012Validator(describe_file())
STUDY = Draft202012Validator(describe_file(TRAINING_FIELDS))


def test_a_run_s_own_config_file_fits_the_schema():
    Draft202012Validator.check_schema(RUN.schema)
    for name in PRESETS:
        config = make_config(name, {"mcq": ("sample", "my exam.jsonl"), "dataset": ["a/b", "c/d"]})
        assert RUN.is_valid(json.loads(config.model_dump_json())), name
    assert set(RUN.schema["properties"]) == {*RunConfig.model_fields, "out", "resume", "json"}


@pytest.mark.parametrize(
    "text",
    [
        'preset = "auto"\nlearning-rate = 1e-3\nmcq = "sample"',
        "steps = 3\nepochs = 1.0",
        "epochs = 0.5",
        "rank = 0",
        "rank = 257",
        'rank = "wide"',
        "rnk = 3",
        "deterministic = true",
        "rank = true",
        "steps = true",
        "dropout = false",
        "resume = 'no'",
        "json = 1",
        "out = 3",
        "dataset = []",
        "columns = 'question=Frage, answer=Antwort'",
        "columns = 'question'",
        "columns = 'frage=question,answer=a'",
        "target-modules = 'q_proj, v_proj'",
        "target_modules = 'model.q_proj'",
        'schedule = "step"',
        "test_fraction = 0.0",
        'mcq = ["a.jsonl", "b.jsonl"]\ndataset = ["a.jsonl"]',
        "out = 'runs/a'\nresume = true",
    ],
)
def test_the_schema_refuses_what_a_run_refuses(tmp_path, text):
    file = tmp_path / "run.toml"
    file.write_text(text)
    try:
        read_config_file(file)
        accepted = True
    except InputError:
        accepted = False
    assert RUN.is_valid(tomllib.loads(text)) == accepted


def test_a_study_s_file_has_a_table_of_what_varies():
    study = 'preset = "demo"\nseeds = 3\n[vary]\nrank = [4, 16]\nlearning-rate = [5e-4, 1e-3]'
    assert STUDY.is_valid(tomllib.loads(study))
    assert not RUN.is_valid(tomllib.loads(study))
    assert STUDY.is_valid({"vary": {"thought": ["kept", "none"]}})
    assert not STUDY.is_valid({"vary": {"thought": ["train", "none"]}})
    for wrong in ("[vary]\nrank = [4]", "[vary]\nmodel = ['a/b', 'c/d']", "[vary]\nrank = [4, 0]"):
        assert not STUDY.is_valid(tomllib.loads(wrong)), wrong


def test_printed_options_are_a_file_that_gives_the_same_run():
    given = {"epochs": 2.0, "learning_rate": 1e-5, "mcq": ("a\\b.jsonl",), "model": 'x"\x7f\n诊'}
    config = make_config("gpu-24g", given)
    assert build_config(tomllib.loads("\n".join(write_options(config)))) == config


def test_the_command_prints_options_and_both_schemas(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["config", "--schema"])
    assert json.loads(capsys.readouterr().out) == RUN.schema
    main(["config", "--schema", "study"])
    assert json.loads(capsys.readouterr().out) == STUDY.schema
    main(["config", "--preset", "demo", "--rank", "8"])
    (tmp_path / "run.toml").write_text(capsys.readouterr().out)
    main(["config", "--config", "run.toml", "--json"])
    found = build_config(json.loads(capsys.readouterr().out))
    assert found == make_config("demo", {"rank": 8})
