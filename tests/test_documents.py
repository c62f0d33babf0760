"""The documents name only what exists: links, modules, paths, and both languages alike."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kaggle" / "README.md")
)
HISTORY = "docs/experiments.md"
"""Its entries keep the names that modules had on the day; only its table of names is checked."""

TOP = sorted(
    path.stem for path in (ROOT / "medcot").iterdir() if not path.name.startswith((".", "__"))
)
FILE_SUFFIXES = {"json", "jsonl", "md", "toml", "txt", "py", "com", "log"}

MODULE = re.compile(rf"(?<![\w./@-])((?:medcot\.)?(?:{'|'.join(TOP)})(?:\.[A-Za-z_]\w*)+)")
PATH = re.compile(
    r"(?<![\w./~-])((?:medcot|tests|docs|bench|apps|configs)/[\w./-]*[\w/]"
    r"|kaggle/[\w-]+\.(?:py|md|txt|json))"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


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
    english, chinese = (headings(name) for name in ("README.md", "README.zh-CN.md"))
    assert [level for level, _ in english] == [level for level, _ in chinese]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
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

    assert entries("README.md") == entries("README.zh-CN.md")


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


def test_docstrings_refer_to_what_exists():
    roles = re.compile(r":(?:mod|func|class|meth|data):`~?(medcot\.[\w.]+)`")
    for path in (ROOT / "medcot").rglob("*.py"):
        for name in roles.findall(path.read_text(encoding="utf-8")):
            assert exists(name), f"{path.relative_to(ROOT)}: medcot has no {name}"
