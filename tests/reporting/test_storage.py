"""report.json: what is written is read again, and old reports open."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from medcot.errors import InputError
from medcot.notebook.views.evidence import show_comparison
from medcot.reporting.markdown import render_markdown
from medcot.reporting.schema import SCHEMA_VERSION
from medcot.reporting.storage import report_from_json, report_to_json
from medcot.reporting.wording import state_power

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
    said = {
        "en": "Of 13 generated answers, 9 before and 5 after reached 160 tokens",
        "zh": "Of 13 generated answers, 13 before and 12 after reached 160 tokens",
    }
    assert said[language] in page
    assert "The rows are synthetic samples" in page


def test_verdict_and_cautions_are_said_in_chinese_from_the_same_codes() -> None:
    report = report_from_json(bundled("zh"))
    said = [one.text("zh") for one in (*report.verdict.messages.nll, *report.cautions)]
    assert said[0].startswith("3 个种子平均，测试损失在 12 行测试数据上下降了 0.472")
    assert any("合成样本" in sentence for sentence in said)
    assert report.verdict.sentence.startswith(str(report.verdict.messages.nll[0]))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_written_is_read_again(language: str) -> None:
    report = report_from_json(bundled(language))
    written = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    assert report_from_json(written) == report
    assert report_to_json(report_from_json(written)) == written
    assert written["schema_version"] == SCHEMA_VERSION


def test_report_md_has_the_same_parts_in_both_languages_and_words_them_from_the_catalog() -> None:
    report = report_from_json(bundled("zh"))
    english, chinese = (render_markdown(report, language).splitlines() for language in ("en", "zh"))
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours.count("|") == theirs.count("|")
        assert re.findall(r"^[#>-]*", ours) == re.findall(r"^[#>-]*", theirs)
        if ours.startswith(("# ", "## ", "> ", "- ")) or ours[:1].isalpha():
            assert re.search(r"[\u4e00-\u9fff]", theirs), theirs


def test_the_page_and_report_md_show_the_same_numbers_and_sentences() -> None:
    report = report_from_json(bundled("en"))
    document, page = render_markdown(report), show_comparison(report, "en")
    rows = [line.strip("| ").split(" | ") for line in document.splitlines() if " nats" in line]
    assert all(f">{cell}<" in page for row in rows[:1] for cell in row[1:])
    assert [f"- {one}" in document for one in state_power(report, "en")] == [True] * 2


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


def test_right_answers_of_several_seeds_that_stay_are_not_said_to_rise() -> None:
    assert "right answers did not change on 12 questions" in bundled("en")["verdict"]["sentence"]
    report = report_from_json(bundled("en"))
    assert "right answers did not change on 12 questions" in render_markdown(report)
