"""What all figures share: colours, symbols, an empty figure.

Colours are those of Okabe and Ito, told apart by the colour-blind; series differ in their symbols as well. Backgrounds
are transparent and text has no colour of its own, so a figure suits a light and a dark page; its width is the page's.
"""

import html
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GRAY = "#888888"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
SHADES = ((0, "#e8f1f8"), (0.5, "#6fa8d3"), (1, "#0b3c6f"))
DIVERGING = ((0, "#b34700"), (0.25, "#e8a06a"), (0.5, "#f4f4f4"), (0.75, "#7fb2d9"), (1, "#0b4f8a"))
MANY_ROWS = 20  # that have room; more stand close together
MAX_WRITTEN = 150  # cells of a heat map that still have room for their numbers


def blank(height: int) -> go.Figure:
    """An empty figure with the looks that all share."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
        dragmode=False,
        hovermode="closest",
    )
    figure.update_xaxes(automargin=True, zeroline=False, showgrid=True)
    figure.update_yaxes(automargin=True, zeroline=False, showgrid=True)
    return figure


def height(rows: int, roomy: int) -> int:
    """Pixels of a figure with a name a row, by what a row takes while there are few."""
    return 150 + (roomy if rows <= MANY_ROWS else 20) * rows


def heat_map(table: pd.DataFrame, hover: str, colours: Any = SHADES, **more: Any) -> go.Figure:
    """A table as a heat map, its numbers in the cells while there is room for them.

    Args:
      table: [rows, columns].
      hover: what a cell says, of %{y}, %{x} and %{z}.
      colours: from the lowest to the highest number.
      more: further properties of Plotly's heat map.
    """
    figure = blank(height(len(table), 34))
    crowded = table.size > MAX_WRITTEN
    figure.add_heatmap(
        z=table.to_numpy(),
        x=[plain(name) for name in table.columns],
        y=[plain(name) for name in table.index],
        colorscale=colours,
        texttemplate=None if crowded else "%{z:.2f}",
        hovertemplate=hover,
        name="",
        showscale=crowded,
        colorbar={"thickness": 10},
        xgap=1,
        ygap=1,
        **more,
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, dtick=1)
    return figure


def mark(i: int) -> dict[str, Any]:
    """The marker of series i: no two of the first 36 are alike."""
    return {"color": COLOURS[i % len(COLOURS)], "symbol": SYMBOLS[(i + i // len(COLOURS)) % len(SYMBOLS)], "size": 10}


def log_ticks(values: npt.ArrayLike) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2 and 5 of each decade, or 1 alone where there are many.

    Values of zero are on no such axis; where there are no others it has no numbers.
    """
    shown = np.log10([value for value in np.ravel(values) if value > 0])
    if not len(shown):
        return []
    decades = range(int(np.floor(shown.min())), int(np.ceil(shown.max())) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [float(f"{step}e{decade}") for decade in decades for step in steps]


def plain(name: object) -> str:
    """A name out of the study as Plotly shows it: markup in it is not obeyed."""
    return html.escape(str(name), quote=False)
