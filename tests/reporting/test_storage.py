"""report.json: what is written is read again, and old reports open."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from medcot.errors import InputError
from medcot.reporting.markdown import render_markdown
from medcot.reporting.schema import SCHEMA_VERSION
from medcot.reporting.storage import report_from_json, report_to_json

FINISHED = Path(str(files("medcot.runs"))) / "finished"


def bundled(language: str) -> dict[str, Any]:
    return json.loads((FINISHED / f"demo-{language}" / "report.json").read_text())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_report_without_a_version_opens_and_is_worded(language: str) -> None:
    old = {name: value for name, value in bundled(language).items() if name != "schema_version"}
    report = report_from_json(old)
    assert report.verdict.nll == "improved"
    page = render_markdown(report)
    assert old["verdict"]["sentence"] in page
    assert "Of 5 generated answers, 5 before and 5 after reached 160 tokens" in page
    assert "The rows are synthetic samples" in page


def test_verdict_and_cautions_are_said_in_chinese_from_the_same_codes() -> None:
    report = report_from_json(bundled("zh"))
    said = [one.text("zh") for one in (*report.verdict.messages.nll, *report.cautions)]
    assert said[0].startswith("10 行测试数据的损失平均每个词元下降了 0.125 nat")
    assert any("合成样本" in sentence for sentence in said)
    assert report.verdict.sentence.startswith(str(report.verdict.messages.nll[0]))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_written_is_read_again(language: str) -> None:
    report = report_from_json(bundled(language))
    written = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    assert report_from_json(written) == report
    assert report_to_json(report_from_json(written)) == written
    assert written["schema_version"] == SCHEMA_VERSION


def test_old_fields_keep_their_values_and_order() -> None:
    old = bundled("en")
    new = report_to_json(report_from_json(old))
    for name in old:
        if name not in ("verdict", "paired", "config"):
            assert new[name] == old[name], name
    assert list(old) == [name for name in new if name in old]


def test_a_report_of_a_later_version_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"found schema_version 99.*update medcot"):
        report_from_json(bundled("en") | {"schema_version": 99})


def test_a_damaged_report_names_its_field() -> None:
    damaged = bundled("en")
    damaged["before"]["rows"] = "many"
    with pytest.raises(InputError, match=r"some/report\.json: before\.rows"):
        report_from_json(damaged, where="some/report.json")
