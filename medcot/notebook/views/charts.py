"""Figures as SVG in the page's own colours: they follow light and dark, and need no script."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from medcot.catalog import say
from medcot.notebook.views.markup import figure
from medcot.reporting.figures import (
    ChartTheme,
    accuracy_chart,
    difference_chart,
    loss_chart,
    seed_chart,
)
from medcot.reporting.schema import Report
from medcot.stats.paired import PairedDifference

INK = "currentColor"
HUES = ("#3b82c4", "#d9822b", "#3a9d6e", "#b45fb0", "#8a8f98", "#c9514b")
PAGE = ChartTheme(better=HUES[0], worse="#c05621", line=INK)
"""Colours that can be read on white and on black."""

HEIGHT, NARROW = 160, 300
"""Pixels. Of two drawings of a chart the page shows the one for its own width, so that the letters
are as large as the text's."""

HALF = 480
"""Width of a chart that stands beside something."""

POINTS = 300
"""Points of one curve; more of them cannot be told apart."""


def draw(chart: Any, alt: str, caption: str = "", *, widest: int = 960) -> str:
    """Draw an altair chart as a figure, ``widest`` pixels wide; the same one is drawn once."""
    # Without altair's check against its schema, which takes longer than all the rest.
    given: dict[str, Any] = chart.to_dict(validate=False)
    drawings: list[str] = []
    for kind, width in (("mc-chart mc-wide", widest), ("mc-chart mc-narrow", NARROW)):
        sized = {"height": HEIGHT} | given | {"width": width, "background": "transparent"}
        sized["autosize"] = {"type": "fit", "contains": "padding"}
        specification = json.dumps(_with_ink(sized), sort_keys=True)
        # Two charts of one page must not share ids, and the page scales them by itself.
        drawings.append(_svg(specification).replace("<svg ", f'<svg class="{kind}" ', 1))
    return figure("".join(drawings), alt, caption)


@lru_cache(maxsize=1)
def warm_up() -> None:
    """Start the drawing engine in a thread while the page loads: it takes 0.6 s."""
    empty = json.dumps({"mark": "point", "data": {"values": []}})
    threading.Thread(target=_svg, args=(empty,), name="medcot-charts", daemon=True).start()


@lru_cache(maxsize=256)
def _svg(specification: str) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(specification)


def _with_ink(specification: dict[str, Any]) -> dict[str, Any]:
    axis = {
        "labelColor": INK,
        "titleColor": INK,
        "tickColor": INK,
        "domainColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.15,
        "labelFontSize": 14,
        "titleFontSize": 14,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelFlush": False,
        "labelOverlap": True,
        "labelSeparation": 6,
    }
    legend = {"labelColor": INK, "titleColor": INK, "labelFontSize": 14, "orient": "top"}
    own = {
        "axis": axis,
        "legend": legend,
        "view": {"stroke": None},
        "font": "system-ui, sans-serif",
        # The page's own font may be wider than the one that the labels were measured with.
        "padding": {"left": 14, "right": 14, "top": 26, "bottom": 5},
        # Upright above the axis: turned, a long title is longer than the chart is high.
        "axisY": {
            "titleAngle": 0,
            "titleAnchor": "end",
            "titleAlign": "left",
            "titleBaseline": "bottom",
            "titleX": 0,
            "titleY": -8,
        },
    }
    return specification | {"config": specification.get("config", {}) | own}


@lru_cache(maxsize=64)
def draw_lengths(lengths: tuple[int, ...], longest: int, language: str) -> str:
    """Draw a histogram of row lengths in tokens, with the longest one allowed."""
    import altair as alt

    # Where the limit lies below every row, the bars reach down to it, so that both can be seen.
    low, high = min(*lengths, longest), max(lengths)
    bins = alt.Bin(maxbins=24, extent=[low, high]) if low < high else alt.Bin(maxbins=24)
    values = [{"tokens": length, "kept": length <= longest} for length in lengths]
    over = sum(not one["kept"] for one in values)
    bars = (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X("tokens:Q", bin=bins, title=say("tokens_per_row", language)),
            y=alt.Y("count()", title=say("rows", language)),
            color=alt.Color(
                "kept:N",
                legend=None,
                scale=alt.Scale(domain=[True, False], range=list(HUES[:2])),
            ),
        )
    )
    top = max([*lengths, 1])
    alt_text = say("lengths_alt", language, n=len(lengths), low=min(lengths), high=top, over=over)
    if longest > 1.15 * top:
        fits = say("lengths_all_fit", language, longest=f"{longest:,}")
        return draw(bars, alt_text, fits, widest=HALF)
    rule = alt.Chart(alt.Data(values=[{"x": longest}])).mark_rule(
        color=HUES[1], strokeWidth=2, strokeDash=[5, 4]
    )
    caption = say("lengths_caption", language, longest=f"{longest:,}", over=over)
    return draw(alt.layer(bars, rule.encode(x="x:Q")), alt_text, caption, widest=HALF)


def draw_loss(
    events: Sequence[Mapping[str, Any]],
    language: str,
    steps: int = 0,
    test: Mapping[str, float] | None = None,
) -> str:
    """Draw training loss by step; once a tenth is done the axis reaches the last of ``steps``.

    ``test`` has the mean loss of the test rows before and, if known, after training: each is a
    line across, since no test row is looked at while the model trains.
    """
    import altair as alt

    chart = loss_chart(_thinned(events), PAGE, language)
    if chart is None:
        return ""
    done = events[-1]["step"]
    # Of a long run so much that its first steps can be seen.
    scale = alt.Scale(domain=[0, max(min(steps, 10 * done), done, 1)], nice=False)
    axis = "loss_both_axis" if test else "loss_axis"
    chart = chart.encode(
        x=alt.X(
            "step:Q",
            title=say("step", language),
            scale=scale,
            axis=alt.Axis(tickMinStep=1, format=",d"),
        ),
        y=alt.Y("loss:Q", title=say(axis, language), scale=alt.Scale(zero=False)),
    )
    first, last = events[0]["loss"], events[-1]["loss"]
    alt_text = say("loss_alt", language, first=f"{first:.2f}", last=f"{last:.2f}", n=len(events))
    if not test:
        return draw(chart, alt_text, say("loss_caption", language))
    marks = [
        {"loss": loss, "said": say(f"testrows_{phase}", language, loss=f"{loss:.3f}")}
        for phase, loss in test.items()
    ]
    lines = alt.Chart(alt.Data(values=marks)).encode(y="loss:Q")
    rules = lines.mark_rule(color=HUES[1], strokeWidth=2, strokeDash=[6, 4])
    # At the right end, over the line: there the curve is far from where it began.
    place = alt.value("width")
    words = lines.mark_text(
        align="right", baseline="bottom", dx=-4, dy=-3, color=INK, fontSize=14
    ).encode(text="said:N", x=place)
    said = " ".join([alt_text, *(f"{mark['said']}." for mark in marks)])
    return draw(alt.layer(rules, chart, words), said, say("loss_caption_test", language))


def _thinned(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep about ``POINTS`` events, evenly spaced, with the last and all validations."""
    every, last = max(1, len(events) // POINTS), len(events) - 1
    return [
        event
        for at, event in enumerate(events)
        if at % every == 0 or at == last or event.get("validation_loss") is not None
    ]


def draw_losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], language: str) -> str:
    """Draw the training loss of several runs in one chart."""
    import altair as alt

    values = [
        {"run": name, "step": event["step"], "loss": event["loss"]}
        for name, events in runs.items()
        for event in _thinned(events)
    ]
    if not values:
        return ""
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title=say("step", language), axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("loss:Q", title=say("loss_axis", language), scale=alt.Scale(zero=False)),
            color=alt.Color(
                "run:N", title=None, sort=None, scale=alt.Scale(range=list(HUES), domain=list(runs))
            ),
        )
    )
    return draw(chart, say("losses_alt", language, names=", ".join(runs)))


def draw_differences(report: Report, language: str) -> str:
    """Draw each test row's change of loss, with the mean's interval."""
    chart = difference_chart(report, PAGE, language)
    if chart is None:
        return ""
    better = sum(row.after < row.before for row in report.differences)
    worse = sum(row.after > row.before for row in report.differences)
    alt_text = say("differences_alt", language, better=better, worse=worse)
    return draw(chart, alt_text, say("differences_caption", language))


def draw_seeds(report: Report, language: str) -> str:
    """Draw a dot for each seed, and what all of them say; nothing for a single training."""
    chart = seed_chart(report, PAGE, language)
    if chart is None or report.seeds is None:
        return ""
    changes = [one.nll.difference for one in report.seeds.runs if one.nll]
    alt_text = say("seeds_alt", language, values=", ".join(f"{one:+.3f}" for one in changes))
    return draw(chart, alt_text, say("seeds_caption", language))


def draw_interval(curve: Sequence[PairedDifference], chosen: int, language: str) -> str:
    """Draw the change and its interval by the number of test rows, with the chosen number."""
    import altair as alt

    points = [
        {"rows": one.n, "change": one.difference, "low": one.low, "high": one.high}
        for one in curve
        if one.low is not None
    ]
    if not points:
        return ""
    axis = alt.X("rows:Q", title=say("test_rows", language), axis=alt.Axis(tickMinStep=1))
    base = alt.Chart(alt.Data(values=points))
    # Two rows give an interval so wide that no other could be seen beside it.
    widths = sorted(one["high"] - one["low"] for one in points)
    reach = 3 * widths[len(widths) // 2] / 2
    middle = points[-1]["change"]
    scale = alt.Scale(domain=[min(middle - reach, 0), max(middle + reach, 0)], clamp=True)
    y_axis = alt.Y("low:Q", title=say("loss_change_axis", language), scale=scale)
    band = base.mark_area(color=HUES[0], opacity=0.25).encode(x=axis, y=y_axis, y2="high:Q")
    line = base.mark_line(color=HUES[0], strokeWidth=2).encode(x=axis, y="change:Q")
    zero = alt.Chart(alt.Data(values=[{"y": 0}])).mark_rule(color=INK, strokeDash=[4, 3])
    here = alt.Chart(alt.Data(values=[{"x": chosen}])).mark_rule(color=HUES[1], strokeWidth=2)
    first, last = points[0], points[-1]
    alt_text = say(
        "interval_alt",
        language,
        few=first["rows"],
        many=last["rows"],
        wide=f"{first['high'] - first['low']:.2f}",
        narrow=f"{last['high'] - last['low']:.2f}",
    )
    chart = alt.layer(band, line, zero.encode(y="y:Q"), here.encode(x="x:Q"))
    return draw(chart, alt_text, say("interval_caption", language, n=chosen))


def draw_accuracy(report: Report, language: str) -> str:
    """Draw each question set's change of right answers, with its interval."""
    chart, found = accuracy_chart(report, PAGE, language), report.paired.mcq
    if chart is None or found is None:
        return ""
    alt_text = say("accuracy_alt", language, change=f"{100 * found.difference:+.1f}")
    return draw(chart, alt_text, say("accuracy_caption", language))
