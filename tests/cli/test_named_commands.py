"""Every command and option that a text names exists: documents, pages, docstrings, messages."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from medcot.cli.kaggle import cli as push
from medcot.cli.main import cli
from medcot.notebook.server import command as app_server
from medcot.notebook.static_site import main as static_site
from tests.support.paths import ROOT

HISTORY = {"experiments.md", "CHANGELOG.md"}
"""They keep the commands of their day."""

MARKDOWN = [
    path
    for pattern in ("*.md", "llms.txt", "docs/*.md", "kaggle/*.md", "apps/*.md", "medcot/**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name not in HISTORY
]
SOURCES = [
    path
    for pattern in ("medcot/**/*.py", "medcot/**/*.toml", "apps/*.py", "kaggle/*.py")
    for path in sorted(ROOT.glob(pattern))
]

NOTEBOOK_OPTIONS = {"--headless", "--interface", "--run"}
"""Those of ``apps/tutorial.py``, besides the fields of the config."""

PASSED_ON = {"app": app_server, "tutorial": static_site}
"""Commands that pass their options on, and to what."""

OF_A_LOG = "step"
"""The word after ``medcot`` in a kernel's log, which names no command."""

OTHER_PROGRAMS = re.compile(
    r"^(\w+=\S+ )*(accelerate|bin/|chmod|curl|docker|git|hf|kaggle|lm-eval|lm_eval|marimo|mkdir"
    r"|nvidia-smi|pipx?|pre-commit|pytest|python3?|ruff|source|ssh|tmux|torchrun|uvx?|wandb|\.venv)\b"
)
# A double hyphen also begins the names of the page's colours.
OPTION = re.compile(r"(?<![\w-])--(?!mc-)[a-z][a-z0-9_-]*[a-z0-9]")
OF_OTHERS = {
    *("--accelerator", "--config-file", "--config_file", "--num_processes", "--nproc-per-node"),
    *("--constraint", "--no-deps", "--upgrade", "--user", "--porcelain", "--quiet", "--version"),
    *("--dry-run", "--ignore-installed", "--report", "--disable-pip-version-check", "--use_fsdp"),
    *("--no-binary", "--require-hashes", "--dest", "--requirement", "--hash"),
    *("--outfile", "--outtype", "--no-token"),
    *("--no-input", "--progress-bar", "--include_path", "--tasks"),
    *("--ctx-size", "--parallel", "--no-webui", "--uds", "--served-model-name", "--revision"),
    *("--dtype", "--enable-lora", "--lora-modules", "--max-lora-rank", "--max-model-len"),
    *(
        "--force",
        "--sandbox",
        "--no-sandbox",
        "--sort",
        "--output",
        "--format",
        "--help",
        "--query-gpu",
    ),
}
"""Options of other programs that the code names: pip, git, marimo, lm_eval, llama.cpp, vLLM …"""


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def options_of(command: click.Command) -> set[str]:
    found = {"--help"}
    for parameter in command.params:
        found |= {*parameter.opts, *parameter.secondary_opts}
    return found


@cache
def all_options() -> frozenset[str]:
    commands = [*cli.commands.values(), *push.commands.values(), static_site, app_server]
    return frozenset({"--version"}.union(NOTEBOOK_OPTIONS, *map(options_of, commands)))


def faults_of_command(line: str) -> list[str]:
    """What does not exist of one command line; nothing where it is another program's."""
    for start, group in (("python kaggle/push.py", push), ("medcot", cli)):
        # `pipx runpip medcot` is followed by pip's commands, in medcot's environment.
        called = rf"(?:^|(?<!runpip)[ /]){re.escape(start)}(?= |$)(?P<rest>.*)"
        found = re.search(called, line)
        if found:
            return faults_of_group(start, group, found["rest"].split("#")[0])
    if found := re.match(r"make\s+(?:[A-Z]+=\S+ )*([a-z-]+)", line):
        return [] if found[1] in make_targets() else [f"make {found[1]}"]
    if OTHER_PROGRAMS.match(line):
        return []
    return [option for option in OPTION.findall(line) if option not in all_options() | OF_OTHERS]


def faults_of_group(start: str, group: click.Group, rest: str) -> list[str]:
    words = rest.split()
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return [word for word in words if word.startswith("--") and word not in all_options()]
    if group is cli and words[0] == "kaggle":
        return faults_of_group("medcot kaggle", push, rest.replace("kaggle", "", 1))
    if words[0] == OF_A_LOG:
        return []
    if words[0] not in group.commands:
        return [f"{start} {words[0]}"]
    known = options_of(PASSED_ON.get(words[0], group.commands[words[0]]))
    own, _, passed_on = rest.partition(" -- ")
    wrong = [one for one in OPTION.findall(passed_on) if one not in all_options()]
    return wrong + [f"{start} {words[0]} {one}" for one in OPTION.findall(own) if one not in known]


def commands_in_markdown(text: str) -> Iterator[str]:
    """Lines of code blocks, and code within lines."""
    blocks = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for block in blocks.findall(text):
        yield from (line.strip().removeprefix("$ ") for line in block.splitlines())
    for span in re.findall(r"`([^`\n]+)`", blocks.sub("", text)):
        if re.match(r"(medcot|make|python kaggle/push\.py) |--[a-z]", span):
            yield span


def texts_in_python(source: str) -> Iterator[str]:
    """Every string of a module; a value put into one stands as X."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield node.value if isinstance(node.value, str) else ""


def commands_in_text(text: str) -> Iterator[str]:
    """Commands in prose: in backticks, at its start, or followed by an option or a value."""
    yield from (
        span
        for span in re.findall(r"`([^`\n]+)`", text)
        if re.match(r"(medcot|make|python kaggle/push\.py) [^=]", span)
    )
    plain = re.sub(r"`[^`]*`", " ", text)
    yield from re.findall(r"(?:^|(?<=: )|(?<=with )|(?<=see ))medcot [a-z-]+ -[^\n;,.)]*", plain)
    yield from re.findall(r"python kaggle/push\.py [a-z]+[^\n;,.)]*", plain)
    yield from OPTION.findall(plain)


def faults_in(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        commands = list(commands_in_markdown(text))
    elif path.suffix == ".py":
        commands = [one for said in texts_in_python(text) for one in commands_in_text(said)]
    else:
        commands = list(commands_in_text(text))
    return sorted({fault for command in commands for fault in faults_of_command(command)})


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_options_named_in_a_document_exist(path: Path):
    assert faults_in(path) == []


def test_commands_and_options_named_in_the_code_and_on_pages_exist():
    found = {path.relative_to(ROOT).as_posix(): faults_in(path) for path in SOURCES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_commands_that_pages_build_exist():
    from medcot.runs.history import bundled_run, commands_for

    for command in commands_for(bundled_run("en")):
        assert faults_of_command(shlex.join(shlex.split(command))) == []


def test_a_command_or_option_that_does_not_exist_is_found():
    assert faults_of_command("medcot distil --run DIR") == ["medcot distil"]
    assert faults_of_command("medcot run --rnak 3") == ["medcot run --rnak"]
    assert faults_of_command("medcot ask --rank 3") == ["medcot ask --rank"]
    assert faults_of_command("python kaggle/push.py send") == ["python kaggle/push.py send"]
    assert faults_of_command("make everything") == ["make everything"]
    assert faults_of_command("--no-such-option") == ["--no-such-option"]
    assert faults_of_command("accelerate launch -m medcot train --rnak 3") == [
        "medcot train --rnak"
    ]
    assert faults_of_command("pip install --no-deps medcot") == []
    assert [*commands_in_markdown("So `medcot distil` is\n```\n$ make demo\n```\n")] == [
        "make demo",
        "medcot distil",
    ]
    assert [*commands_in_text("score them with medcot evaluate --run")] == [
        "medcot evaluate --run",
        "--run",
    ]
