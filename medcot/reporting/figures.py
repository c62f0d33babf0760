"""Draws the report's figures: training loss, each test row's change, each set's change.

The charts are altair's; their colours and the language of their labels are arguments, so that the
report and the pages share them. vl-convert turns them into SVG without a browser. Both packages
are optional: a run without them has a report without figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcot.catalog import say
from medcot.reporting.schema import Figure, Report

WIDTH, HEIGHT, LABEL = 740, 240, 260
FONT = "system-ui, Noto Sans, Noto Sans CJK SC, Microsoft YaHei, sans-serif"
"""The typeface of the pages that show the figures."""

NOTED = ("seeds", "differences", "accuracy")
"""Figures that need a line that says what is what."""


@dataclass(frozen=True, slots=True)
class ChartTheme:
    """Colours of a chart: better and worse values, and lines."""

    better: str
    worse: str
    line: str


PAPER = ChartTheme("#2b6cb0", "#c05621", "#4a5568")
"""Colours for a white background."""


def can_draw() -> bool:
    """Tell whether the packages for figures are installed."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("altair", "vl_convert"))


def write_figures(
    report: Report, events: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[Figure, ...]:
    """Write the figures into ``folder/figures`` and return them.

    Beside each one, ``NAME-zh.svg`` is the same with Chinese words. There are none without altair
    and vl-convert (extra ``app``), and none without data.
    """
    if not can_draw():
        return ()
    written: list[Figure] = []
    for language, suffix in (("en", ""), ("zh", "-zh")):
        charts = {
            "loss": loss_chart(events, PAPER, language),
            "seeds": seed_chart(report, PAPER, language),
            "differences": difference_chart(report, PAPER, language),
            "accuracy": accuracy_chart(report, PAPER, language),
        }
        for name, chart in charts.items():
            if chart is None:
                continue
            path = folder / "figures" / f"{name}{suffix}.svg"
            path.parent.mkdir(parents=True, exist_ok=True)
            title = say(f"figure_{name}", language)
            note = say(f"{name}_caption", language) if name in NOTED else ""
            _finish(chart, title, note).save(path)
            if not suffix:
                written.append(Figure(f"figures/{path.name}", title))
    return tuple(written)


def loss_chart(
    events: Sequence[Mapping[str, Any]], theme: ChartTheme = PAPER, language: str = "en"
) -> Any:
    """Draw training loss, and validation loss if there is any, by step; None without steps."""
    import altair as alt

    if not events:
        return None
    names = [say(f"curve_{name}", language) for name in ("training", "validation")]
    found = [
        (event["step"], event.get(kind), name)
        for kind, name in zip(("loss", "validation_loss"), names, strict=True)
        for event in events
    ]
    points = [
        {"step": step, "loss": loss, "rows": name} for step, loss, name in found if loss is not None
    ]
    chart = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("step:Q", title=say("step", language), axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("loss:Q", title=say("loss_both_axis", language), scale=alt.Scale(zero=False)),
    )
    if len(points) == len(events):
        return chart.mark_line(color=theme.better, point=len(points) <= 60)
    colours = alt.Scale(domain=names, range=[theme.better, theme.worse])
    return chart.mark_line(point=len(points) <= 80).encode(
        color=alt.Color("rows:N", title=None, scale=colours)
    )


def difference_chart(report: Report, theme: ChartTheme = PAPER, language: str = "en") -> Any:
    """Draw each test row's loss after minus before, in order of size; None without rows.

    The line is the mean over tokens, the band its interval.
    """
    import altair as alt

    rows, paired = report.differences, report.paired.nll
    if not rows or paired is None:
        return None
    changes = sorted(row.after - row.before for row in rows)
    points = [{"row": i + 1, "change": c, "better": c < 0} for i, c in enumerate(changes)]
    zero = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color=theme.line, strokeDash=[4, 3])
    dots = (
        alt.Chart(alt.Data(values=points))
        .mark_circle(size=45, opacity=0.9)
        .encode(
            x=alt.X(
                "row:Q",
                title=say("rows_by_change", language),
                axis=alt.Axis(tickMinStep=1, grid=False),
                scale=alt.Scale(domain=[0.5, len(points) + 0.5], nice=False),
            ),
            y=alt.Y("change:Q", title=say("loss_change_axis", language)),
            color=alt.condition("datum.better", alt.value(theme.better), alt.value(theme.worse)),
        )
    )
    layers = [zero.encode(y="y:Q"), dots]
    if paired.low is not None:
        ends = {"difference": paired.difference, "low": paired.low, "high": paired.high}
        span = alt.Data(values=[ends])
        layers.insert(
            0,
            alt.Chart(span)
            .mark_rect(color=theme.line, opacity=0.15)
            .encode(y="low:Q", y2="high:Q"),
        )
        layers.append(alt.Chart(span).mark_rule(color=theme.line).encode(y="difference:Q"))
    return alt.layer(*layers)


def seed_chart(report: Report, theme: ChartTheme = PAPER, language: str = "en") -> Any:
    """Draw each seed's change of test loss with its interval; None for a single training.

    The line is the mean of all seeds, the band its interval over rows and seeds.
    """
    import altair as alt

    seeds = report.seeds
    if seeds is None or seeds.nll is None:
        return None
    points = [
        {"seed": f"{one.seed}{' *' if one.kept else ''}", "change": one.nll.difference,
         "low": one.nll.low, "high": one.nll.high}
        for one in seeds.runs if one.nll is not None
    ]  # fmt: skip
    ends = {"change": seeds.nll.difference, "low": seeds.nll.low, "high": seeds.nll.high}
    whole = alt.Chart(alt.Data(values=[ends]))
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("seed:N", title=say("seeds_axis", language), axis=alt.Axis(labelAngle=0))
    )
    zero = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color=theme.line, strokeDash=[4, 3])
    return alt.layer(
        whole.mark_rect(color=theme.line, opacity=0.15).encode(
            y=alt.Y("low:Q", title=say("loss_change_axis", language)), y2="high:Q"
        ),
        zero.encode(y="y:Q"),
        whole.mark_rule(color=theme.line).encode(y="change:Q"),
        base.mark_rule(color=theme.better, strokeWidth=2).encode(y="low:Q", y2="high:Q"),
        base.mark_circle(size=90, color=theme.better, opacity=1).encode(y="change:Q"),
    )


def accuracy_chart(report: Report, theme: ChartTheme = PAPER, language: str = "en") -> Any:
    """Draw each set's change of right answers with its interval; None if no set was asked."""
    import altair as alt

    mcq = report.paired.mcq
    if not mcq or not mcq.sets:
        return None
    points = [
        {
            "set": f"{name} (n={one.n})",
            "difference": 100 * one.difference,
            "low": 100 * (one.difference if one.low is None else one.low),
            "high": 100 * (one.difference if one.high is None else one.high),
        }
        for name, one in mcq.sets.items()
    ]
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("set:N", title=None, sort=None, axis=alt.Axis(labelLimit=LABEL))
    )
    title = say("accuracy_change_axis", language)
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color=theme.line, strokeDash=[4, 3])
    return alt.layer(
        zero.encode(x="x:Q"),
        base.mark_rule(color=theme.line, strokeWidth=2).encode(
            x=alt.X("low:Q", title=title), x2="high:Q"
        ),
        base.mark_circle(size=90, color=theme.better, opacity=1).encode(x="difference:Q"),
    ).properties(height=max(60, 34 * len(points)))


def _finish(chart: Any, title: str, note: str) -> Any:
    """Give a chart its title and size, and letters as large as the text of the page."""
    import altair as alt

    heading = {"text": title, "subtitle": re.split(r"(?<=[.。]) ?(?=\S)", note)} if note else title
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    sized = chart.properties(title=heading, width=WIDTH, background="white", autosize=fit)
    if "height" not in chart.to_dict():
        sized = sized.properties(height=HEIGHT)
    letters = {"labelFontSize": 13, "titleFontSize": 13, "titleFontWeight": "normal"}
    # A page's own font may be wider than the one that the labels were measured with; so there is
    # room at the left, and the title of the upright axis lies above it.
    above = {"titleAngle": 0, "titleAnchor": "end", "titleAlign": "left", "titleX": 0}
    return (
        sized.configure(font=FONT, padding={"left": 32, "right": 14, "top": 10, "bottom": 10})
        .configure_axis(**letters)
        .configure_axisY(**above, titleBaseline="bottom", titleY=-8)
        .configure_legend(**letters, orient="top-right")
        .configure_title(anchor="start", frame="group", fontSize=15, subtitleFontSize=13, offset=28)
    )
