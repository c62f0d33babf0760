"""What is released, and how: what the package index shows, and a workflow without secrets."""

import re
import tomllib

import pytest
import yaml
from trove_classifiers import classifiers

from tests.support.paths import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(WORKFLOW.read_text())


def test_the_metadata_are_known_to_the_index():
    assert set(PROJECT["classifiers"]) <= classifiers
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "medcot" / "py.typed").is_file()
    versions = {
        re.findall(r":: (3\.\d+)$", one)[0] for one in PROJECT["classifiers"] if ":: 3." in one
    }
    assert versions == {"3.11", "3.12", "3.13"}
    assert "urls" not in PROJECT, "an address belongs here once it exists: see pyproject.toml"


def test_no_file_names_an_address_that_the_project_does_not_have():
    places = [
        *ROOT.glob("*.*"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("medcot/**/*.*"),
        *ROOT.glob("apps/*.*"),
    ]
    texts = [one for one in places if one.suffix in (".md", ".py", ".toml", ".txt", ".yml")]
    assert len(texts) > 100
    for path in texts:
        assert not re.search(r"(github|gitlab)\.com/medcot", path.read_text(encoding="utf-8")), path


def test_only_a_tag_releases(workflow):
    # YAML reads the word "on" as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["jobs"]["publish"]["needs"] == "build"


def test_publishing_needs_no_secret_and_nothing_else_may_publish(workflow):
    assert "secrets." not in WORKFLOW.read_text()
    assert workflow["permissions"] == {}
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert build["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert not any("run" in step for step in publish["steps"]), "no code of ours beside the token"
    assert build["steps"][0]["with"] == {"persist-credentials": False}


def test_the_workflow_tests_and_checks_what_it_publishes(workflow):
    commands = [step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    assert commands[0] == "bash .ci/run"
    assert {"make dist", "make wheel-test"} <= set(commands)
    assert any("medcot.__version__" in one and "GITHUB_REF_NAME" in one for one in commands)
    recipe = (ROOT / "Makefile").read_text().partition("\ndist:")[2].partition("\n\n")[0]
    assert "twine check --strict" in recipe


def test_every_action_is_pinned_to_a_commit(workflow):
    used = [
        step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step
    ]
    assert len(used) == 5
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", one), one
