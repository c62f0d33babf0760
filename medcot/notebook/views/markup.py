"""Small pieces of HTML. :func:`text` is the one way for a text that is not the project's own."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def text(value: object) -> str:
    """``value`` so that a page shows it and never runs it; unseen control characters show."""
    visible = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", str(value))
    return html.escape(visible, quote=True)


def paragraphs(value: str) -> str:
    """An untrusted text with its lines kept."""
    return f'<div class="mc-text">{text(value.strip())}</div>'


def join(*parts: str) -> str:
    """Pieces one under the other."""
    return f'<div class="mc-stack">{"".join(parts)}</div>'


def columns(*parts: str) -> str:
    """Pieces side by side, one under the other where the page is narrow."""
    cells = "".join(f"<div>{part}</div>" for part in parts)
    return f'<div class="mc-columns">{cells}</div>'


def card(title: str, body: str, kind: str = "") -> str:
    """``body`` (HTML) under a small title (text)."""
    return f'<section class="mc-card {kind}"><h4>{text(title)}</h4>{body}</section>'


def callout(kind: str, title: str, body: str = "") -> str:
    """A note that stands out; ``kind`` is note, good, bad or warn."""
    role = "alert" if kind == "bad" else "note"
    return f'<aside class="mc-callout mc-{kind}" role="{role}"><b>{text(title)}</b>{body}</aside>'


def paragraph(value: str) -> str:
    """One paragraph of plain text."""
    return f"<p>{text(value)}</p>"


def small(value: str) -> str:
    """A remark in small print."""
    return f'<p class="mc-small">{text(value)}</p>'


def items(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def code(value: str) -> str:
    """A command to copy."""
    return f'<pre class="mc-code" tabindex="0"><code>{text(value)}</code></pre>'


def details(title: str, body: str, *, opened: bool = False) -> str:
    """``body`` (HTML) behind a title (text)."""
    start = "<details open>" if opened else "<details>"
    return f"{start}<summary>{text(title)}</summary>{body}</details>"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table whose cells are HTML: escape them with :func:`text` where they are not."""
    head = "".join(f'<th scope="col">{text(one)}</th>' for one in headers)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    head = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    return (
        f'<div class="mc-scroll" tabindex="0"><table class="mc-table {kind}">'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names (text) with their values (text), in as many columns as fit."""
    cells = "".join(f"<div><dt>{text(n)}</dt><dd>{text(v)}</dd></div>" for n, v in pairs)
    return f'<dl class="mc-facts">{cells}</dl>'


def figure(picture: str, alt: str, caption: str = "") -> str:
    """An SVG or other picture (HTML) with the words that stand for it."""
    under = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="mc-figure"><div role="img" aria-label="{text(alt)}">{picture}</div>'
        f"{under}</figure>"
    )


def heading(anchor: str, title: str) -> str:
    """A section's heading, which the table of contents leads to."""
    return f'<h2 id="{text(anchor)}">{text(title)}</h2>'


def localized(body: str, language: str) -> str:
    """``body`` (HTML) marked with the language that it is written in."""
    tag = {"en": "en", "zh": "zh-CN"}[language]
    return f'<div class="mc" lang="{tag}">{body}</div>'
