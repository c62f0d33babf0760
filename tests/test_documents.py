"""The documents name only what exists: links, modules, paths, and both languages alike."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import re
import shlex
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from medcot.catalog import words
from medcot.cli.exit_codes import ExitCode
from medcot.cli.kaggle import cli as kaggle_commands
from medcot.cli.main import cli
from medcot.config.schema import RunConfig, build_config, option_name
from medcot.notebook.server import command as serve_notebook
from tests.support.paths import ROOT

READMES = ("README.md", "README.zh-CN.md")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "kaggle/README.md",
        ROOT / "llms.txt",
    )
)
HISTORY = "docs/experiments.md"
"""Its entries keep the names that modules had on the day; only its table of names is checked."""

TOP = sorted(
    path.stem for path in (ROOT / "medcot").iterdir() if not path.name.startswith((".", "__"))
)
FILE_SUFFIXES = {"json", "jsonl", "md", "toml", "txt", "py", "com", "log", "lock", "html"}

MODULE = re.compile(rf"(?<![\w./@-])((?:medcot\.)?(?:{'|'.join(TOP)})(?:\.[A-Za-z_]\w*)+)")
PATH = re.compile(
    r"(?<![\w./~-])((?:medcot|tests|docs|bench|apps|configs)/[\w./-]*[\w/]"
    r"|kaggle/[\w-]+\.(?:py|md|txt|json))"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(name: str) -> list[tuple[int, str]]:
    found = re.findall(r"^(#+) (.+)$", without_code(read(name)), flags=re.MULTILINE)
    return [(len(marks), title.strip()) for marks, title in found]


def anchor(title: str) -> str:
    """The name that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower())
    return kept.replace(" ", "-")


@cache
def names_in(module: Path) -> frozenset[str]:
    """Functions, classes, values and the fields and methods of classes that a module defines."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]
                    found.update(prefix + n.id for n in names if isinstance(n, ast.Name))

    add(ast.parse(module.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def exists(dotted: str) -> bool:
    """Whether ``planning.plan.Plan`` names a package, a module or what a module defines."""
    parts = dotted.removeprefix("medcot.").split(".")
    for count in range(len(parts), 0, -1):
        base, rest = ROOT.joinpath("medcot", *parts[:count]), parts[count:]
        if base.is_dir() and not rest:
            return True
        module = base.with_suffix(".py")
        if module.is_file():
            return not rest or ".".join(rest) in names_in(module)
    return False


def modules_named_in(text: str) -> list[str]:
    return [n for n in MODULE.findall(text) if n.rpartition(".")[2] not in FILE_SUFFIXES]


def rows_of_tables(text: str) -> list[list[str]]:
    """The cells of every table row; heads and rules left out."""
    rows: list[list[str]] = []
    lines = text.splitlines()
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        is_rule = re.fullmatch(r"[|:\- ]+", line)
        if line.startswith("| ") and not is_rule and not following.startswith("| ---"):
            rows.append([cell.strip() for cell in line.strip("| \n").split(" | ")])
    return rows


@pytest.mark.parametrize("name", DOCUMENTS)
def test_relative_links_resolve(name: str):
    for target in LINK.findall(without_code(read(name))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, fragment = target.partition("#")
        place = (ROOT / name).parent / file if file else ROOT / name
        assert place.exists(), f"{name}: {target} leads nowhere"
        if fragment:
            known = {anchor(title) for _, title in headings(place.relative_to(ROOT).as_posix())}
            assert fragment in known, f"{name}: {target} names no heading"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != HISTORY])
def test_modules_and_paths_named_in_a_document_exist(name: str):
    text = read(name)
    for module in modules_named_in(text):
        assert exists(module), f"{name}: medcot has no {module}"
    for path in PATH.findall(text):
        assert (ROOT / path).exists(), f"{name}: there is no {path}"


def find_named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def test_every_promise_of_the_security_policy_names_tests_that_exist():
    text = read("SECURITY.md")
    promises = [row for row in rows_of_tables(text) if len(row) == 2]
    assert len(promises) >= 15
    assert all(find_named_tests(test) for promise, test in promises), "a promise without a test"
    for file, name in find_named_tests(text):
        assert name in names_in(ROOT / file), f"SECURITY.md: {file} has no {name}"
    for name in ("README.md", "README.zh-CN.md", "docs/architecture.md"):
        assert "SECURITY.md" in read(name), f"{name} does not link the security policy"


def test_every_dependency_is_in_the_list_of_licences_with_its_pinned_version():
    listed = {
        row[0].lower(): row for row in rows_of_tables(read("docs/licences.md")) if len(row) >= 3
    }
    pinned = [line.split("==") for line in read("constraints.txt").splitlines() if "==" in line]
    for name, version in pinned:
        assert listed[name.lower()][1] == version.strip(), f"{name}: run make licences"
        assert listed[name.lower()][2], f"{name} has no licence"
    project = tomllib.loads(read("pyproject.toml"))["project"]
    optional = project["optional-dependencies"].values()
    direct = [*project["dependencies"], *(line for lines in optional for line in lines)]
    known = {name.replace("_", "-") for name in listed}
    for line in direct:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0].lower().replace("_", "-")
        assert name in known, f"{name} is not in docs/licences.md: run make licences"


def test_new_names_in_the_history_exist():
    section = read(HISTORY).split("## Names of modules", 1)[1].split("\n## ", 1)[0]
    new_names = [name for row in rows_of_tables(section) for name in modules_named_in(row[1])]
    assert len(new_names) > 80
    for name in new_names:
        assert exists(name), f"{HISTORY}: medcot has no {name}"


def test_every_glossary_term_is_in_two_languages_and_has_its_place_in_the_code():
    rows = rows_of_tables(read("docs/glossary.md"))
    assert len(rows) > 60
    for term, chinese, meaning, where in rows:
        assert term, chinese
        assert re.search(r"[\u4e00-\u9fff]", chinese), term
        assert "<br>" in meaning, f"{term}: needs a meaning in both languages"
        named = [*modules_named_in(where), *PATH.findall(where)]
        assert named, f"{term}: names no place in the code"
        for place in named:
            assert exists(place) or (ROOT / place).exists(), f"{term}: there is no {place}"


def test_a_glossary_term_is_explained_once():
    terms = [row[0].lower() for row in rows_of_tables(read("docs/glossary.md"))]
    assert len(terms) == len(set(terms))


def test_both_readmes_have_the_same_sections():
    english, chinese = (headings(name) for name in READMES)
    assert [level for level, _ in english] == [level for level, _ in chinese]


@pytest.mark.parametrize("name", READMES)
def test_the_file_tree_names_every_package_and_nothing_else(name: str):
    tree = read(name).rpartition("## ")[2].partition("```\n")[2].partition("```")[0]
    folders: list[str] = []
    paths: set[str] = set()
    for line in tree.splitlines():
        depth, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [entry]
        paths.add("".join(folders))
    for path in paths:
        assert (ROOT / path).exists(), f"{name}: there is no {path}"
    packages = {
        f"{folder.parent.relative_to(ROOT).as_posix()}/"
        for folder in ROOT.glob("medcot/**/__init__.py")
    }
    assert packages <= paths, packages - paths


def test_both_readmes_have_the_same_file_tree():
    def entries(name: str) -> list[str]:
        tree = read(name).rpartition("## ")[2].partition("```\n")[2].partition("```")[0]
        return [
            line[: len(line) - len(line.lstrip())] + line.split()[0] for line in tree.splitlines()
        ]

    assert entries(READMES[0]) == entries(READMES[1])


def test_a_name_that_does_not_exist_is_found():
    assert exists("planning.plan.Plan.micro_batch")
    assert exists("engines.fused")
    assert not exists("planning.plan.no_such_name")
    assert not exists("planning.no_such_module")
    assert modules_named_in("see `medcot.data.prompts`, config.json") == ["medcot.data.prompts"]
    assert PATH.findall("in `medcot/nothing.py` and (docs/none.md)") == [
        "medcot/nothing.py",
        "docs/none.md",
    ]


def test_the_drawing_of_the_layers_is_what_the_linter_enforces():
    section = read("docs/architecture.md").split("## Layers", 1)[1]
    drawn = section.partition("```\n")[2].partition("```")[0].splitlines()
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    enforced = next(one["layers"] for one in contracts if one["type"] == "layers")
    assert drawn == enforced


def test_the_architecture_tells_what_each_package_is_for():
    section = read("docs/architecture.md").split("## Layers", 1)[1].partition("\n## ")[0]
    told = {row[0].strip("`") for row in rows_of_tables(section)}
    assert told == {path.parent.name for path in ROOT.glob("medcot/*/__init__.py")}


def prose_of(source: str) -> Iterator[str]:
    """Comments, and strings that stand alone: docstrings, also those of fields and constants."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


QUOTED = re.compile(r"(?<!`)`{1,2}~?(\.?[a-z_]\w*(?:\.\w+)+)`{1,2}(?!`)")
"""A dotted name in backticks, also that of a Sphinx role."""


def missing_names(source: str, package: Path) -> list[str]:
    """Return the dotted names in prose of ``source`` that name nothing in medcot.

    Names begin with ``medcot``, a package, or, in backticks, a module of the same ``package``.
    """
    siblings = {path.stem for path in package.glob("*.py")} - {"__init__"}
    here = ".".join(package.relative_to(ROOT).parts)
    fields = {f"config.{name}" for name in RunConfig.model_fields}
    missing: list[str] = []
    for prose in prose_of(source):
        named = set(modules_named_in(prose))
        for dotted in QUOTED.findall(prose):
            first = dotted.lstrip(".").split(".")[0]
            if dotted.rpartition(".")[2] in FILE_SUFFIXES:
                continue
            if first == "medcot":
                named.add(dotted)
            elif dotted.startswith(".") or (first in siblings and first not in TOP):
                named.add(f"{here}.{dotted.lstrip('.')}")
        missing += [one for one in sorted(named - fields) if not exists(one)]
        missing += [one for one in PATH.findall(prose) if not (ROOT / one).exists()]
    return missing


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in ROOT.glob("medcot/**/*.py")}), ids=lambda f: f.name
)
def test_docstrings_and_comments_name_what_exists(folder: Path):
    for path in folder.glob("*.py"):
        found = missing_names(path.read_text(encoding="utf-8"), folder)
        assert found == [], f"{path.relative_to(ROOT)}: medcot has no {found}"


def test_tests_scripts_and_settings_name_what_exists():
    folders = (".ci", "apps", "bench", "kaggle")
    scripts = [path for folder in folders for path in ROOT.glob(f"{folder}/*.py")]
    for path in [*scripts, *ROOT.glob("tests/**/*.py")]:
        if path != Path(__file__):
            found = missing_names(path.read_text(encoding="utf-8"), path.parent)
            assert found == [], f"{path.relative_to(ROOT)}: medcot has no {found}"
    for path in [
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        *(path for path in ROOT.glob(".ci/*") if path.suffix != ".py"),
        *ROOT.glob("configs/**/*.yaml"),
    ]:
        text = path.read_text(encoding="utf-8")
        missing = [name for name in modules_named_in(text) if not exists(name)]
        # What the wheel carries lies elsewhere in a checkout; tests/test_wheel.py looks at it.
        named = [name for name in PATH.findall(text) if not name.startswith("medcot/_project/")]
        missing += [name for name in named if not (ROOT / name).exists()]
        assert missing == [], f"{path.relative_to(ROOT)}: medcot has no {missing}"


def test_a_stale_name_in_a_docstring_is_found():
    package = ROOT / "medcot" / "planning"
    source = "# ``search.no_such_name``, :mod:`medcot.shapes`, `.plan.Nothing`, engines.loss.x"
    found = [name.removeprefix("medcot.") for name in missing_names(source, package)]
    assert found == [
        "engines.loss.x",
        "planning.plan.Nothing",
        "planning.search.no_such_name",
        "shapes",
    ]
    assert (
        missing_names("# ``search.Candidate``, :func:`.plan.make_plan`, config.rank", package) == []
    )


def load_script(name: str):
    """A script of ``.ci/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_up_to_date():
    """Figures of the bundled runs, presets, options, pins for uv, and the pictures."""
    for name, text in load_script("readme").make_documents().items():
        assert read(name) == text, f"{name} is out of date: run make readme"


def test_generated_parts_are_in_both_readmes():
    parts = [re.findall(r"made by make readme: (\w+)", read(name)) for name in READMES]
    assert parts == [["result", "chinese", "presets"]] * 2
    pictures = [*ROOT.glob("docs/figures/*")]
    assert len(pictures) == 2
    assert sum(path.stat().st_size for path in pictures) < 150_000


def test_pins_for_uv_are_those_for_pip():
    pinned = tomllib.loads(read("pyproject.toml"))["tool"]["uv"]["constraint-dependencies"]
    assert pinned == [line for line in read("constraints.txt").splitlines() if "==" in line]
    assert len(pinned) > 100


def test_the_coverage_page_adds_up_the_packages():
    module = load_script("coverage_by_package")
    table = module.tabulate({"medcot/a": 3000, "medcot/b": 1000}, {"medcot/a": 300, "medcot/b": 0})
    assert rows_of_tables(table) == [
        ["`medcot/a`", "3,000", "90.0%"],
        ["`medcot/b`", "1,000", "100.0%"],
        ["**all**", "4,000", "92.5%"],
    ]
    assert module.describe().startswith("# Coverage of the tests\n")


FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
OWN_OPTIONS = {"--headless", "--run"}
"""Options of the notebook that are none of a run."""


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCED.findall(read(name))


def commands_in(name: str) -> Iterator[list[str]]:
    """The words of each command in blocks without a language, and in code within a line."""
    text = read(name)
    lines = [line for kind, block in blocks(name) if not kind for line in block.splitlines()]
    lines += [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", without_code(text))]
    for line in lines:
        for part in re.split(r" && | \| |; ", line.replace("…", "")):
            try:
                found = shlex.split(part, comments=True)
            except ValueError:
                continue
            while found and re.fullmatch(r"[A-Z_]+=.*", found[0]):
                found.pop(0)
            if found:
                yield found


def problem_of(found: list[str]) -> str | None:
    """Why ``found`` cannot be typed; None if it can, or is no command of the project."""
    found = [found[0].removeprefix(".venv/bin/"), *found[1:]]
    if "-m" in found and found[found.index("-m") + 1 :][:1] == ["medcot"]:
        found = found[found.index("-m") + 1 :]
    match found:
        case ["medcot", command, *rest] if not command.startswith("-"):
            return missing_option(cli, command, rest)
        case ["python" | "python3", "kaggle/push.py", command, *rest] if command[0] != "-":
            return missing_option(kaggle_commands, command, rest)
        case ["python" | "python3", script, *rest] if script.endswith(".py"):
            return None if (ROOT / script).is_file() else f"there is no {script}"
        case ["make", *targets]:
            known = re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE)
            unknown = {one for one in targets if "=" not in one} - set(known)
            return f"make has no {unknown}" if unknown else None
        case ["marimo", command, "--sandbox" | "--no-sandbox", *rest]:
            return problem_of(["marimo", command, *rest])
        case ["marimo", _, notebook, *rest]:
            own = [*(option_name(one) for one in RunConfig.model_fields), *OWN_OPTIONS]
            unknown = {one for one in rest if one.startswith("--") and one != "--"} - set(own)
            there = (ROOT / notebook).is_file() or "." not in notebook
            return f"no {unknown} in {notebook}" if unknown or not there else None
        case ["pip", *rest]:
            extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
            named = re.findall(r"(?:\.|medcot)\[([\w,-]+)\]", " ".join(rest))
            unknown = {one for some in named for one in some.split(",")} - set(extras)
            return f"no extra {unknown}" if unknown else None
    return None


def missing_option(group, command: str, rest: list[str]) -> str | None:
    known = group.commands.get(command)
    if known is None:
        return f"no command {command}" if re.fullmatch(r"[a-z]+", command) else None
    known = serve_notebook if command == "app" else known
    options = {name for one in known.params for name in (*one.opts, *one.secondary_opts)}
    options |= {"--help", "-h", "--help-all"}
    before = rest[: rest.index("--")] if "--" in rest else rest
    typed = {one.partition("=")[0] for one in before if one.startswith("--")}
    return f"medcot {command} has no {typed - options}" if typed - options else None


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != HISTORY])
def test_commands_in_a_document_can_be_typed(name: str):
    problems = [(found, why) for found in commands_in(name) if (why := problem_of(found))]
    assert problems == [], name


def test_a_command_that_cannot_be_typed_is_found():
    typed = {
        "medcot run --preset demo --rank 8": None,
        "medcot rnu": "no command rnu",
        "medcot run --rnak 8": "medcot run has no {'--rnak'}",
        "torchrun --nproc-per-node 2 -m medcot run --rnak 8": "medcot run has no {'--rnak'}",
        ".venv/bin/python bench/none.py": "there is no bench/none.py",
        "python kaggle/push.py run --until-done": None,
        "make demo": None,
        "make dmeo": "make has no {'dmeo'}",
        ".venv/bin/marimo edit apps/tutorial.py -- --rank 32": None,
        ".venv/bin/marimo edit --no-sandbox apps/tutorial.py -- --rank 32": None,
        ".venv/bin/marimo edit --no-sandbox apps/none.py": "no set() in apps/none.py",
        ".venv/bin/marimo edit apps/tutorial.py -- --rnak 32": "no {'--rnak'} in apps/tutorial.py",
        "pip install -c constraints.txt -e '.[gpu,trakc]'": "no extra {'trakc'}",
    }
    assert {line: problem_of(shlex.split(line)) for line in typed} == typed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_in_a_language_are_in_it(name: str):
    for kind, block in blocks(name):
        match kind:
            case "python":
                compile(block, name, "exec")
            case "json":
                json.loads(block)
            case "toml":
                tomllib.loads(block)


def test_settings_in_a_document_are_settings_of_a_run():
    for name in DOCUMENTS:
        for setting in re.findall(r"`(\w+) = \S+` \(`--config", read(name)):
            assert setting in RunConfig.model_fields, f"{name}: {setting}"
        for kind, block in blocks(name):
            if kind == "toml" and "[" not in block.split("=")[0]:
                build_config(tomllib.loads(block), name)


@pytest.mark.parametrize("name", READMES)
def test_the_readme_names_every_command_and_exit_code(name: str):
    rows = [row for row in rows_of_tables(read(name)) if row[0].startswith("`")]
    named = {one for row in rows for one in re.findall(r"`(?:medcot )?(\w+)`", row[0])}
    assert set(cli.commands) <= named, set(cli.commands) - named
    kaggle = next(row[1] for row in rows if "`python kaggle/push.py`" in row[0])
    assert set(kaggle_commands.commands) == set(re.findall(r"`(\w+)`", kaggle))
    codes = re.search(r"^(?:Exit codes: |退出码：)(.*)$", read(name), flags=re.MULTILINE)
    assert codes is not None
    told = [int(one) for one in re.findall(r"(?<!\d)(\d+) ", codes[1])]
    assert told == [int(one) for one in ExitCode]


def test_both_readmes_have_the_same_commands_tables_and_links():
    """Apart from comments, questions and words."""

    def skeleton(name: str):
        code = [re.sub(r"\s*#.*|\".*?\"", "", block) for _, block in blocks(name)[:-1]]
        tables = [len(row) for row in rows_of_tables(read(name))]
        links = set(LINK.findall(read(name))) - set(READMES)
        return code, tables, {one.replace("-zh.svg", "-en.svg") for one in links}

    english, chinese = (skeleton(name) for name in READMES)
    assert english == chinese


@pytest.mark.parametrize("name", READMES)
def test_symptoms_are_words_that_medcot_says(name: str):
    section = re.split(r"^## (?:When something goes wrong|出了问题怎么办)$", read(name), flags=re.M)
    symptoms = [row[0] for row in rows_of_tables(section[1].partition("\n## ")[0])]
    said = " ".join(words("en").values())
    said += " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("medcot/**/*.py"))
    quoted = [one for symptom in symptoms for one in re.findall(r"`([^`]+)`", symptom)]
    assert len(quoted) >= 10
    for one in quoted:
        assert one in said or one in said.replace("{kind}", words("en")["memory_gpu"]), one


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_the_web_are_encrypted(name: str):
    for target in LINK.findall(without_code(read(name))):
        assert not target.startswith("http://"), f"{name}: {target}"
