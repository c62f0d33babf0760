"""Rules on the shape of the project that no linter has."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest

from medcot.config.schema import EngineName
from tests.support.paths import ROOT

MEDCOT = ROOT / "medcot"
MODULES = sorted(MEDCOT.rglob("*.py"))
PACKAGES = sorted(path.parent for path in MEDCOT.glob("*/__init__.py"))


def tracked() -> list[Path]:
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_down():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_upward_import_is_refused(tmp_path: Path):
    """A copy of the package with one wrong import, checked by the project's own contracts."""
    for source in MODULES:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wrong = tmp_path / "medcot" / "stats" / "paired.py"
    wrong.write_text(wrong.read_text(encoding="utf-8") + "\nimport medcot.pipeline.run\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "medcot.stats is not allowed to import medcot.pipeline" in done.stdout


def computed_imports(source: str) -> Iterator[int]:
    """Lines that import a module whose name is put together there: no tool could follow them."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        is_computed = isinstance(node.args[0], ast.JoinedStr | ast.BinOp | ast.Call)
        if called in ("import_module", "__import__") and is_computed:
            yield node.lineno


def test_no_module_is_imported_under_a_computed_name():
    found = [(shown(path), *computed_imports(path.read_text(encoding="utf-8"))) for path in MODULES]
    assert [one for one in found if one[1:]] == []
    assert list(computed_imports('import_module(f"medcot.{name}")')) == [1]
    assert list(computed_imports('importlib.import_module("medcot." + name)')) == [1]


def comparisons_of_engine_names(source: str) -> Iterator[int]:
    """Lines that decide by an engine's name: ``==``, ``in`` a list of them, or a ``match``."""
    names = set(get_args(EngineName)) | {"fsdp"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            tested = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            tested = [node.value]
        else:
            continue
        listed = [
            one.elts if isinstance(one, ast.Tuple | ast.List | ast.Set) else [one] for one in tested
        ]
        values = {one.value for one in chain(*listed) if isinstance(one, ast.Constant)}
        if values & names:
            yield node.lineno if isinstance(node, ast.Compare) else node.value.lineno


def test_only_the_engines_compare_the_name_of_an_engine():
    """Others ask for a trait; ``planning.engine_traits`` and the config's schema list the names."""
    for path in MODULES:
        if MEDCOT / "engines" not in path.parents:
            lines = list(comparisons_of_engine_names(path.read_text(encoding="utf-8")))
            assert lines == [], f"{shown(path)} compares an engine's name"
    assert list(comparisons_of_engine_names('if engine == "fused": pass')) == [1]
    assert list(comparisons_of_engine_names('x = engine not in ("auto", "transformers")')) == [1]
    assert list(comparisons_of_engine_names('match e:\n case "fsdp": pass')) == [2]
    assert list(comparisons_of_engine_names('x = {"fused": 1}["fused"]')) == []


def names_in_strings(source: str) -> Iterator[str]:
    """Strings that are the dotted name of a module of medcot, or of something in one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] == "medcot" and parts[1:] and all(part.isidentifier() for part in parts):
                yield node.value


def is_there(dotted: str) -> bool:
    """Whether some beginning of ``dotted`` is a module, and it names what follows."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if place.is_dir() or file.is_file():
            rest = parts[count : count + 1]
            return not rest or rest[0] in file.read_text(encoding="utf-8")
    return False


def test_modules_named_in_strings_exist():
    for path in tracked():
        if path.suffix == ".py" and path != Path(__file__):
            for name in names_in_strings(path.read_text(encoding="utf-8")):
                if not name.endswith((".log", ".json", ".toml")):
                    assert is_there(name), f"{shown(path)}: there is no {name}"


def test_no_module_has_the_name_of_a_standard_module():
    taken = {path.stem for path in MODULES} | {path.name for path in PACKAGES}
    assert taken & set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_tests_mirror_the_package(package: Path):
    folder = ROOT / "tests" / package.name
    assert list(folder.rglob("test_*.py")), f"{shown(folder)} has no tests"


def test_every_folder_of_tests_has_its_package():
    for path in (ROOT / "tests").rglob("test_*.py"):
        package = MEDCOT / path.parent.relative_to(ROOT / "tests")
        assert (package / "__init__.py").exists(), f"{shown(path)} mirrors no package"


def test_package_files_hold_a_docstring_alone():
    for path in MEDCOT.rglob("__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if path.parent != MEDCOT:  # which holds the version and the lazy public names
            assert len(body) == 1, f"{shown(path)} holds more than a docstring"
            assert isinstance(body[0], ast.Expr), f"{shown(path)} has no docstring"


def test_the_public_names_are_where_the_package_says():
    import medcot

    assert sorted(medcot.__all__) == [*medcot.__all__]
    for name in medcot.__all__:
        assert getattr(medcot, name) is not None
    assert set(dir(medcot)) >= set(medcot.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        medcot.no_such_name  # noqa: B018


def test_importing_the_package_brings_no_heavy_library():
    code = "import medcot, sys; print(sorted({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert importlib.util.find_spec("torch") is not None


def test_no_path_of_a_machine_is_in_the_project():
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert "/ro" + "ot/" not in text, shown(path)
            assert "/wo" + "rk/" not in text, shown(path)
