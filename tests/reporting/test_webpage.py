"""``report.html``: one file for a browser in two languages, and texts of models stay text."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medcot.catalog import say
from medcot.reporting.build import build_report
from medcot.reporting.schema import Figure, Report
from medcot.reporting.webpage import render_page, write_report_files
from medcot.reporting.wording import word_opening
from medcot.runs.directory import RunDirectory
from tests.reporting.test_build import SETTING, rows, suite_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE = (
    'A <script>alert(1)</script> <img src=http://a.example/x onerror=alert(2)> "quoted" <br> &amp;'
    " [a](javascript:alert(3)) ![b](https://b.example/y.png) www.c.example </td></table>\n# Head"
)


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def make_report(language: str = "en", text: str = "") -> Report:
    exam = suite_of(sets=("exam",), text=text)
    after = rows(exam, shift=0.1, say=f"{text}</think>{text}" if text else "t</think>Rest.")
    config = SETTING.model_copy(update={"language": language})
    made = build_report(rows(exam), after, exam, config)
    return replace(made, figures=(Figure("figures/loss.svg", "Loss"), Figure("figures/no.svg", "")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.svg").write_text(SVG)
    return tmp_path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_holds_both_languages_and_shows_that_of_the_run(
    folder: Path, language: str
) -> None:
    made = make_report(language)
    page = Tags(render_page(made, folder))
    shown = [tag for tag in page.tags if tag[0] == "input" and "checked" in tag[1]]
    assert [attributes["id"] for _, attributes in shown] == [language]
    assert page.tags[0] == ("html", {"lang": language})
    for code in ("en", "zh"):
        texts = "".join(page.texts)
        assert say("research_output", code) in texts
        assert word_opening(made, code) in texts
        assert say("report_comparison", code) in texts


def test_the_page_requests_nothing_and_runs_nothing(folder: Path) -> None:
    page = Tags(render_page(make_report(text=HOSTILE), folder))
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a", "svg", "form"}
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'")
    images = [a for name, a in page.tags if name == "img"]
    # The missing figure is left out.
    assert [a["alt"] for a in images] == ["Loss", say("figure_loss", "zh")]
    alone = replace(make_report(), figures=(Figure("figures/no.svg", ""),))
    assert "<h2>Figures</h2>" in render_page(make_report(), folder)
    assert "<h2>Figures</h2>" not in render_page(alone, folder)
    for image in images:
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data).decode() == SVG
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_texts_of_models_and_data_stay_text(folder: Path) -> None:
    plain = Tags(render_page(make_report(text="plain"), folder))
    hostile = Tags(render_page(make_report(text=HOSTILE), folder))

    def count(page: Tags, name: str) -> int:
        return sum(tag == name for tag, _ in page.tags)

    for name in ("h1", "h2", "table", "td", "img"):
        assert count(hostile, name) == count(plain, name), name
    assert "<script>alert(1)</script>" in "".join(hostile.texts)


def test_a_cell_of_a_stacked_table_names_its_column(folder: Path) -> None:
    page = Tags(render_page(make_report(), folder))
    heads = [a["data-head"] for tag, a in page.tags if tag == "td"]
    assert heads.count("before") >= 5
    assert heads.count("训练前") >= 5
    kinds = [a["class"] for tag, a in page.tags if tag == "table"]
    assert {"sides", "numbers"} == set(kinds)


def test_both_files_are_written_into_the_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(SETTING)
    write_report_files(directory, make_report())
    assert directory.report_markdown.read_text().startswith("# ")
    assert directory.report_page.read_text().startswith("<!doctype html>")
