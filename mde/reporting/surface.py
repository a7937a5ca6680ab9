"""Which domains trade against each other: the predicted losses around the recommended mixture."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.optimization import objectives
from mde.reporting import figures, findings, markup
from mde.reporting.style import DIVERGING, SHADES, SKY, VERMILLION, blank, heat_map, mark, plain
from mde.study import NATS, Study

DATA = "surface.npz"  # what `mde optimize` leaves
PAIRS = 15  # of evaluation domains, on offer
HEXAGON = 27  # pixels
STRONG = 0.95  # quantile of the sizes of changes from which on all are darkest
FALLING = tuple((1 - place, colour) for place, colour in reversed(DIVERGING))  # blue below zero
SATURATED = 0.6  # quantile from which on all is darkest: weights of zero are often far worse than anything inside


class Slice(NamedTuple):
    """A ternary slice: three domains divide what they have together in the recommended mixture.

    Attributes:
      domains: the three.
      points: [P, 3] how they divide it.
      objective: [P] predicted, in the unit of the losses.
      best: [3] how the recommended mixture divides it.
      total: what they have together.
    """

    domains: tuple[str, str, str]
    points: np.ndarray
    objective: np.ndarray
    best: np.ndarray
    total: float


def body(study: Study) -> list[str]:
    """The section of the page."""
    draws, known = draw_losses(study), named_losses(study)
    parts = [*_gains(study, known), *_moves(study, known)]
    if found := slices(study):
        unit = findings.objective_unit(study, study.read_json("optimum.json", "optimize")["objective"])
        parts.append(
            markup.choice(
                {", ".join(one.domains): ternary(one, unit) for one in found},
                "Domains",
                "Predicted objective where three domains divide what they have together",
                "Darker is worse, the darkest that or worse. The star is the recommended mixture; all other domains "
                "keep their recommended weights. Where the ground is flat the exact weights hardly matter.",
            )
        )
    if len(draws.columns) < 2:
        return parts
    ranks = correlations(draws)
    pairs = {f"{one} and {other}": (one, other) for one, other in opposed(ranks)}
    units = {name: study.unit_of([name]) for name in map(str, draws)}
    return [
        *parts,
        markup.choice(
            {name: trade_off(draws, known, *pair, units) for name, pair in pairs.items()},
            "Evaluation domains",
            "Predicted losses of two domains over mixtures that the constraints allow",
            "Each dot is a mixture; down and left is better. Pairs that go most against each other come first.",
        ),
        markup.figure(
            correlation_map(ranks),
            "Rank correlation of the predicted losses of the evaluation domains over these mixtures",
            "Blue: what helps one helps the other. Orange: what helps one costs the other.",
        ),
    ]


def _gains(study: Study, known: pd.DataFrame) -> list[str]:
    """What the recommendation is predicted to gain and pay, by domain, the largest gain first."""
    baselines = known.drop(index=findings.RECOMMENDED)
    if baselines.empty:
        return []
    reference, unit = findings.compared_with(baselines.index), study.unit_of(study.domains.evaluation)
    gains = known.loc[[findings.RECOMMENDED]].to_numpy() - known.loc[[reference]].to_numpy()
    chart = markup.figure(
        figures.trade_off(known.iloc[:, np.argsort(gains[0], kind="stable")], reference, unit),
        f"Predicted loss of each evaluation domain less that of the {reference} mixture",
        f"Where each mixture is predicted to gain (left of zero) and to pay (right), against {reference}. Domains in "
        "which the recommended mixture gains most come first.",
    )
    return [chart]


def _moves(study: Study, known: pd.DataFrame) -> list[str]:
    found, unit = moves(study, known), study.unit_of(study.domains.evaluation)
    if found is None:
        return []
    chart = markup.figure(
        move_map(found),
        "What one more percent point of each training domain changes in the predicted loss of each evaluation domain",
        f"Thousandths of their unit ({unit}), at the recommended mixture; the point is taken from all other domains in "
        "proportion to their weights. Columns: training domains; rows: the objective and the evaluation domains. Blue: "
        "the loss falls; orange: it rises; the darkest are that or more. Steps may leave the constraints. Regressors "
        "of trees move in jumps, so that a step of one point can show nothing.",
    )
    return [chart]


def moves(study: Study, known: pd.DataFrame) -> pd.DataFrame | None:
    """Changes of the predicted objective and losses by a step to each training domain, in columns; nats per token.

    None where no domain can have more, and for a study that was optimised before these were kept.
    """
    arrays, optimum = study.read_arrays(DATA, "optimize"), study.read_json("optimum.json", "optimize")
    if "moves" not in arrays or np.isnan(arrays["moves"]).all():
        return None
    domains, names = study.domains, list(study.domains.training)
    changes = pd.DataFrame(arrays["moves"].T, list(domains.evaluation), names)
    goal = objectives.recorded(optimum, domains.evaluation, domains.training)
    here = known.loc[findings.RECOMMENDED].to_numpy()
    objective = pd.DataFrame([goal(here + arrays["moves"]) - goal(here)], ["objective"], names)
    return pd.concat([objective, changes])


def slices(study: Study) -> list[Slice]:
    """The slices, those of the domains with the largest weights first."""
    arrays, optimum = study.read_arrays(DATA, "optimize"), study.read_json("optimum.json", "optimize")
    names = study.domains.training
    goal = objectives.recorded(optimum, study.domains.evaluation, names)
    weights = np.array([optimum["weights"][name] for name in names])
    found = []
    for triple, losses in zip(arrays["triples"], arrays["losses"], strict=True):
        total = weights[triple].sum()
        domains = (names[triple[0]], names[triple[1]], names[triple[2]])
        if total > 0:
            found.append(Slice(domains, arrays["points"], goal(losses), weights[triple] / total, float(total)))
    return found


def draw_losses(study: Study) -> pd.DataFrame:
    """Predicted losses of draws all over the region: one column per evaluation domain."""
    return pd.DataFrame(study.read_arrays(DATA, "optimize")["draw_losses"], columns=list(study.domains.evaluation))


def named_losses(study: Study) -> pd.DataFrame:
    """Predicted losses of the recommended mixture and its baselines, in rows."""
    predictions = study.read_json("optimum.json", "optimize")["predictions"]
    rows = {name: predicted["losses"] for name, predicted in predictions.items()}
    return pd.DataFrame.from_dict(rows, orient="index")[list(study.domains.evaluation)]


def correlations(draws: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of every two columns."""
    ranks = draws.rank().to_numpy()
    return pd.DataFrame(np.corrcoef(ranks, rowvar=False), draws.columns, draws.columns)


def opposed(ranks: pd.DataFrame, most: int = PAIRS) -> list[tuple[str, str]]:
    """The pairs of domains that go most against each other, the worst first."""
    rows, columns = np.triu_indices(len(ranks), 1)
    order = np.argsort(ranks.to_numpy()[rows, columns], kind="stable")[:most]
    return [(str(ranks.index[rows[i]]), str(ranks.columns[columns[i]])) for i in order]


def ternary(found: Slice, unit: str = NATS) -> go.Figure:
    """A slice as a triangle of hexagons."""
    figure = blank(480)
    names = [plain(name) for name in found.domains]
    a, b, c = (found.points * found.total).T
    figure.add_scatterternary(
        a=a,
        b=b,
        c=c,
        mode="markers",
        name="predicted",
        showlegend=False,
        marker={
            "symbol": "hexagon",
            "size": HEXAGON,
            "color": found.objective,
            "cmin": float(found.objective.min()),
            "cmax": float(np.quantile(found.objective, SATURATED)),
            "colorscale": SHADES,
            "colorbar": {
                "title": {"text": plain(unit), "side": "top"},
                "orientation": "h",
                "y": -0.1,
                "yanchor": "top",
                "thickness": 10,
                "len": 0.8,
                "nticks": 5,
            },
            "line": {"width": 0},
        },
        customdata=found.objective,
        hovertemplate=f"{names[0]} %{{a:.1%}}, {names[1]} %{{b:.1%}}, {names[2]} %{{c:.1%}}"
        f"<br>%{{customdata:.4f}} {plain(unit)}<extra></extra>",
    )
    star = {"symbol": "star", "size": 16, "color": VERMILLION, "line": {"color": "#ffffff", "width": 1}}
    at = [[weight] for weight in found.best * found.total]
    figure.add_scatterternary(
        a=at[0], b=at[1], c=at[2], mode="markers", name=findings.RECOMMENDED, marker=star, cliponaxis=False
    )
    axes = {
        f"{axis}axis": {"title": {"text": name}, "tickformat": ".0%", "nticks": 5}
        for axis, name in zip("abc", names, strict=True)
    }
    figure.update_layout(ternary={"sum": found.total, **axes}, margin={"l": 40, "r": 40, "t": 40, "b": 20})
    return figure


def trade_off(draws: pd.DataFrame, known: pd.DataFrame, one: str, other: str, units: Mapping[str, str]) -> go.Figure:
    """Two domains' losses over many mixtures, and where the known ones stand.

    Args:
      draws: predicted losses, one column per evaluation domain.
      known: the same of named mixtures, in rows.
      one: the domain along x.
      other: the domain along y.
      units: of the losses, by domain.
    """
    figure = blank(420)
    figure.add_scatter(
        x=draws[one].round(5),
        y=draws[other].round(5),
        mode="markers",
        name="mixtures",
        marker={"color": SKY, "size": 5, "opacity": 0.5},
        hovertemplate="%{x:.3f}, %{y:.3f}",
    )
    for i, (name, row) in enumerate(known.iterrows()):
        figure.add_scatter(
            x=[row[one]],
            y=[row[other]],
            mode="markers",
            name=plain(name),
            marker={**mark(i), "size": 13},
            hovertemplate=f"{plain(name)}: %{{x:.4f}}, %{{y:.4f}}",
        )
    figure.update_xaxes(title_text=f"{plain(one)}, {plain(units[one])}", nticks=6)
    figure.update_yaxes(title_text=f"{plain(other)}, {plain(units[other])}", nticks=6)
    return figure


def move_map(changes: pd.DataFrame) -> go.Figure:
    """A heat map of changes, in thousandths, as dark below zero as above it."""
    thousandths = 1e3 * changes
    sizes = np.abs(thousandths.to_numpy())
    most = np.nanquantile(sizes, STRONG) or np.nanmax(sizes) or 1.0
    hover = "one more point of %{x}<br>%{y}: %{z:+.2f} ×10⁻³"
    return heat_map(thousandths, hover, FALLING, zmin=-most, zmax=most)


def correlation_map(ranks: pd.DataFrame) -> go.Figure:
    """A heat map of correlations, from −1 to 1."""
    return heat_map(ranks, "%{y} and %{x}: %{z:.2f}", DIVERGING, zmin=-1, zmax=1)
