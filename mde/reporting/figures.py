"""Plotly figures of a study: data in, `go.Figure` out.

Colours are those of Okabe and Ito, told apart by the colour-blind; series differ in their symbols as well. Backgrounds
are transparent and text has no colour of its own, so a figure suits a light and a dark page; its width is the page's.
"""

import html
import itertools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.reporting import findings

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GRAY = "#888888"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
SHADES = ((0, "#e8f1f8"), (0.5, "#6fa8d3"), (1, "#0b3c6f"))
LOSS = "nats per token"
MAX_WRITTEN = 150  # cells of a heat map that still have room for their numbers


def predicted_vs_true(predictions: pd.DataFrame, methods: Sequence[tuple[str, str]]) -> go.Figure:
    """Out-of-fold predictions against what was observed; the legend shows and hides methods.

    Args:
      predictions: fit/predictions.csv: indexed by run, with regressor, features, observed and predicted.
      methods: pairs (regressor, features) on offer; the first two are shown at first.
    """
    figure = _figure(440)
    ends = predictions["observed"].agg(["min", "max"])
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRAY, "dash": "dot"}, name="exact", hoverinfo="skip"
    )
    for i, (regressor, features) in enumerate(methods):
        rows = predictions[(predictions["regressor"] == regressor) & (predictions["features"] == features)]
        figure.add_scatter(
            x=rows["observed"],
            y=rows["predicted"],
            mode="markers",
            name=f"{_text(regressor)}: {short(features)}",
            marker={**_mark(i), "opacity": 0.85},
            text=[_text(run) for run in rows.index],
            hovertemplate="%{text}<br>observed %{x:.4f}<br>predicted %{y:.4f}",
            visible=True if i < 2 else "legendonly",
        )
    figure.update_xaxes(title_text=f"observed, {LOSS}", nticks=6)
    figure.update_yaxes(title_text=f"predicted, {LOSS}", nticks=6)
    return figure


def errors(methods: pd.DataFrame) -> go.Figure:
    """Error of each method on a logarithmic axis: a row a feature set, a symbol a regressor.

    Args:
      methods: the table of `findings.regressors`.
    """
    tried = methods[methods["group"] != findings.MEAN]
    figure = _figure(120 + 24 * tried["features"].nunique())
    for i, (regressor, rows) in enumerate(tried.groupby("regressor", sort=False)):
        figure.add_scatter(
            x=rows["mse"] * 1e3,
            y=[short(name) for name in rows["features"]],
            error_x={"array": rows["mse_se"] * 1e3, "thickness": 1.2, "width": 0},
            mode="markers",
            name=_text(regressor if regressor != findings.ALONE else "evaluator alone"),
            marker=_mark(i),
            hovertemplate="%{y}<br>MSE %{x:.3g} ×10⁻³",
        )
    learnt_first = pd.concat([tried[tried["group"] != findings.ALONE], tried])
    order = list(learnt_first["features"].map(short).unique())
    for mean in methods.loc[methods["group"] == findings.MEAN, "mse"]:
        figure.add_scatter(
            x=[mean * 1e3] * 2,
            y=[order[0], order[-1]],
            mode="lines",
            line={"color": GRAY, "dash": "dot"},
            name="mean",
            hovertemplate="always the mean<br>MSE %{x:.3g} ×10⁻³",
        )
    decades = np.log10(methods["mse"].max() / methods["mse"].min())
    figure.update_xaxes(title_text="MSE ×10⁻³, out of fold", type="log", dtick=1 if decades > 2 else "D2")
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1])
    return figure


def expert_heatmap(losses: pd.DataFrame) -> go.Figure:
    """How much worse each expert is than the best one of a domain.

    Args:
      losses: a row an expert, a column an evaluation domain, nats per token.
    """
    behind = losses - losses.min()
    figure = _figure(150 + 34 * len(losses))
    figure.add_heatmap(
        z=behind.to_numpy(),
        x=[_text(name) for name in losses.columns],
        y=[_text(name) for name in losses.index],
        customdata=losses.to_numpy(),
        colorscale=SHADES,
        texttemplate="%{z:.2f}" if losses.size <= MAX_WRITTEN else None,
        hovertemplate=f"expert %{{y}} on %{{x}}<br>%{{customdata:.3f}} {LOSS}<br>%{{z:.3f}} more than the best",
        name="",
        showscale=losses.size > MAX_WRITTEN,
        colorbar={"thickness": 10},
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def mixture(shares: pd.DataFrame, rivals: Sequence[str]) -> go.Figure:
    """The recommended shares as bars, with their intervals where they are known, and other mixtures as symbols.

    Args:
      shares: the table of `findings.recommendation`.
      rivals: columns of it to compare with.
    """
    names = [_text(name) for name in shares.index]
    best = shares[findings.RECOMMENDED]
    figure = _figure(130 + 46 * len(shares))
    figure.add_bar(
        x=best,
        y=names,
        orientation="h",
        name=findings.RECOMMENDED,
        marker={"color": BLUE, "opacity": 0.45},
        hovertemplate="%{y}: %{x:.1%}",
    )
    if "low" in shares:
        _add_interval(figure, shares)
    for i, rival in enumerate(rivals, start=1):
        figure.add_scatter(
            x=shares[rival], y=names, mode="markers", name=_text(rival), marker=_mark(i), hovertemplate="%{y}: %{x:.1%}"
        )
    figure.update_xaxes(title_text="share of the training tokens", tickformat=".0%", rangemode="tozero", nticks=7)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def proof(summary: pd.DataFrame, runs: pd.DataFrame) -> go.Figure:
    """What was predicted of each mixture, and what its runs measured.

    Args:
      summary: a row a mixture: predicted, low, high, measured.
      runs: a row a run: mixture, seed, objective.
    """
    names = [_text(name) for name in summary.index]
    figure = _figure(150 + 56 * len(summary))
    _add_interval(figure, summary)
    figure.add_scatter(
        x=summary["predicted"],
        y=names,
        mode="markers",
        name="predicted",
        marker={"color": GRAY, "symbol": "diamond-open", "size": 12, "line": {"width": 2}},
        hovertemplate="%{y}<br>predicted %{x:.4f}",
    )
    figure.add_scatter(
        x=summary["measured"],
        y=names,
        mode="markers",
        name="measured, mean",
        marker={"color": VERMILLION, "symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
        hovertemplate="%{y}<br>measured %{x:.4f}",
    )
    figure.add_scatter(
        x=runs["objective"],
        y=[_text(name) for name in runs["mixture"]],
        mode="markers",
        name="measured, each seed",
        marker={"color": BLUE, "size": 8},
        text=[f"seed {seed}" for seed in runs["seed"]],
        hovertemplate="%{y}, %{text}<br>measured %{x:.4f}",
    )
    figure.update_xaxes(title_text=f"objective, {LOSS}", nticks=6)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def trade_off(losses: pd.DataFrame, reference: str) -> go.Figure:
    """Where each mixture wins and where it pays, against one of them.

    Args:
      losses: a row a mixture, a column an evaluation domain, nats per token.
      reference: the mixture that the others are compared with.
    """
    others = losses.drop(index=reference) - losses.loc[reference]
    figure = _figure(150 + 36 * losses.shape[1])
    for name, row in others.iterrows():
        figure.add_scatter(
            x=row.to_numpy(),
            y=[_text(domain) for domain in others.columns],
            mode="markers",
            name=_text(name),
            marker=_mark(list(losses.index).index(name)),
            hovertemplate="%{y}: %{x:+.4f}",
        )
    figure.add_vline(0, line={"color": GRAY, "width": 1})
    figure.update_xaxes(title_text=f"loss minus that of {_text(reference)}, {LOSS}", nticks=6)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def training_curves(curves: pd.DataFrame) -> go.Figure:
    """Training loss by step.

    Args:
      curves: columns run, step and loss.
    """
    figure = _figure(420)
    looks = itertools.cycle(itertools.product(("solid", "dash", "dot", "dashdot"), COLOURS))
    for name, rows in curves.groupby("run", sort=False):
        dash, colour = ("solid", GRAY) if name == "seed" else next(looks)
        figure.add_scatter(
            x=rows["step"],
            y=rows["loss"],
            mode="lines",
            name=_text(name),
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="step %{x:.0f}: %{y:.3f}",
        )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=f"training loss, {LOSS}")
    return figure


def short(features: str) -> str:
    """A feature set in few letters: the exponents of several mixtures of experts in one pair of brackets."""
    taus = re.findall(r"(?<![\w:])mde\[([^\]]+)\]", features)
    if len(taus) < 2:
        return _text(features)
    rest = [part for part in features.split("+") if not re.fullmatch(r"mde\[[^\]]+\]", part.strip())]
    return _text("+".join([f"mde[{', '.join(taus)}]", *rest]))


def _figure(height: int) -> go.Figure:
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


def _mark(i: int) -> dict:
    return {"color": COLOURS[i % len(COLOURS)], "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 10}


def _add_interval(figure: go.Figure, table: pd.DataFrame) -> None:
    """A whisker from `low` to `high` in each row, wherever the point estimate lies."""
    half = (table["high"] - table["low"]) / 2
    figure.add_scatter(
        x=table["low"] + half,
        y=[_text(name) for name in table.index],
        error_x={"array": half, "color": GRAY, "thickness": 2, "width": 5},
        mode="markers",
        marker={"color": GRAY, "size": 1, "symbol": "line-ew-open", "line": {"width": 2}},
        name="interval",
        customdata=table[["low", "high"]].to_numpy(),
        hovertemplate="%{y}: %{customdata[0]:.4f} to %{customdata[1]:.4f}",
    )


def _text(name: object) -> str:
    """A name out of the study as Plotly shows it: markup in it is not obeyed."""
    return html.escape(str(name), quote=False)
