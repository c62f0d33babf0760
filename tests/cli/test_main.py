"""Commands as a person types them: what they print, and one line for every mistake."""

import json
import resource
import subprocess
import sys

import pytest

from medcot.cli.main import main
from medcot.cli.run_choice import run_to_ask

GOOD = {"Question": "Why?", "Complex_CoT": "Because.", "Response": "So."}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def call(capfd, *arguments):
    """Exit code, stdout and stderr of a command."""
    try:
        main(list(arguments))
    except SystemExit as end:
        return (end.code or 0, *capfd.readouterr())
    return (0, *capfd.readouterr())


def write_files(folder):
    """The files that the malformed commands name."""
    rows = json.dumps(GOOD) + "\n"
    files = {
        "bad.toml": "rank = ",
        "unknown.toml": "rnk = 3",
        "refused.toml": "rank = 999",
        "twice.toml": "steps = 3\nepochs = 1.0",
        "list.json": "[1]",
        "empty.jsonl": "",
        "broken.jsonl": rows + '{"Question": ',
        "lacking.jsonl": json.dumps({"Question": "Why?"}) + "\n",
        "blank.jsonl": json.dumps(GOOD | {"Response": " "}) + "\n",
        "number.jsonl": json.dumps(GOOD | {"Response": 3}) + "\n",
        "tagged.jsonl": json.dumps(GOOD | {"Complex_CoT": "a </think> b"}) + "\n",
        "one.jsonl": rows,
        "table.csv": "Question,Answer\na,b\n",
        "text.txt": "hello",
        "mcq.jsonl": json.dumps(
            {"id": "1", "question": "?", "options": {"A": "x", "B": "y"}, "answer_idx": "C"}
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "latin.jsonl").write_bytes(rows.replace("Why", "Où").encode("latin-1"))
    (folder / "folder").mkdir()
    (folder / "norun").mkdir()
    (folder / "norun" / "config.json").write_text("{")
    (folder / "used").mkdir()
    (folder / "used" / "letter.doc").write_text("dear")


MALFORMED = [
    (["run", "--out", "x" * 300], ["--out", "300 characters is too long"]),
    (["run", "--out", "x/" * 3000], ["--out", "too long"]),
    (["run", "--resume", "--out", "x" * 300], ["--out", "too long"]),
    (["run", "--resume"], ["--resume", "no run found in runs/", "without --resume"]),
    (["train", "--resume", "--out", "folder"], ["--resume", "no run in folder", "--out DIR"]),
    (["run", "--out", "a\0b"], ["--out", "U+0000"]),
    (["run", "--out", "one.jsonl/run"], ["--out one.jsonl/run", "not a folder"]),
    (["report", "--run", "x" * 300], ["--run", "too long"]),
    (["ask", "--run", "x" * 300, "Why?"], ["--run", "too long"]),
    (["plan", "--config", "x" * 300], ["--config", "too long"]),
    (["plan", "--config", "a\0b"], ["--config", "U+0000"]),
    (["plan", "--preset", "demo", "--model", "x" * 300], ["--model", "maximum length"]),
    (["data", "x/" * 3000 + "y.csv"], ["y.csv", "too long"]),
    (["run", "--rank", "0"], ["--rank", "'0'|0", "1 to 256"]),
    (["run", "--rank", "many"], ["--rank", "many", "1 to 256"]),
    (["run", "--rank", "2.5"], ["--rank", "2.5", "whole number"]),
    (["run", "--alpha", "-1"], ["--alpha", "-1", "1 to 512"]),
    (["run", "--steps", "-1"], ["--steps", "-1"]),
    (["run", "--steps", "3", "--epochs", "1"], ["either steps or epochs"]),
    (["run", "--epochs", "0"], ["--epochs", "above 0"]),
    (["run", "--learning-rate", "0"], ["--learning-rate", "above 0"]),
    (["run", "--learning-rate", "nan"], ["--learning-rate", "nan"]),
    (["run", "--samples", "0"], ["--samples", "from 1"]),
    (["run", "--batch", "x"], ["--batch", "x"]),
    (["run", "--max-length", "12"], ["--max-length", "64"]),
    (["run", "--seed", "-3"], ["--seed", "-3"]),
    (["run", "--language", "fr"], ["--language", "fr", "en, zh"]),
    (["run", "--preset", "demoo"], ["--preset", "demoo", "'demo'"]),
    (["run", "--wandb", "maybe"], ["--wandb", "online, offline, off"]),
    (["run", "--rnk", "3"], ["--rnk", "--rank"]),
    (["run", "--rank"], ["--rank", "argument"]),
    (["run", "extra"], ["extra"]),
    (["rum"], ["rum", "run"]),
    (["run", "--config", "nothing.toml"], ["--config nothing.toml", "readable"]),
    (["run", "--config", "bad.toml"], ["bad.toml", "not valid TOML"]),
    (["run", "--config", "unknown.toml"], ["unknown.toml", "'rnk'", "'rank'"]),
    (["run", "--config", "refused.toml"], ["refused.toml, rank", "999", "1 to 256"]),
    (["run", "--config", "twice.toml"], ["twice.toml", "either steps or epochs"]),
    (["run", "--config", "list.json"], ["list.json", "table of options"]),
    (["run", "--dataset", "nothing.jsonl"], ["nothing.jsonl"]),
    (["run", "--dataset", "text.txt"], ["text.txt", ".jsonl"]),
    (["run", "--dataset", "folder"], ["folder"]),
    (["run", "--dataset", "empty.jsonl"], ["empty.jsonl"]),
    (["run", "--dataset", "broken.jsonl"], ["broken.jsonl", "line 2"]),
    (["run", "--dataset", "lacking.jsonl"], ["lacking.jsonl", "Complex_CoT"]),
    (["run", "--dataset", "blank.jsonl"], ["blank.jsonl", "line 1", "Response"]),
    (["run", "--dataset", "number.jsonl"], ["number.jsonl", "line 1", "Response"]),
    (["run", "--dataset", "tagged.jsonl"], ["tagged.jsonl", "line 1", "Complex_CoT"]),
    (["run", "--dataset", "latin.jsonl"], ["latin.jsonl", "UTF-8"]),
    (["run", "--dataset", "table.csv"], ["table.csv"]),
    (["run", "--dataset", "one.jsonl"], ["one.jsonl", "--test-fraction"]),
    (["run", "--mcq", "mcq.jsonl"], ["mcq.jsonl", "line 1", "answer_idx"]),
    (["run", "--mcq", "nothing.jsonl"], ["nothing.jsonl"]),
    (["run", "--model", "folder"], ["--model", "folder"]),
    (["run", "--model", "no such model"], ["--model", "no such model"]),
    (["run", "--engine", "unsloth"], ["--engine", "unsloth", "--engine transformers"]),
    (["run", "--quantization", "4bit"], ["--quantization", "4bit"]),
    (["run", "--precision", "fp16"], ["--precision", "fp16", "fp32"]),
    (["run", "--optimizer", "adamw_8bit"], ["--optimizer", "adamw_8bit"]),
    (["run", "--out", "used"], ["--out", "used", "empty"]),
    (["plan", "--gpu", "T5"], ["--gpu", "T5", "T4"]),
    (["ask", "--run", "nowhere", "Why?"], ["--run", "nowhere"]),
    (["report", "--run", "norun"], ["norun/config.json", "JSON"]),
    (["evaluate", "--run", "folder"], ["--run", "folder"]),
    (["data", "text.txt"], ["text.txt"]),
    (["data", "sample", "--language", "fr"], ["--language", "fr"]),
]


@pytest.mark.parametrize(("arguments", "words"), MALFORMED, ids=[" ".join(a) for a, _ in MALFORMED])
def test_a_mistake_is_one_clear_line(capfd, in_an_empty_folder, arguments, words):
    write_files(in_an_empty_folder)
    before = sorted(in_an_empty_folder.rglob("*"))
    if arguments[0] == "run" and "--preset" not in arguments:
        arguments = ["run", "--preset", "demo", *arguments[1:]]
    code, out, err = call(capfd, *arguments)
    assert code == 2, (out, err)
    said = [line for line in err.splitlines() if line.startswith("medcot: ")]
    assert len(said) == 1
    assert err.strip().splitlines() == said
    for word in words:
        assert any(one in said[0] for one in word.split("|")), (word, said[0])
    assert "Traceback" not in out + err
    assert sorted(in_an_empty_folder.rglob("*")) == before


def test_the_short_help_fits_a_screen(capfd):
    for command in ("run", "plan", "train", "evaluate", "report", "ask", "data", "doctor"):
        code, out, _ = call(capfd, command, "--help")
        assert code == 0
        lines = out.splitlines()
        assert len(lines) <= 30, command
        assert max(map(len, lines)) <= 100, command


def test_the_long_help_has_every_field(capfd):
    from medcot.config.schema import RunConfig, option_name

    _, out, _ = call(capfd, "run", "--help-all")
    assert all(f" {option_name(name)} " in out for name in RunConfig.model_fields)


def test_plan_prints_facts_for_a_named_gpu(capfd):
    code, out, _ = call(capfd, "plan", "--preset", "demo", "--gpu", "T4", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["device"] == "cuda"
    assert plan["trainable_parameters"] == 2_442_240


def test_data_describes_the_sample(capfd):
    code, out, _ = call(capfd, "data", "sample", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["kept"] >= 64
    assert not facts["problems"]


def test_data_lists_every_problem_and_ends_with_2(capfd, in_an_empty_folder):
    rows = [GOOD, {"Question": "a"}, GOOD | {"Question": "b", "Response": ""}]
    path = in_an_empty_folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = call(capfd, "data", str(path))
    assert code == 2
    assert "line 2" in out
    assert "line 3" in out


def test_doctor_never_prints_a_token(capfd, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    code, out, err = call(capfd, "doctor", "--json")
    assert code == 0
    assert "hf_secret" not in out + err
    assert {finding["name"] for finding in json.loads(out)} >= {"python", "torch", "gpu"}


def test_a_run_prints_its_report_as_json_and_nothing_else(capfd, tiny_model, in_an_empty_folder):
    code, out, err = call(
        capfd, "run", "--preset", "demo", "--model", str(tiny_model), "--samples", "4",
        "--steps", "1", "--test-samples", "2", "--generate-samples", "1",
        "--max-new-tokens", "4", "--mcq-samples", "2", "--out", "done", "--json",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["verdict"]["nll"]
    assert "training" in err or "train" in err

    code, out, _ = call(capfd, "ask", "--run", "done", "--max-new-tokens", "4", "Why?")
    assert code == 0
    assert "not medical advice" in out
    assert "no answer: the thought was not closed within 4 tokens" in out

    code, out, _ = call(capfd, "ask", "--run", "done", "--base", "--json", "Why?")
    assert json.loads(out)["model"] == "base"

    code, _, err = call(capfd, "run", "--rank", "3", "--resume", "--out", "done")
    assert code == 2
    assert "the run in done has 8" in err

    code, out, _ = call(capfd, "report", "--run", "done")
    opening, _, report, following = out.strip().splitlines()[-4:]
    assert opening.endswith("right answers: no evidence.")
    assert report == "report: done/report.md"
    assert following == (
        'next: open done/report.html; medcot ask --run done "your question";'
        " medcot app -- --run done"
    )
    page = (in_an_empty_folder / "done" / "report.html").read_text()
    assert opening in page


@pytest.mark.parametrize(
    ("question", "language"), [("What is sepsis?", "en"), ("什么是脓毒症？", "zh")]
)
def test_before_the_first_run_one_asks_the_model_that_comes_along(question, language):
    directory = run_to_ask(None, question)
    assert directory.config().language == language
    assert (directory.adapter / "adapter_model.safetensors").stat().st_size < 6e6
    assert directory.stage() == "done"


def test_importing_the_package_brings_no_torch_and_takes_a_moment():
    code = (
        "import sys, time; start = time.process_time(); import medcot;"
        "assert 'torch' not in sys.modules; print(time.process_time() - start)"
    )
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))
    assert seconds < 0.2


def test_help_takes_less_than_half_a_second():
    # Processor time: the clock would measure what else the machine does.
    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "medcot", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.5


def test_the_list_of_commands_needs_no_settings():
    code = "import sys, medcot.cli.main; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_app_passes_its_arguments_on_as_they_are_to_the_server(monkeypatch, capfd):
    replaced = []
    monkeypatch.setattr("os.execv", lambda program, words: replaced.append(words))
    call(capfd, "app", "--port", "0", "--help", "--", "--rank", "8")
    server = [sys.executable, "-m", "medcot.notebook.server"]
    assert replaced == [[*server, "--port", "0", "--help", "--", "--rank", "8"]]
