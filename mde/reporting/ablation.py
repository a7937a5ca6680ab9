"""Modular ablations as figures and tables: how well merges stand for trained models, and what units are worth."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.ablation import HOME
from mde.ablation.correlations import FEWEST, INSIDE, OUTSIDE, SEQ, STATISTICS
from mde.reporting.style import COLOURS, GRAY, blank, mark, plain
from mde.reporting.table import Table
from mde.study import NATS, Study

MAKER = "ablate"
NOTE = (
    "In brackets: intervals that cover at least 90%, of the correlation over unions of other units. Unions that share "
    "units are fewer than they seem: the effective number is in the title. Inside are the domains that units come "
    "from, outside all others. size knows nothing but how many units there are; partial is what is left of Pearson's "
    "correlation when log size is taken out of both sides."
)


def longest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the seed model with most steps."""
    return table[table["seed_steps"] == table["seed_steps"].max()]


def correlations(study: Study) -> pd.DataFrame:
    """How well proxies stand for trained unions: indexed by proxy; seed_steps, domain, unions, pearson, spearman, …"""
    return study.read_table(f"{HOME}/correlations.csv", MAKER)


def perplexities(study: Study) -> pd.DataFrame:
    """Perplexities of unions under the longest seed model, trained and by proxy: indexed by union.

    Columns model, one an evaluation domain, and the geometric means over the domains inside and outside of the units.
    """
    table = longest(study.read_table(f"{HOME}/losses.csv", MAKER)).drop(columns="seed_steps")
    inside = set(study.read_table(f"{HOME}/units.csv", MAKER)["domain"])
    domains = [name for name in table if name != "model"]
    groups = {INSIDE: [n for n in domains if n in inside], OUTSIDE: [n for n in domains if n not in inside]}
    means = {name: table[members].mean(axis=1) for name, members in groups.items() if members}
    columns = table[domains].assign(**means)
    return columns.apply(np.exp).assign(model=table["model"])


def merges(table: pd.DataFrame, domain: str) -> go.Figure:
    """Perplexity of the trained unions against that of their proxies.

    Args:
      table: that of `perplexities`.
      domain: an evaluation domain, or a mean.
    """
    figure = blank(440)
    observed = table.loc[table["model"] == SEQ, domain]
    ends = [observed.min(), observed.max()]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRAY, "dash": "dot"}, name="equal", hoverinfo="skip"
    )
    for i, (name, rows) in enumerate(table[table["model"] != SEQ].groupby("model", sort=False)):
        figure.add_scatter(
            x=observed.loc[rows.index],
            y=rows[domain],
            mode="markers",
            name=plain(name),
            marker={**mark(i), "opacity": 0.85},
            text=[plain(union) for union in rows.index],
            hovertemplate="%{text}<br>trained %{x:.3f}<br>proxy %{y:.3f}",
            visible=True if name in ("merged", "micro-merged", "mde[0]") else "legendonly",
        )
    figure.update_xaxes(title_text=f"perplexity of the trained union, {plain(domain)}", nticks=6)
    figure.update_yaxes(title_text="perplexity of the proxy", nticks=6)
    return figure


def seed_curve(table: pd.DataFrame, domain: str = OUTSIDE, statistic: str = "pearson") -> go.Figure:
    """Correlation of each proxy with the trained unions, by the training of the seed model.

    Args:
      table: that of `correlations`.
      domain: an evaluation domain, or a mean.
      statistic: pearson, spearman or partial.
    """
    figure = blank(420)
    rows = table[table["domain"] == domain]
    steps = sorted(rows["seed_steps"].unique())
    places = {count: place for place, count in enumerate(steps)}  # evenly: a logarithm has no place for 0
    for i, (name, one) in enumerate(rows.groupby(rows.index, sort=False)):
        shift = 0.03 * (i - (rows.index.nunique() - 1) / 2)
        figure.add_scatter(
            x=[places[count] + shift for count in one["seed_steps"]],
            y=one[statistic],
            error_y={
                "array": one[f"{statistic}_high"] - one[statistic],
                "arrayminus": one[statistic] - one[f"{statistic}_low"],
                "symmetric": False,
                "thickness": 1,
                "width": 0,
            },
            mode="lines+markers",
            name=plain(name),
            marker=mark(i),
            line={"color": COLOURS[i % len(COLOURS)]},
            hovertemplate="%{y:.2f}",
        )
    figure.update_xaxes(
        title_text="steps of the seed model", tickvals=list(places.values()), ticktext=[f"{n:,}" for n in steps]
    )
    figure.update_yaxes(title_text=f"{statistic.title()}, {plain(domain)}", range=[-1.05, 1.05])
    return figure


def worth(table: pd.DataFrame, domain: str = "objective") -> go.Figure:
    """What each unit takes off the loss (Shapley values), by evaluator.

    Args:
      table: ablation/values.csv: indexed by unit; evaluator, domain, value, error.
      domain: an evaluation domain, or the objective.
    """
    rows = table[table["domain"] == domain]
    figure = blank(140 + 34 * rows.index.nunique())
    for i, (name, one) in enumerate(rows.groupby("evaluator", sort=False)):
        figure.add_bar(
            x=one["value"],
            y=[plain(unit) for unit in one.index],
            error_x={"array": one["error"], "thickness": 1, "width": 0, "visible": bool((one["error"] > 0).any())},
            orientation="h",
            name=plain(name),
            marker={"color": COLOURS[i % len(COLOURS)]},
            hovertemplate="%{y}: %{x:.4f}",
            visible=True if i < 2 else "legendonly",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title_text=f"what it takes off the loss, {NATS}", nticks=6)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def correlation_table(study: Study, domain: str = OUTSIDE) -> Table:
    """Correlation of every proxy with the trained unions under the longest seed model; a domain or a mean of some."""
    table = longest(correlations(study))
    rows = table[table["domain"] == domain]
    shown = [[_interval(row, name) for name in STATISTICS] for _, row in rows.iterrows()]
    frame = pd.DataFrame(shown, rows.index, [name.title() for name in STATISTICS])
    title = (
        f"Proxies against models trained on the union, {domain}: perplexities of {rows['unions'].iloc[0]} unions "
        f"(effectively {rows['pearson_effective'].iloc[0]:.1f}), seed model of {rows['seed_steps'].iloc[0]:,} steps"
    )
    few = rows["pearson_effective"].iloc[0] < FEWEST
    notes = [NOTE, *(["Intervals are not known: the unions share too many units."] if few else [])]
    return Table(title, frame, tuple(notes))


def domain_table(study: Study) -> Table:
    """Pearson's correlation by evaluation domain, under the longest seed model."""
    table = longest(correlations(study))
    wide = table.reset_index().pivot(index="proxy", columns="domain", values="pearson")
    frame = wide.loc[table.index.unique(), table["domain"].unique()].map(_number)
    return Table("Pearson by evaluation domain", frame)


def curve_table(study: Study, domain: str = OUTSIDE, statistic: str = "pearson") -> Table:
    """A correlation of every proxy by the training of the seed model."""
    table = correlations(study)
    rows = table[table["domain"] == domain]
    wide = rows.assign(shown=[_interval(row, statistic) for _, row in rows.iterrows()]).reset_index()
    frame = wide.pivot(index="proxy", columns="seed_steps", values="shown").loc[rows.index.unique()]
    frame.columns = [f"{count:,} steps" for count in frame.columns]
    return Table(f"{statistic.title()}, {domain}, by training of the seed model", frame)


def cost_table(study: Study) -> Table:
    """Tokens that were trained on, against those of every union, under the longest seed model."""
    cost = longest(study.read_table(f"{HOME}/cost.csv", MAKER))
    units = int(cost["tokens"].loc["units"])
    frame = pd.DataFrame(
        {
            "runs": cost["runs"].map("{:,}".format),
            "tokens": cost["tokens"].map("{:,}".format),
            "× units": (cost["tokens"] / units).map("{:,.1f}".format),
        }
    )
    note = "Merges need the seed model and the units (and partitions, for merged); unions were trained to check them."
    return Table("Tokens of training", frame, (note,))


def worth_table(study: Study) -> Table:
    """What each unit takes off the objective, in which order units are best added, and the best subset.

    By merged models and by the mixture with the first τ; values.csv has the others.
    """
    values = study.read_table(f"{HOME}/values.csv", MAKER)
    added = study.read_table(f"{HOME}/additions.csv", MAKER)
    rows = values[values["domain"] == "objective"]
    evaluators = list(rows["evaluator"].unique())[:2]
    columns, sampled = {}, False
    for name in evaluators:
        one = rows[rows["evaluator"] == name]
        exact = bool((one["error"] == 0).all())
        sampled |= not exact
        shown = [
            f"{v:+.4f}" if exact else f"{v:+.4f} ± " + ("not known" if np.isnan(e) else f"{e:.4f}")
            for v, e in zip(one["value"], one["error"], strict=True)
        ]
        columns[str(name)] = pd.Series(shown, one.index)
        columns[f"{name} adds as"] = added.loc[added["evaluator"] == name, "step"].map("{:d}.".format)
    frame = pd.DataFrame(columns, rows.index.unique()).fillna("given")
    notes = [_best_subset(study, name, list(frame.index)) for name in evaluators]
    if sampled:
        notes.append("± is the standard error over the random orders that were drawn; seeds and text are not in it.")
    notes.append("Merged models are run on fewer windows of text than mixtures: compare losses of one evaluator only.")
    title = "What units take off the objective (Shapley values, nats per token), and which to add next"
    return Table(title, frame, tuple(notes))


def _best_subset(study: Study, evaluator: str, units: list[str]) -> str:
    table = study.read_table(f"{HOME}/candidates.csv", MAKER)
    rows = table[table["evaluator"] == evaluator]
    best = rows.sort_values("objective").iloc[0]
    members = ", ".join(unit for unit in units if best[unit]) or "none, the seed model"
    return f"Best of {len(rows):,} subsets by {evaluator}: {members} ({best['objective']:.4f} nats per token)."


def text(study: Study) -> str:
    """The tables of an ablation, for a terminal of 100 columns."""
    there = lambda name: (study.root / HOME / f"{name}.csv").exists()  # noqa: E731
    found = []
    if there("correlations"):
        means = [name for name in (INSIDE, OUTSIDE) if name in set(correlations(study)["domain"])]
        found += [*(correlation_table(study, name) for name in means), domain_table(study)]
        if correlations(study)["seed_steps"].nunique() > 1:
            found += [curve_table(study, name, statistic) for name in means for statistic in ("pearson", "partial")]
    found += [worth_table(study)] if there("values") else []
    found.append(cost_table(study))
    return "\n\n".join(map(str, found))


def _interval(row: pd.Series, statistic: str) -> str:
    value, low, high = (row[f"{statistic}{end}"] for end in ("", "_low", "_high"))
    return _number(value) if np.isnan(low) else f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
