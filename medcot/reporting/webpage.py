"""``report.html``: the report as one file for a browser, in both languages, without a request.

The Markdown of :mod:`medcot.reporting.markdown`, which has all texts of models and data escaped,
is rendered by markdown-it; of its HTML nothing but a line break stays a tag. The figures are put
into the file.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from medcot.catalog import say
from medcot.reporting.markdown import render_markdown
from medcot.reporting.schema import Report
from medcot.reporting.wording import word_opening
from medcot.runs.directory import RunDirectory

LANGUAGES = {"en": "English", "zh": "中文"}
"""Languages of the page, and what each is called in itself."""

_NOTHING_FROM_OUTSIDE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content policy of the page: no script runs, and nothing is requested."""

_SIDES = 3
"""Columns of the tables of texts, which are stacked on a narrow screen."""


def write_report_files(directory: RunDirectory, report: Report) -> None:
    """Write ``report.md`` and ``report.html``; the figures must be there."""
    directory.write_text("report.md", render_markdown(report))
    directory.write_text("report.html", render_page(report, directory.path))


def render_page(report: Report, folder: Path) -> str:
    """Render ``report.html`` with the figures that lie in ``folder``.

    Shown first is the language of the run; two radio buttons choose the other one.
    """
    shown = report.config.language
    switches = "".join(
        f'<input type="radio" name="language" id="{code}"{" checked" * (code == shown)}>'
        f'<label for="{code}" lang="{code}">{name}</label>'
        for code, name in LANGUAGES.items()
    )
    articles = "".join(_article(report, code, folder) for code in LANGUAGES)
    title = html.escape(word_opening(report, shown) or say("report_title", shown))
    style = (files("medcot.reporting") / "webpage.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="{shown}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{switches}\n{articles}</body>\n</html>\n"
    )


def _article(report: Report, language: str, folder: Path) -> str:
    there = tuple(one for one in report.figures if (folder / one.file).is_file())
    tokens = _parser().parse(render_markdown(replace(report, figures=there), language))
    _label_cells(tokens)
    parser = _parser()
    env = {"folder": folder, "language": language}
    body = parser.renderer.render(tokens, parser.options, env)
    return f'<article lang="{language}">\n{body}</article>\n'


@cache
def _parser() -> Any:
    """Return a parser of Markdown whose only tag from the source is a line break in a cell."""
    from markdown_it import MarkdownIt

    parser: Any = MarkdownIt("commonmark", {"html": True}).enable("table")
    rules: dict[str, Any] = parser.renderer.rules
    rules["html_inline"] = rules["html_block"] = _render_tag
    rules["image"] = _render_image
    rules["table_open"] = _open_table
    rules["table_close"] = _close_table
    return parser


def _render_tag(tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
    tag = tokens[index].content
    return tag if tag == "<br>" else html.escape(tag)


def _render_image(tokens: Sequence[Any], index: int, _options: Any, env: Any) -> str:
    """Put a figure of the run into the page, in its language; one that is missing is left out."""
    path = env["folder"] / tokens[index].attrs["src"]
    own = path.with_name(f"{path.stem}-{env['language']}{path.suffix}")
    path = own if own.is_file() else path
    if path.suffix != ".svg" or not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    alternative = html.escape(tokens[index].content)
    picture = f'<img alt="{alternative}" src="data:image/svg+xml;base64,{data}">'
    return f'<span class="figure" tabindex="0">{picture}</span>'


def _open_table(tokens: Sequence[Any], index: int, _options: Any, _env: Any) -> str:
    return f'<div class="table"><table class="{tokens[index].meta["kind"]}">\n'


def _close_table(_tokens: Sequence[Any], _index: int, _options: Any, _env: Any) -> str:
    return "</table></div>\n"


def _label_cells(tokens: Sequence[Any]) -> None:
    """Give each cell the head of its column, which a narrow screen shows beside it."""
    table: Any = None
    heads: list[str] = []
    column = 0
    for before, token in pairwise(tokens):
        if token.type == "table_open":
            table, heads = token, []
            table.meta["kind"] = "numbers"
        elif before.type == "th_open":
            heads.append(token.content)
            table.meta["kind"] = "sides" if len(heads) == _SIDES else "numbers"
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            token.attrSet("data-head", heads[column])
            column += 1
