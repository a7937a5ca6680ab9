"""Predictions held to the measured losses of other runs, which may be of another model size."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import rankdata, spearmanr

from mde.regression import scores
from mde.reporting import markup
from mde.reporting.style import BLUE, GRAY, blank, plain
from mde.reporting.table import Table
from mde.reporting.tables import NOTHING

TITLE = "Predicted against measured"
OBJECTIVE = "the objective"
QUARTER = 0.25  # the best runs, among which a choice is made
SAME = 0.005  # Spearman that is no better than the rule's


class PredictionCheck:
    """The same runs, predicted and measured.

    Args:
      predicted: [R, J] losses, one row per run, one column per evaluation domain.
      measured: the same rows, in the same order, and those of the columns that were measured.
      weights: [J] of the objective, which is scored if all domains that it counts were measured.
      mixtures: [R, K] of the same runs, a column per training domain, for the rule "more of the target's own domain".

    Attributes:
      predicted: one row per run, one column per target: the objective first, then every domain that was measured.
      measured: the same.
      unmeasured: domains that were not.
      scores: one row per target, with the columns of `scores.of_runs`; `rank`, that of the run predicted best; `own`,
        Spearman of the negative weight of the target's own domain (for the objective, of its mean over the domains
        that it counts), NaN where there is none or it does not vary; and `top`, Spearman among the best quarter of the
        runs as measured.
    """

    def __init__(
        self,
        predicted: pd.DataFrame,
        measured: pd.DataFrame,
        weights: np.ndarray,
        mixtures: pd.DataFrame | None = None,
    ):
        self.unmeasured = [str(name) for name in predicted if name not in measured]
        share = pd.Series(weights, predicted.columns)
        counted = [name for name in share.index if share[name] > 0]
        sides = [predicted[list(measured)], measured]
        if not set(counted) & set(self.unmeasured):
            for i, side in enumerate(sides):
                whole = pd.Series(side[counted] @ share[counted], side.index, name=OBJECTIVE)
                sides[i] = pd.concat([whole, side], axis=1)
        self.predicted, self.measured = sides
        found = scores.of_runs(self.predicted.to_numpy().T, self.measured.to_numpy().T)
        ranks = rankdata(self.measured.to_numpy(), method="min", axis=0)
        chosen = np.argmin(self.predicted.to_numpy(), axis=0)
        rank = ranks[chosen, np.arange(len(chosen))].astype(int)
        own = pd.DataFrame(index=self.measured.index) if mixtures is None else mixtures.loc[self.measured.index]
        trained = [name for name in counted if name in own]
        if OBJECTIVE in self.measured and trained:
            own = own.assign(**{OBJECTIVE: own[trained] @ share[trained]})
        self.scores = pd.DataFrame(found, self.predicted.columns).assign(
            rank=rank,
            own=[_spearman(-own[name], self.measured[name]) if name in own else np.nan for name in self.measured],
            top=[_among_the_best(self.predicted[name], self.measured[name]) for name in self.measured],
        )


def _spearman(a: pd.Series, b: pd.Series) -> float:
    """NaN where a side does not vary but by rounding, or where there are fewer than three runs."""
    still = any(np.ptp(side) <= 1e-12 * np.abs(side).max() for side in (a, b)) if len(a) else True
    return np.nan if still or len(a) < 3 else float(spearmanr(a, b).statistic)


def _among_the_best(predicted: pd.Series, measured: pd.Series) -> float:
    """Spearman among the quarter of the runs that measured lowest."""
    best = measured.nsmallest(int(np.ceil(QUARTER * len(measured)))).index
    return _spearman(predicted[best], measured[best])


def table(found: PredictionCheck) -> Table:
    """The scores, for a terminal or the page."""
    runs = len(found.measured)
    frame = pd.DataFrame(
        {
            "Spearman": found.scores["spearman"].map(_ratio),
            "own": found.scores["own"].map(_ratio),
            "best ¼": found.scores["top"].map(_ratio),
            "Pearson": found.scores["pearson"].map(_ratio),
            "MSE": found.scores["mse"].map("{:.3g}".format),
            "shift": found.scores["shift"].map("{:+.3g}".format),
            "MSE less shift": found.scores["mse_shifted"].map("{:.3g}".format),
            "regret": found.scores["regret"].map("{:.3g}".format),
            "rank": list(map(str, found.scores["rank"])),
        }
    ).rename_axis("target")
    marked = tuple(frame.index[:1]) if OBJECTIVE in frame.index else ()
    return Table(f"Predictions held to the measured losses of {runs} runs", frame, _notes(found), marked=marked)


def body(found: PredictionCheck) -> str:
    """The section of a page."""
    charts = {str(name): scatter(found, str(name)) for name in found.measured}
    chart = markup.choice(
        charts,
        "Target",
        "Predicted against measured loss of each run",
        "Each point is a run. On the dotted line a prediction is exact but for the shift that all have in common.",
    )
    return "\n".join([markup.table(table(found)), chart])


def scatter(found: PredictionCheck, target: str) -> go.Figure:
    """One point per run, and the line of predictions that are exact but for their common shift."""
    predicted, measured = found.predicted[target], found.measured[target]
    figure = blank(440)
    ends = measured.agg(["min", "max"]).to_numpy()
    figure.add_scatter(
        x=ends,
        y=ends - float((measured - predicted).mean()),
        mode="lines",
        line={"color": GRAY, "dash": "dot"},
        name="exact but for the shift",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=measured,
        y=predicted,
        mode="markers",
        name="runs",
        marker={"color": BLUE, "size": 8, "opacity": 0.8},
        text=[plain(run) for run in measured.index],
        hovertemplate="%{text}<br>measured %{x:.4f}<br>predicted %{y:.4f}",
    )
    figure.update_xaxes(title_text="measured", nticks=6)
    figure.update_yaxes(title_text="predicted", nticks=6)
    return figure


def _notes(found: PredictionCheck) -> tuple[str, ...]:
    notes = []
    if OBJECTIVE in found.scores.index:
        notes.append(_regret(found))
    domains = found.scores.drop(index=OBJECTIVE, errors="ignore")
    if len(domains) > 1:
        notes.append(f"Mean Spearman over {len(domains)} evaluation domains: {_ratio(domains['spearman'].mean())}.")
    if domains["top"].notna().any():
        notes.append(
            f"best ¼: Spearman among the quarter of the runs that measured lowest, {_ratio(domains['top'].mean())} on "
            "average. The choice is made there."
        )
    notes += _of_rule(domains)
    notes.append(_levels(found.scores))
    notes.append("Rank and regret: of the run that is predicted best, by measured loss; 1 and 0 are perfect.")
    if found.unmeasured:
        notes.append(f"Not measured: {', '.join(found.unmeasured)}.")
        if OBJECTIVE not in found.scores.index:
            notes.append("The objective counts some of these, so it is not scored.")
    return tuple(notes)


def _of_rule(domains: pd.DataFrame) -> list[str]:
    """Whether predictions rank better than the weight of each target's own domain does."""
    ruled = domains[domains["own"].notna()]
    if ruled.empty:
        return []
    matched = ruled[ruled["own"] > ruled["spearman"] - SAME]
    note = (
        "own: Spearman of the rule “more of the target's own domain is better”, which needs no regressor. It "
        f"matches or beats the predictions on {len(matched)} of {len(ruled)} targets"
    )
    shown = [f"{name} ({_ratio(row['own'])} against {_ratio(row['spearman'])})" for name, row in matched.iterrows()]
    return [f"{note}{': ' if shown else ''}{', '.join(shown)}."]


def _regret(found: PredictionCheck) -> str:
    """What choosing by the prediction would have cost."""
    predicted, measured = found.predicted[OBJECTIVE].to_numpy(), found.measured[OBJECTIVE].to_numpy()
    runs, chosen, best = list(map(str, found.measured.index)), int(predicted.argmin()), int(measured.argmin())
    least = f"{measured[best]:.4f}"
    if measured[chosen] == measured[best]:
        return f"By the objective run {runs[chosen]!r} is predicted best, and is the best measured: {least}."
    return (
        f"By the objective run {runs[chosen]!r} is predicted best and measured at {measured[chosen]:.4f}; the best is "
        f"run {runs[best]!r} at {least}: a regret of {measured[chosen] - measured[best]:.4f}."
    )


def _levels(found: pd.DataFrame) -> str:
    """Whether predictions are off by a common shift, which is the level of another model size and not an error."""
    shifted = int((found["mse_shifted"] < found["mse"] / 2).sum())
    if not shifted:
        return "The shift, measured minus predicted on average, is the lesser part of every MSE: levels agree."
    return (
        f"The shift, measured minus predicted on average, is more than half of the MSE of {shifted} of {len(found)} "
        "targets: levels differ, as those of another model size do, and only ranks count there."
    )


def _ratio(value: float) -> str:
    return NOTHING if np.isnan(value) else f"{value:.3f}"
