"""Makes the parts of a page for marimo: sections, contents, errors, controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import marimo as mo

from medcot.catalog import Message, duration, say
from medcot.notebook.controls import explain
from medcot.notebook.results import ErrorText, Result
from medcot.notebook.views.answers import disclaimer
from medcot.notebook.views.markup import (
    callout,
    code,
    columns,
    heading,
    localized,
    paragraphs,
    python,
    small,
    table,
    text,
)
from medcot.notebook.views.prose import Prose, cell_sources, list_sections
from medcot.notebook.views.rows import show_failure
from medcot.notebook.views.training import describe_sending
from medcot.paths import PROJECT
from medcot.planning.plan import Plan
from medcot.runs.history import RunRecord

View = Callable[..., str]

STYLE = "tutorial.css"

MUCH_CODE = 12
"""Lines of a cell beyond which its code is given more of the page's width."""


def title(prose: Prose) -> str:
    """Return the page's title."""
    shown = f'<h1 class="mc-title">{text(prose.title("claim"))}</h1>'
    return localized(shown, prose.language)


def body(prose: Prose, key: str, **values: object) -> mo.Html:
    """Return the text of a section without its heading."""
    return mo.Html(localized(mo.md(prose.body(key, **values)).text, prose.language))


def section(prose: Prose, key: str, **values: object) -> mo.Html:
    """Return a section's heading and text."""
    told = heading(key, prose.title(key)) + mo.md(prose.body(key, **values)).text
    return mo.Html(localized(told, prose.language))


def tell(prose: Prose, cells: Mapping[str, str], key: str, *parts: Any, code: str = "") -> mo.Html:
    """Return a section, its controls, and the code of the cell that follows it.

    Args:
        cells: The code of cells by name, where the page does not show it itself.
        code: The name of the cell.
    """
    told = heading(key, prose.title(key)) + stack(mo.md(prose.body(key)), *parts).text
    if code in cells:
        shown = localized(python(cells[code]), "en")
        kind = "mc-beside mc-much" if cells[code].count("\n") > MUCH_CODE else "mc-beside"
        told = f'<div class="{kind}"><div>{told}</div>{shown}</div>'
    return mo.Html(localized(told, prose.language))


def fold(prose: Prose, key: str, *parts: Any) -> mo.Html:
    """Return a section that opens on a click."""
    body = stack(mo.md(prose.body(key)), *parts).text
    title = f'<summary><h2 id="{text(key)}">{text(prose.title(key))}</h2></summary>'
    shown = f'<details class="mc-fold">{title}{body}</details>'
    return mo.Html(localized(shown, prose.language))


def read_cells(folder: Path | None) -> dict[str, str]:
    """Return the code of every named cell of the notebook in ``folder``, by the cell's name."""
    return cell_sources(((folder or Path()) / "tutorial.py").read_text(encoding="utf-8"))


def contents(prose: Prose, *, aside: bool) -> str:
    """Return links to the sections; ``aside`` keeps them beside the page where it is wide."""
    links = "".join(
        f'<a href="#{text(key)}">{text(name)}</a>'
        for key, name in list_sections(prose)
        if key != "claim"
    )
    label = text(say("contents", prose.language))
    kind = "mc-toc mc-side" if aside else "mc-toc"
    return localized(f'<nav class="{kind}" aria-label="{label}">{links}</nav>', prose.language)


def own_style(folder: Path | None) -> mo.Html | None:
    """Return the style sheet of a notebook that lies in ``folder`` without it, else None."""
    if folder is not None and (folder / STYLE).is_file():
        return None
    return mo.Html(f"<style>{(PROJECT / 'apps' / STYLE).read_text(encoding='utf-8')}</style>")


def other_language(language: str) -> mo.Html:
    """Return the link from one language's static page to the other's."""
    page = {"en": "zh.html", "zh": "index.html"}[language]
    name = text(say("other_language", language))
    return mo.Html(f'<p class="mc"><a href="{page}" data-other-language>{name}</a></p>')


def show(language: str, view: View, value: Any, *arguments: Any, **options: Any) -> mo.Html:
    """Show ``value`` by ``view``; show a failed :class:`Result` as its error."""
    if isinstance(value, Result):
        if value.failure is not None:
            return failure(value.failure, language)
        value = value.value
    return mo.Html(localized(view(value, *arguments, language, **options), language))


def failure(found: ErrorText | None, language: str) -> mo.Html:
    """Show an error with what to do."""
    return mo.Html(localized(show_failure(found, language) if found else "", language))


def refusal(asked: Result | None, language: str) -> mo.Html | None:
    """Show why a button's action failed, if it failed."""
    found = asked.failure if asked else None
    return failure(found, language) if found else None


def show_growing(replace: Callable[[mo.Html], None], reply: Mapping[str, Any]) -> None:
    """Show a growing answer, or two of them, with the disclaimer in both languages."""
    grown = reply.get("pair", (reply,))
    texts = [paragraphs(f"{one['thought']}\n\n{one['answer']}" if one else "…") for one in grown]
    written = columns(*texts) if len(texts) > 1 else texts[0]
    replace(mo.Html(localized(written + disclaimer("en") + disclaimer("zh"), "en")))


def sent(outcome: Result | None, language: str) -> mo.Html | None:
    """Show the result of the last step on the Kaggle panel."""
    if outcome is None:
        return None
    if outcome.failure is not None:
        return failure(outcome.failure, language)
    return mo.Html(localized(describe_sending(outcome.value, language), language))


def note(key: str, language: str, kind: str = "note", **values: str | float | Message) -> mo.Html:
    """Show a remark from the catalog."""
    return mo.Html(localized(callout(kind, say(key, language, **values)), language))


def command(value: str) -> mo.Html:
    """Show a command to copy."""
    return mo.Html(localized(code(value), "en"))


def which_run(run: RunRecord, language: str) -> mo.Html:
    """Say which run a section shows."""
    key = "bundled_run" if run.bundled else "shown_run"
    key = key if run.has_report else "unscored_run"
    said = say(key, language, name=run.name, steps=len(run.events))
    return mo.Html(localized(small(said), language))


def stack(*parts: Any) -> mo.Html:
    """Stack parts vertically, without those that are None."""
    return mo.vstack([part for part in parts if part is not None])


def beside(*parts: mo.Html) -> mo.Html:
    """Place parts side by side; on a narrow page, stack them."""
    return mo.Html(columns(*(part.text for part in parts)))


def plain(value: str, language: str) -> mo.Html:
    """Show a text in small print."""
    return mo.Html(localized(small(value), language))


def training_time(plan: Plan | None, machine: str, language: str) -> mo.Html | None:
    """Say how long a training takes if the plan is for this machine."""
    if machine != "here":
        return plain(say("train_here", language, machine=machine), language)
    if plan is None:
        return None
    time = duration(plan.time_s["total"], language)
    return plain(say("train_takes", language, time=time), language)


def reason(preset: str, why: str | Message, language: str) -> mo.Html | None:
    """Say why this preset was chosen, if nobody named one."""
    if not why:
        return None
    said = say("preset_why", language, preset=preset, why=why)
    return plain(said, language)


def knobs(elements: Mapping[str, Any], names: Sequence[str], language: str) -> mo.Html:
    """Place controls side by side, each with its explanation."""
    cells = [
        f'<div data-knob="{name}" data-label="{text(explain(name, language))}">'
        f"{elements[name]}{small(explain(name, language))}</div>"
        for name in names
        if name in elements
    ]
    return mo.Html(localized(f'<div class="mc-controls">{"".join(cells)}</div>', language))


def settings_table(values: Mapping[str, Any], language: str) -> mo.Html:
    """Show the settings on a static page, where controls would have no effect."""
    rows = [
        (f"<code>{text(name)}</code>", text(value), text(explain(name, language)))
        for name, value in values.items()
    ]
    headers = [say(key, language) for key in ("setting", "set_to", "setting_help")]
    return mo.Html(localized(table(headers, rows), language))
