"""Pieces of the page as HTML: charts with their words, tables, key numbers."""

import html
import json
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mde.reporting.table import Table


def figure(chart: go.Figure, label: str, caption: str) -> str:
    """A chart, the data it is drawn from, and what it shows in words."""
    return _figure(str(chart.to_json()), "", chart.layout.height, label, caption)


def choice(charts: Mapping[str, go.Figure], question: str, label: str, caption: str) -> str:
    """Charts of one kind, one of them shown at a time; the first is shown at first."""
    options = "".join(f"<option>{html.escape(name)}</option>" for name in charts)
    control = f'<label class="choice">{html.escape(question)} <select>{options}</select></label>'
    data = ", ".join(f"{json.dumps(name)}: {chart.to_json()}" for name, chart in charts.items())
    height = max(chart.layout.height for chart in charts.values())
    return _figure(f"{{{data}}}", control, height, label, caption)


def _figure(data: str, control: str, height: int, label: str, caption: str) -> str:
    safe = data.replace("<", "\\u003c")
    return (
        f'<figure>{control}<div class="chart" role="img" style="min-height:{height}px"'
        f' aria-label="{html.escape(label)}"></div>'
        f'<script type="application/json">{safe}</script>'
        f"<figcaption><strong>{html.escape(label)}.</strong> {html.escape(caption)}</figcaption></figure>"
    )


def table(content: Table) -> str:
    """A table under its title."""
    return f"<h3>{html.escape(content.title)}</h3>{content.html()}"


def details(content: Table) -> str:
    """A table behind its title."""
    return f"<details><summary>{html.escape(content.title)}</summary>{content.html()}</details>"


def listing(title: str, label: str, value: str, rows: Mapping[str, str]) -> Table:
    """A table of one column of prose."""
    frame = pd.DataFrame({value: list(rows.values())}, pd.Index(list(rows), name=label))
    return Table(title, frame, prose=True)


def numbers(cells: list[tuple[str, str, str]]) -> str:
    """Key numbers: what, value, remark."""
    written = (
        f"<div><dt>{what}</dt><dd>{value} <small>{remark}</small></dd></div>"
        for what, value, remark in (map(html.escape, cell) for cell in cells)
    )
    return f'<dl class="numbers">{"".join(written)}</dl>'


def verdict(sentence: str) -> str:
    """A sentence that stands out."""
    return f'<p class="verdict">{html.escape(sentence)}</p>'
