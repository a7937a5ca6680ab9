"""Plotly figures of a study: data in, `go.Figure` out. Their looks are those of `style`."""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.reporting import findings
from mde.reporting.style import (
    BLUE,
    COLOURS,
    GRAY,
    VERMILLION,
    blank,
    heat_map,
    height,
    log_ticks,
    mark,
    plain,
)
from mde.study import NATS


def predicted_vs_true(predictions: pd.DataFrame, methods: Sequence[tuple[str, str]], unit: str = NATS) -> go.Figure:
    """Out-of-fold predictions against what was observed; the legend shows and hides methods.

    Args:
      predictions: fit/predictions.csv: indexed by run, with regressor, features, observed, predicted, splits and
        spread (of the predictions over the splits that held the run out).
      methods: pairs (regressor, features) on offer; the first two are shown at first.
      unit: of the losses.
    """
    figure = blank(440)
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
            name=f"{plain(regressor)}: {short(features)}",
            marker={**mark(i), "opacity": 0.85},
            text=[plain(run) for run in rows.index],
            customdata=rows[["spread", "splits"]],
            hovertemplate="%{text}<br>observed %{x:.4f}<br>predicted %{y:.4f} ± %{customdata[0]:.4f}"
            "<br>when %{customdata[1]} splits held it out",
            visible=True if i < 2 else "legendonly",
        )
    figure.update_xaxes(title_text=f"observed, {plain(unit)}", nticks=6)
    figure.update_yaxes(title_text=f"predicted, {plain(unit)}", nticks=6)
    return figure


def errors(methods: pd.DataFrame) -> go.Figure:
    """Error of each method on a logarithmic axis: one row per feature set, a symbol a regressor.

    Args:
      methods: the table of `findings.regressors`.
    """
    methods = methods[methods["failed"] == ""]
    tried = methods[methods["group"] != findings.MEAN]
    figure = blank(120 + 24 * tried["features"].nunique())
    for i, (regressor, rows) in enumerate(tried.groupby("regressor", sort=False)):
        figure.add_scatter(
            x=rows["mse"] * 1e3,
            y=[short(name) for name in rows["features"]],
            error_x={"array": rows["mse_se"] * 1e3, "thickness": 1.2, "width": 0},
            mode="markers",
            name=plain(regressor if regressor != findings.ALONE else "evaluator alone"),
            marker=mark(i),
            hovertemplate="%{y}<br>MSE %{x:.3g} ×10⁻³",
        )
    learnt_first = pd.concat([tried[tried["group"] != findings.ALONE], tried])
    order = list(learnt_first["features"].map(short).unique()) or ["mean"]  # where nothing else was tried
    for mean in methods.loc[methods["group"] == findings.MEAN, "mse"]:
        figure.add_scatter(
            x=[mean * 1e3] * 2,
            y=[order[0], order[-1]],
            mode="lines",
            line={"color": GRAY, "dash": "dot"},
            name="mean",
            hovertemplate="always the mean<br>MSE %{x:.3g} ×10⁻³",
        )
    ticks = log_ticks(methods["mse"] * 1e3)
    figure.update_xaxes(title_text="MSE ×10⁻³, out of fold", type="log", tickvals=ticks)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1])
    return figure


def expert_heatmap(losses: pd.DataFrame) -> go.Figure:
    """How much worse each expert is than the best one of a domain.

    Args:
      losses: one row per expert, one column per evaluation domain, nats per token.
    """
    behind = losses - losses.min()
    hover = f"expert %{{y}} on %{{x}}<br>%{{customdata:.3f}} {NATS}<br>%{{z:.3f}} more than the best"
    return heat_map(behind, hover, customdata=losses.to_numpy())


def evaluator_against_observed(shifts: pd.DataFrame) -> go.Figure:
    """One evaluator alone against what training gave: one point per proxy run and domain.

    Args:
      shifts: columns domain, run, evaluated and observed, as `findings.evaluator_shifts` gives them.
    """
    figure = blank(440)
    ends = shifts["observed"].agg(["min", "max"])
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRAY, "dash": "dot"}, name="exact", hoverinfo="skip"
    )
    for i, (domain, rows) in enumerate(shifts.groupby("domain", sort=False)):
        figure.add_scatter(
            x=rows["evaluated"],
            y=rows["observed"],
            mode="markers",
            name=plain(domain),
            marker={**mark(i), "size": 8, "opacity": 0.8},
            text=[plain(run) for run in rows["run"]],
            hovertemplate="%{text}<br>evaluated %{x:+.4f}<br>observed %{y:+.4f}",
        )
    figure.update_xaxes(title_text=f"evaluated, less the domain's mean, {NATS}", nticks=6)
    figure.update_yaxes(title_text="observed, likewise", nticks=6)
    return figure


def mixture(weights: pd.DataFrame, baselines: Sequence[str]) -> go.Figure:
    """The recommended weights as bars, with their intervals where they are known, and other mixtures as symbols.

    Args:
      weights: the table of `findings.recommendation`.
      baselines: columns of it to compare with.
    """
    names = [plain(name) for name in weights.index]
    best = weights[findings.RECOMMENDED]
    figure = blank(130 + 46 * len(weights))
    figure.add_bar(
        x=best,
        y=names,
        orientation="h",
        name=findings.RECOMMENDED,
        marker={"color": BLUE, "opacity": 0.45},
        hovertemplate="%{y}: %{x:.1%}",
    )
    if "low" in weights:
        _add_interval(figure, weights)
    for i, baseline in enumerate(baselines, start=1):
        figure.add_scatter(
            x=weights[baseline],
            y=names,
            mode="markers",
            name=plain(baseline),
            marker=mark(i),
            hovertemplate="%{y}: %{x:.1%}",
        )
    figure.update_xaxes(title_text="share of the training tokens", tickformat=".0%", rangemode="tozero", nticks=7)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def measured(summary: pd.DataFrame, runs: pd.DataFrame) -> go.Figure:
    """What the runs of each mixture measured: their means and every seed.

    Args:
      summary: one row per mixture: measured.
      runs: one row per run: mixture, seed, objective.
    """
    figure = blank(150 + 44 * len(summary))
    figure.add_scatter(
        x=summary["measured"],
        y=[plain(name) for name in summary.index],
        mode="markers",
        name="measured, mean",
        marker={"color": VERMILLION, "symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
        hovertemplate="%{y}<br>measured %{x:.4f}",
    )
    figure.add_scatter(
        x=runs["objective"],
        y=[plain(name) for name in runs["mixture"]],
        mode="markers",
        name="measured, each seed",
        marker={"color": BLUE, "size": 8},
        text=[f"seed {seed}" for seed in runs["seed"]],
        hovertemplate="%{y}, %{text}<br>measured %{x:.4f}",
    )
    figure.update_xaxes(title_text=f"objective, {NATS}", nticks=6)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def trade_off(losses: pd.DataFrame, reference: str, unit: str = NATS) -> go.Figure:
    """Where each mixture wins and where it pays, against one of them.

    Args:
      losses: one row per mixture, one column per evaluation domain, nats per token.
      reference: the mixture that the others are compared with.
    """
    others = losses.drop(index=reference) - losses.loc[reference]
    figure = blank(height(losses.shape[1], 36))
    for name, row in others.iterrows():
        figure.add_scatter(
            x=row.to_numpy(),
            y=[plain(domain) for domain in others.columns],
            mode="markers",
            name=plain(name),
            marker=mark(list(losses.index).index(name)),
            hovertemplate="%{y}: %{x:+.4f}",
        )
    figure.add_vline(0, line={"color": GRAY, "width": 1})
    figure.update_xaxes(title_text=f"loss minus that of {plain(reference)}, {unit}", nticks=6)
    figure.update_yaxes(type="category", range=[losses.shape[1] - 0.5, -0.5], dtick=1)
    return figure


def training_curves(curves: pd.DataFrame) -> go.Figure:
    """Training loss by step.

    Args:
      curves: columns run, step and loss.
    """
    figure = blank(420)
    looks = itertools.cycle(itertools.product(("solid", "dash", "dot", "dashdot"), COLOURS))
    for name, rows in curves.groupby("run", sort=False):
        dash, colour = ("solid", GRAY) if name == "seed" else next(looks)
        figure.add_scatter(
            x=rows["step"],
            y=rows["loss"],
            mode="lines",
            name=plain(name),
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="step %{x:.0f}: %{y:.3f}",
        )
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text=f"training loss, {NATS}")
    return figure


def learning_curves(curves: pd.DataFrame, noise: float | None) -> go.Figure:
    """Error out of fold by number of training mixtures, on a logarithmic axis.

    Args:
      curves: fit/learning.csv: regressor, features, mse, mse_se and train.
      noise: variance of the objective between runs of one mixture, where it is known.
    """
    figure = blank(420)
    for i, ((regressor, features), rows) in enumerate(curves.groupby(["regressor", "features"], sort=False)):
        figure.add_scatter(
            x=rows["train"],
            y=rows["mse"] * 1e3,
            error_y={"array": rows["mse_se"] * 1e3, "thickness": 1.2, "width": 0},
            mode="lines+markers",
            name=f"{plain(regressor)}: {short(str(features))}",
            marker=mark(i),
            line={"width": 2},
            hovertemplate="%{x} training mixtures<br>MSE %{y:.3g} ×10⁻³",
        )
    if noise is not None:
        ends = curves["train"].agg(["min", "max"])
        figure.add_scatter(
            x=ends,
            y=[noise * 1e3] * 2,
            mode="lines",
            line={"color": GRAY, "dash": "dot"},
            name="noise of a run",
            hovertemplate="variance of a run %{y:.3g} ×10⁻³",
        )
    ticks = log_ticks(np.append(curves["mse"], noise or []) * 1e3)
    figure.update_xaxes(title_text="training mixtures", tickvals=sorted(curves["train"].unique()))
    figure.update_yaxes(title_text="MSE ×10⁻³, out of fold", type="log", tickvals=ticks)
    return figure


def short(features: str) -> str:
    """A feature set in few letters: the exponents of several mixtures of experts in one pair of brackets."""
    taus = re.findall(r"(?<![\w:])mde\[([^\]]+)\]", features)
    if len(taus) < 2:
        return plain(features)
    rest = [part for part in features.split("+") if not re.fullmatch(r"mde\[[^\]]+\]", part.strip())]
    return plain("+".join([f"mde[{', '.join(taus)}]", *rest]))


def _add_interval(figure: go.Figure, table: pd.DataFrame) -> None:
    """A whisker from `low` to `high` in each row, wherever the point estimate lies."""
    half = (table["high"] - table["low"]) / 2
    figure.add_scatter(
        x=table["low"] + half,
        y=[plain(name) for name in table.index],
        error_x={"array": half, "color": GRAY, "thickness": 2, "width": 5},
        mode="markers",
        marker={"color": GRAY, "size": 1, "symbol": "line-ew-open", "line": {"width": 2}},
        name="interval",
        customdata=table[["low", "high"]].to_numpy(),
        hovertemplate="%{y}: %{customdata[0]:.4f} to %{customdata[1]:.4f}",
    )
