"""Makes small pieces of HTML. Every text from outside the project goes through :func:`text`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def text(value: object) -> str:
    """Escape ``value`` for HTML, and make invisible control characters visible."""
    visible = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    return html.escape(visible, quote=True)


def paragraphs(value: str) -> str:
    """Return an untrusted text with its line breaks kept."""
    return f'<div class="mc-text">{text(value.strip())}</div>'


_MARKS = (
    (re.compile(r"^\s{0,3}#{1,6}\s+(.+?)\s*$", re.MULTILINE), r"<b>\1</b>"),
    (re.compile(r"\*\*(?=\S)([^*\n<>]+?)(?<=\S)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n<>]+?)(?<=\S)\*(?![\w*])"), r"<em>\1</em>"),
    (re.compile(r"`([^`\n<>]+)`"), r"<code>\1</code>"),
    (re.compile(r"^(\s*)[-*] (?=\S)", re.MULTILINE), "\\1\u2022 "),
)
"""The Markdown that answers use: headings, strong and stressed words, code, lists."""


def prose(value: str) -> str:
    """Return an untrusted Markdown text: it is escaped first, so only the marks become tags."""
    shown = text(value.strip())
    for mark, tags in _MARKS:
        shown = mark.sub(tags, shown)
    return f'<div class="mc-text">{shown}</div>'


def without_marks(value: str) -> str:
    """Return a Markdown text without its marks, as two texts are compared."""
    for mark, tags in _MARKS:
        value = mark.sub(re.sub("<[^>]+>", "", tags), value)
    return value


def join(*parts: str) -> str:
    """Stack pieces of HTML vertically."""
    return f'<div class="mc-stack">{"".join(parts)}</div>'


def columns(*parts: str) -> str:
    """Place pieces of HTML side by side; on a narrow page, stack them."""
    cells = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="mc-columns">{cells}</div>'


def card(title: str, body: str, kind: str = "") -> str:
    """Put ``body`` (HTML) under a small title (text)."""
    return f'<section class="mc-card {kind}"><h4>{text(title)}</h4>{body}</section>'


def callout(kind: str, title: str, body: str = "") -> str:
    """Return a highlighted note; ``kind`` is note, good, bad or warn."""
    role = "alert" if kind == "bad" else "note"
    return f'<aside class="mc-callout mc-{kind}" role="{role}"><b>{text(title)}</b>{body}</aside>'


def paragraph(value: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{text(value)}</p>"


def small(value: str) -> str:
    """Return a remark in small print."""
    return f'<p class="mc-small">{text(value)}</p>'


def items(lines: Iterable[str]) -> str:
    """Return a list of plain texts."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def code(value: str) -> str:
    """Return a command to copy."""
    return f'<pre class="mc-code" tabindex="0"><code>{text(value)}</code></pre>'


def python(value: str) -> str:
    """Return Python code with its comments, words and numbers told apart."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    marked = highlight(value, PythonLexer(), HtmlFormatter(nowrap=True, classprefix="mc-py-"))
    return f'<pre class="mc-code mc-python" tabindex="0"><code>{marked}</code></pre>'


def details(title: str, body: str, *, opened: bool = False) -> str:
    """Hide ``body`` (HTML) behind a title (text)."""
    start = "<details open>" if opened else "<details>"
    return f"{start}<summary>{text(title)}</summary>{body}</details>"


def folds(*parts: str) -> str:
    """Place :func:`details` side by side as long as they are closed."""
    return f'<div class="mc-folds">{"".join(parts)}</div>'


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table whose cells are HTML; escape plain text with :func:`text`."""
    head = "".join(f'<th scope="col">{text(one)}</th>' for one in headers)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    return (
        f'<div class="mc-scroll" tabindex="0"><table class="mc-table {kind}">'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values (text) in as many columns as fit."""
    cells = "".join(f"<div><dt>{text(n)}</dt><dd>{text(v)}</dd></div>" for n, v in pairs)
    return f'<dl class="mc-facts">{cells}</dl>'


def figure(picture: str, alt: str, caption: str = "") -> str:
    """Return an SVG or other picture (HTML) with its text alternative."""
    under = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="mc-figure"><div role="img" aria-label="{text(alt)}">{picture}</div>'
        f"{under}</figure>"
    )


def heading(anchor: str, title: str) -> str:
    """Return a section's heading, to which the table of contents links."""
    return f'<h2 id="{text(anchor)}">{text(title)}</h2>'


def localized(body: str, language: str) -> str:
    """Mark ``body`` (HTML) with its language."""
    tag = {"en": "en", "zh": "zh-CN"}[language]
    return f'<div class="mc" lang="{tag}">{body}</div>'
