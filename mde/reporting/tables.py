"""The tables of a study, as people read them: on the terminal and in the page."""

from dataclasses import replace

import numpy as np
import pandas as pd

from mde.reporting import findings, support
from mde.reporting.table import Table
from mde.study import Study

GROUP_TITLES = {
    findings.MEAN: "the mean of the training mixtures",
    findings.ALONE: "evaluators alone (no training mixtures)",
    findings.WEIGHTS: "mixture weights only (λ)",
    findings.EXPERTS: "with mixtures of data experts (MDE)",
    findings.MERGED: "with merged experts",
}
NOTHING = "–"
POOR = 0.5  # R² below which a domain is said to be predicted poorly
FEW = 5  # mixtures that stand for all those of a file
MANY = 6  # columns of numbers beyond which a table of domains is turned on its side


def regressors(study: Study) -> Table:
    """How well each method predicts the objective of mixtures it has not seen."""
    methods = findings.regressors(study)
    labels = list(
        map(_method, methods["group"], methods["regressor"], methods["features"], methods["chosen"]),
    )
    frame = pd.DataFrame(
        {
            "MSE ×10⁻³": [
                "failed" if why else _with_error(mse * 1e3, error * 1e3)
                for mse, error, why in zip(methods["mse"], methods["mse_se"], methods["failed"], strict=True)
            ],
            "Spearman": list(map(_ratio, methods["spearman"])),
            **({"splits": list(map(str, methods["n"]))} if methods["n"].nunique() > 1 else {}),
        },
        pd.Index(labels, name="method"),
    )
    return Table(
        f"Regressors, cross-validated: {findings.fit_conditions(study)}",
        frame,
        (
            findings.worth_of_experts(study),
            f"* {_choice(methods)}; ± is the standard error over new sets of proxy runs (Nadeau and Bengio).",
            *_failures(methods),
            *_noise(study, methods),
        ),
        tuple(GROUP_TITLES[group] for group in methods["group"]),
        tuple(label for label in labels if label.endswith(" *")),
    )


def fit_by_domain(study: Study) -> Table:
    """How well the chosen method predicts each evaluation domain of mixtures it has not seen."""
    found = findings.chosen_by_domain(study)
    frame = pd.DataFrame(
        {
            "MSE ×10⁻³": list(map(_with_error, found["mse"] * 1e3, found["mse_se"] * 1e3)),
            "R²": list(map(_ratio, found["r2"])),
            "Spearman": list(map(_ratio, found["spearman"])),
            "regret": found["regret"].map("{:.4f}".format),
            **({"noise ×10⁻³": (found["noise"] * 1e3).map("{:.3g}".format)} if found["noise"].notna().any() else {}),
            **({} if found["responds"].all() else {"responds": ["" if yes else "no" for yes in found["responds"]]}),
        },
        found.index,
    )
    poor = int((found["r2"] < POOR).sum())
    note = (
        "The worst predicted come first. R² is the part of the variance over mixtures that is predicted, 0 for always "
        f"the mean; it is below {POOR} for {poor} of {len(found)}. Regret: what the held-out mixture that is predicted "
        f"best has above the best of them, {study.unit_of(map(str, found.index))}."
    )
    notes = [note]
    if not found["responds"].all():
        names = ", ".join(map(str, found.index[~found["responds"]]))
        notes.append(f"Does not respond to the mixture (predicted no better than by the mean): {names}.")
    if found["noise"].notna().any():
        notes.append("Noise: the variance of a run, from replicates; no prediction of a single run has less MSE.")
    return Table("The chosen regressor by evaluation domain, cross-validated", frame, tuple(notes))


def recommendation(study: Study) -> Table:
    """The recommended mixture beside the proportional one, or the best observed where sizes are not known."""
    weights = findings.recommendation(study)
    optimum = study.read_json("optimum.json", "optimize")
    level, epochs = optimum["interval_level"], optimum["epochs"]
    beside = "proportional" if "proportional" in weights else "best observed"
    tokens = {"tokens": weights["tokens"].map("{:,}".format)} if "tokens" in weights else {}
    intervals, largest = {}, {}
    if "low" in weights:
        bounds = zip(weights["low"], weights["high"], strict=True)
        intervals[f"{level:.0%} interval"] = [f"{_percent(low)} to {_percent(high)}" for low, high in bounds]
    if "support" in optimum:
        trained = pd.Series(optimum["support"]["largest_weights"])
        largest["max of the proxy runs"] = trained.reindex(weights.index).map(_percent)
    frame = pd.DataFrame(
        {
            **tokens,
            beside: weights[beside].map(_percent),
            "recommended": weights[findings.RECOMMENDED].map(_percent),
            **intervals,
            **largest,
            **({"epochs at the budget": [f"{epochs[name]:.3g}" for name in weights.index]} if epochs else {}),
        }
    )
    notes = [predicted(study), *(f"{line[0].upper()}{line[1:]}." for line in support.cautions(study))]
    notes += [f"Binds: {constraint}." for constraint in optimum["binding"]]
    if study.errors:
        notes.append(f"Error is 1 − value, where more is better: {', '.join(study.errors)}.")
    return Table("Recommended mixture: share of the training tokens", frame, (*notes, *_edges(weights)))


def _edges(weights: pd.DataFrame) -> list[str]:
    """Why recommended weights lie at an edge of their intervals or beyond, if some do; 0.1% is what a table shows."""
    if "low" not in weights:
        return []
    weight, low, high = (weights[column].round(3) for column in (findings.RECOMMENDED, "low", "high"))
    at = weights.index[(low < high) & (weight > 0) & ((weight <= low) | (weight >= high))]
    if at.empty:
        return []
    return [
        f"At an edge of its interval: {', '.join(at)}. Intervals hold the optima of refits on half of the proxy runs "
        "each, the recommendation is the optimum on all; with few refits it can lie at an edge or beyond."
    ]


def losses_by_domain(losses: pd.DataFrame, of: str, bits: pd.Series) -> Table:
    """Losses of mixtures [M, J] by domain, and of one of them in bits per byte; domains in columns if M is large."""
    frame = losses.T.map("{:.3f}".format).rename_axis("domain")
    frame["in bits per byte"] = bits.map("{:.3f}".format)
    note = f"Bits per byte are those of {of}: its loss again, in bits per UTF-8 byte of text."
    return Table("Measured losses by domain, nats per token, mean over seeds", _lying(frame, "mixture"), (note,))


def with_row(table: Table, label: str, cells: pd.Series) -> Table:
    """A table of `losses_by_domain` with another row, or column, of a cell a domain."""
    frame = table.frame
    if frame.index.name == "domain":
        return replace(table, frame=frame.assign(**{label: cells}))
    row = pd.DataFrame([cells], [label]).reindex(columns=frame.columns)
    return replace(table, frame=pd.concat([frame, row]).rename_axis(str(frame.index.name)))


def predicted_losses(losses: pd.DataFrame) -> Table:
    """Predicted losses [M, J] of the first few mixtures, and how many there are."""
    there = f"the first {FEW} of {len(losses)} mixtures" if len(losses) > FEW else f"{len(losses)} mixtures"
    frame = losses.iloc[:FEW].map("{:.4f}".format).rename_axis("mixture")
    return Table(f"Predicted losses of {there}", _lying(frame, "domain"))


def weights_of(mixtures: pd.DataFrame) -> Table:
    """What the compared mixtures are, [M, K]; domains in columns if M is large."""
    frame = mixtures.T.map(_percent).rename_axis("domain")
    return Table("The mixtures: share of the training tokens", _lying(frame, "mixture"))


def difference(value: float, error: float) -> str:
    """A difference with its standard error, where it has one."""
    return f"{value:+.4f}" + ("" if np.isnan(error) else f" ± {error:.4f}")


def error(value: float) -> str:
    """A standard error, where it is known."""
    return NOTHING if np.isnan(value) else f"{value:.4f}"


def p_value(value: float) -> str:
    """A p value, where there is one."""
    return NOTHING if np.isnan(value) else "<.0001" if value < 1e-4 else f"{value:.4f}".removeprefix("0")


def count(value: float) -> str:
    """A number of runs, where it is known."""
    return NOTHING if np.isnan(value) else "too many" if np.isinf(value) else f"{value:,.0f}"


def difference_interval(low: float, high: float) -> str:
    """The interval of a difference, where there is one."""
    return NOTHING if np.isnan(low) else f"{low:+.4f} to {high:+.4f}"


def times_as_many(ratio: float) -> str:
    """How many times the tokens, where that is known."""
    return NOTHING if np.isnan(ratio) else f"{ratio:.2f}×"


def _lying(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table of domains with its rows as columns, if it has too many columns for a terminal."""
    return frame.T.rename_axis(name) if frame.shape[1] > MANY else frame


def expert_losses(study: Study) -> Table:
    """Losses of the experts by evaluation domain."""
    return Table("Losses of the experts, nats per token", findings.expert_losses(study).T.map("{:.3f}".format))


def evaluators(study: Study) -> Table:
    """How well each evaluator ranks the proxy runs of each domain without any training mixture."""
    ranks = findings.evaluators_by_domain(study)
    frame = ranks.T.map(_ratio).rename_axis("domain")
    return Table("Evaluators alone: Spearman with the observed losses, by domain", frame)


def times(study: Study) -> Table:
    """Time of each stage."""
    seconds = findings.stages(study)["seconds"]
    frame = pd.DataFrame({"seconds": [*seconds, seconds.sum()]}, [*seconds.index, "total"]).rename_axis("stage")
    return Table("Time of each stage", frame.map("{:,.1f}".format))


def predicted(study: Study) -> str:
    """The predicted objective of the recommended mixture, and how far it is from that of the best baseline.

    A baseline that breaks the constraints is named if it is better; one that obeys them can be where more than the
    predicted loss is minimised.
    """
    optimum = study.read_json("optimum.json", "optimize")
    table = findings.predictions(study)
    best = table.loc[findings.RECOMMENDED]
    gaps = table.drop(index=findings.RECOMMENDED)["predicted"] - best["predicted"]
    allowed = np.array([optimum["predictions"][name].get("feasible", True) for name in gaps.index], bool)
    unit = findings.objective_unit(study, optimum["objective"])
    parts = [f"Predicted: {best['predicted']:.4f} {unit} ({best['low']:.4f} to {best['high']:.4f})"]
    if allowed.any():
        name, gap = gaps[allowed].idxmin(), gaps[allowed].min()
        why = ", which the regressor is less sure of" if optimum.get("beta", 0) > 0 else ""
        if not round(gap, 4):
            parts.append(f"level with {name}, the next best prediction")
        else:
            parts.append(
                f"{gap:.4f} below {name}, the next best prediction" if gap > 0 else f"{-gap:.4f} above {name}{why}"
            )
    if (gaps[~allowed] < 0).any():
        parts.append(f"{-gaps[~allowed].min():.4f} above {gaps[~allowed].idxmin()}, which breaks the constraints")
    return f"{', '.join(parts)}."


def _percent(weight: float) -> str:
    return f"{100 * weight:.1f}%"


def _choice(methods: pd.DataFrame) -> str:
    """How the chosen method was chosen."""
    if (methods.loc[methods["chosen"], "group"] == findings.MEAN).all():
        return "chosen: nothing to learn, no regressor predicts better than the mean"
    least = methods.loc[methods["chosen"], "mse"].min()
    passed_over = (methods["group"] == findings.MERGED) & (methods["mse"] < least)
    merged = "; not with merged features, which would cost a model run for every candidate of the search"
    blend = (methods.loc[methods["chosen"], "regressor"] == "auto").any()
    rule = (
        "no other is clearly better than auto" if blend else "the fewest features within a standard error of the lowest"
    )
    return f"chosen: {rule}{merged if passed_over.any() else ''}"


def _failures(methods: pd.DataFrame) -> list[str]:
    """Why methods have no scores."""
    failed = methods[methods["failed"] != ""]
    return [
        f"Failed: {regressor} on {features}: {why}."
        for regressor, features, why in zip(failed["regressor"], failed["features"], failed["failed"], strict=True)
    ]


def _noise(study: Study, methods: pd.DataFrame) -> list[str]:
    """The noise of a run, beside the error of the chosen method."""
    variance, mse = findings.noise(study), methods.loc[methods["chosen"], "mse"].min()
    if variance is None or not mse > 0:
        return []
    return [
        f"The noise of a run, a variance of {variance * 1e3:.3g} ×10⁻³, explains {min(variance / mse, 1):.0%} of it."
    ]


def _method(group: str, regressor: str, features: str, chosen: bool) -> str:
    """What a row of the regressors is called; the chosen one has a star."""
    label = {findings.MEAN: "mean", findings.ALONE: features}.get(group, f"{regressor}  {features}")
    return f"{label} *" if chosen else label


def _ratio(value: float) -> str:
    return NOTHING if np.isnan(value) else f"{value:.2f}"


def _with_error(value: float, error: float) -> str:
    """Three significant digits, or as many more as the error needs for one."""
    digits = [0.0]
    digits += [2 - np.floor(np.log10(value))] if value > 0 else [3]
    digits += [-np.floor(np.log10(error))] if error > 0 else []
    decimals = int(min(max(digits), 6))
    return f"{value:.{decimals}f}" + ("" if np.isnan(error) else f" ± {error:.{decimals}f}")
