"""What `mde reweight` found: tables for the terminal and the page, and figures for the page."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mde.reporting import findings
from mde.reporting.scaling import tokens
from mde.reporting.style import COLOURS, GRAY, blank, plain
from mde.reporting.table import Table
from mde.study import Study

MAKER = "reweight"
HOME = "reweighting"
WEIGHTS = f"{HOME}/weights.csv"
METHODS = {"doremi": "DoReMi", "doge": "DoGE"}
SIGNS = {"eta": "η", "smoothing": "c", "rounds": "rounds", "mu": "μ", "target": "target"}  # of what is set
COLUMNS = 3  # panels beside each other


def results(study: Study) -> dict[str, dict[str, Any]]:
    """What each method that was run has found, by its name."""
    there = [name for name in METHODS if findings.has(study, f"{HOME}/{name}.json")]
    return {name: study.read_json(f"{HOME}/{name}.json", MAKER) for name in there}


def text(study: Study) -> str:
    """All tables, for a terminal of 100 columns."""
    return str(mixtures(study))


def mixtures(study: Study) -> Table:
    """The mixture of each method beside those it is compared with, one row per domain."""
    found, names = results(study), list(study.domains.training)
    columns = {METHODS[name]: [_share(result, domain) for domain in names] for name, result in found.items()}
    baselines = {"uniform": dict.fromkeys(names, 1 / len(names))}
    counts = {name: study.about["stores"][f"{name}/train"]["tokens"] for name in names}
    baselines["proportional"] = {name: count / sum(counts.values()) for name, count in counts.items()}
    if findings.has(study, "optimum.json"):
        baselines = {findings.RECOMMENDED: study.read_json("optimum.json", "optimize")["weights"], **baselines}
    columns |= {label: [f"{weights[name]:.1%}" for name in names] for label, weights in baselines.items()}
    frame = pd.DataFrame(columns, pd.Index(names, name="domain"))
    notes = tuple(_note(name, result) for name, result in found.items())
    return Table("Mixtures found by online re-weighting: share of the training tokens", frame, notes)


def trajectories(study: Study) -> go.Figure:
    """Weight of each domain by step, a panel a domain: the mean over seeds, and each seed in a thin line."""
    names = list(study.domains.training)
    rows = math.ceil(len(names) / COLUMNS)
    figure = blank(120 + 190 * rows)
    titles = [plain(name) for name in names]
    figure.set_subplots(
        rows, COLUMNS, shared_xaxes=True, shared_yaxes="all", vertical_spacing=0.3 / rows**1.5, subplot_titles=titles
    )
    for i, method in enumerate(results(study)):
        table = study.read_table(f"{HOME}/{method}.csv", MAKER)
        last = table[table["round"] == table["round"].max()]
        for k, name in enumerate(names):
            place = {"row": k // COLUMNS + 1, "col": k % COLUMNS + 1}
            _add_weights(figure, last, name, method, COLOURS[i], k == 0, place)
    for k in range(len(names)):
        place = {"row": k // COLUMNS + 1, "col": k % COLUMNS + 1}
        figure.add_hline(1 / len(names), line={"color": GRAY, "dash": "dot", "width": 1}, **place)
    figure.update_xaxes(automargin=True, zeroline=False, showgrid=True, nticks=5)
    figure.update_yaxes(automargin=True, zeroline=False, showgrid=True, tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(title_text="step", row=rows)
    figure.update_yaxes(title_text="weight", col=1)
    figure.update_layout(legend={"y": 1 + 40 / figure.layout.height})
    return figure


def _add_weights(
    figure: go.Figure, table: pd.DataFrame, name: str, method: str, colour: str, named: bool, place: Mapping[str, int]
) -> None:
    """The lines of a method in the panel of a domain."""
    look = {"mode": "lines", "name": METHODS[method], "legendgroup": method, **place}
    if table.index.nunique() > 1:
        for seed, one in table.groupby(level=0):
            figure.add_scatter(
                x=one["step"],
                y=one[name],
                line={"color": colour, "width": 0.8},
                opacity=0.5,
                showlegend=False,
                hovertemplate=f"seed {seed}, step %{{x}}: %{{y:.1%}}",
                **look,
            )
    mean = table.groupby("step")[name].mean()
    figure.add_scatter(
        x=mean.index,
        y=mean,
        line={"color": colour, "width": 2.5, "dash": "solid" if method == "doremi" else "dash"},
        showlegend=named,
        hovertemplate="step %{x}: %{y:.1%}",
        **look,
    )


def _share(result: Mapping[str, Any], domain: str) -> str:
    """A weight, and how far the seeds' are from it."""
    weight = result["weights"][domain]
    spread = max(abs(each[domain] - weight) for each in result["seeds"].values())
    return f"{weight:.1%}" + (f" ± {spread:.1%}" if len(result["seeds"]) > 1 else "")


def _note(name: str, result: Mapping[str, Any]) -> str:
    """What a mixture was found with, and what it cost."""
    settings, seeds = result["settings"], len(result["seeds"])
    constants = ", ".join(f"{sign} {settings[key]}" for key, sign in SIGNS.items() if settings.get(key) is not None)
    many = f"mean of {seeds} seeds, ± the farthest of them" if seeds > 1 else "one seed"
    cost = f"{tokens(result['tokens'])} tokens" + (", the references' included" if name == "doremi" else "")
    start = "continued from the seed model" if settings["from_seed_model"] else "fresh parameters"
    return f"{METHODS[name]}: {many}; {settings['training']['steps']:,} steps, {start}; {constants}; trained on {cost}."
