"""The tables of a study, as people read them: on the terminal and in the page."""

import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mde.reporting import findings
from mde.study import Study

GROUP_TITLES = {
    findings.MEAN: "the mean of the training mixtures",
    findings.ALONE: "evaluators alone (no training mixtures)",
    findings.WEIGHTS: "mixture weights only (λ)",
    findings.EXPERTS: "with mixtures of data experts (MDE)",
    findings.MERGED: "with merged experts",
}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Attributes:
      title: what it holds, and its units.
      frame: cells as text; the index labels the rows.
      notes: sentences that belong to it.
      groups: a heading for each row; it is shown where it changes.
      marked: labels of rows that stand out.
    """

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()


def text(study: Study) -> str:
    """The tables of all stages that are done, for a terminal of 100 columns."""
    found = []
    if findings.has(study, "fit/choice.json"):
        found.append(regressors(study))
    if findings.has(study, "optimum.json"):
        found.append(recommendation(study))
    if findings.has(study, "proof/summary.csv"):
        found += [proof(study), proof_losses(study)]
    if not findings.stages(study).empty:
        found.append(times(study))
    return "\n\n".join(_plain(table) for table in found)


def regressors(study: Study) -> Table:
    """How well each method predicts the objective of mixtures it has not seen."""
    methods = findings.regressors(study)
    rows = {}
    for row in methods.itertuples():
        name = row.features if row.group == findings.ALONE else f"{row.regressor}  {row.features}"
        label = "mean" if row.group == findings.MEAN else name
        rows[f"{label} *" if row.chosen else label] = (
            _with_error(row.mse * 1e3, row.mse_se * 1e3),
            NOTHING if np.isnan(row.spearman) else f"{row.spearman:.2f}",
        )
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["MSE ×10⁻³", "Spearman"]).rename_axis("method")
    return Table(
        f"Regressors, out of fold: {findings.fit_conditions(study)}",
        frame,
        (findings.worth_of_experts(methods), "* chosen; ± is the standard error over the splits."),
        tuple(GROUP_TITLES[group] for group in methods["group"]),
        tuple(label for label in frame.index if label.endswith(" *")),
    )


def recommendation(study: Study) -> Table:
    """The recommended mixture beside the proportional one."""
    shares = findings.recommendation(study)
    level = study.read_json("optimum.json", "optimize")["interval_level"]
    frame = pd.DataFrame(
        {
            "tokens": shares["tokens"].map("{:,}".format),
            "proportional": shares["proportional"].map(_percent),
            "recommended": shares[findings.RECOMMENDED].map(_percent),
            f"{level:.0%} interval": [
                f"{_percent(low)} to {_percent(high)}" for low, high in zip(shares["low"], shares["high"], strict=True)
            ],
        }
    )
    return Table("Recommended mixture: share of the training tokens", frame, (_predicted(study),))


def proof(study: Study) -> Table:
    """Predicted against measured objective of the recommended mixture and its rivals."""
    found = findings.proof(study)
    optimum = study.read_json("optimum.json", "optimize")
    frame = pd.DataFrame(
        {
            "predicted": found["predicted"].map("{:.4f}".format),
            f"{optimum['interval_level']:.0%} interval": [
                f"{low:.4f} to {high:.4f}" for low, high in zip(found["low"], found["high"], strict=True)
            ],
            "measured": found["measured"].map("{:.4f}".format),
            "difference": found["difference"].map("{:+.4f}".format),
            "÷ noise": found["in_noise"].map(lambda value: NOTHING if np.isnan(value) else f"{value:+.1f}"),
            "rank": [f"{rank} of {of}" for rank, of in zip(found["rank"], found["of"], strict=True)],
        }
    )
    frame.loc[findings.RECOMMENDED, ["difference", "÷ noise"]] = NOTHING
    notes = [findings.proof_verdict(found), findings.calibration(found, optimum["interval_level"]), _noise(found)]
    if not findings.proof_is_current(study):
        notes.insert(0, "This proof is of an earlier recommendation: run `mde prove` again.")
    title = f"Proof: {findings.objective_name(study, optimum['objective'])}, nats per token"
    return Table(title, frame, tuple(notes), marked=(findings.RECOMMENDED,))


def proof_losses(study: Study) -> Table:
    """Measured losses by evaluation domain."""
    losses = findings.proof_losses(study)
    frame = losses.T.map("{:.3f}".format).rename_axis("domain")
    return Table("Measured losses by domain, nats per token, mean over seeds", frame)


def expert_losses(study: Study) -> Table:
    """Losses of the experts by evaluation domain."""
    return Table("Losses of the experts, nats per token", findings.expert_losses(study).T.map("{:.3f}".format))


def evaluators(study: Study) -> Table:
    """How well each evaluator ranks the observations of each domain without any training mixture."""
    ranks = findings.evaluators_by_domain(study)
    frame = ranks.T.map(lambda value: NOTHING if np.isnan(value) else f"{value:.2f}").rename_axis("domain")
    return Table("Evaluators alone: Spearman with the observed losses, by domain", frame)


def times(study: Study) -> Table:
    """Time of each stage."""
    seconds = findings.stages(study)["seconds"]
    frame = pd.DataFrame({"seconds": [*seconds, seconds.sum()]}, [*seconds.index, "total"]).rename_axis("stage")
    return Table("Time of each stage", frame.map("{:,.1f}".format))


def _predicted(study: Study) -> str:
    """The predicted objective of the recommended mixture, and its distance to the best rival's."""
    table = findings.predictions(study)
    best = table.loc[findings.RECOMMENDED]
    rivals = table.drop(index=findings.RECOMMENDED)["predicted"]
    return (
        f"Predicted: {best['predicted']:.4f} nats per token ({best['low']:.4f} to {best['high']:.4f}), "
        f"{rivals.min() - best['predicted']:.4f} below {rivals.idxmin()}, the next best prediction."
    )


def _noise(found: pd.DataFrame) -> str:
    noise = findings.seed_noise(found)
    if np.isnan(noise):
        return "Seed noise is unknown: one run each."
    seeds = found["seeds"].unique()
    return (
        f"Seed noise: {noise:.4f} nats per token, the standard deviation of one run "
        f"(pooled; {' or '.join(map(str, sorted(seeds)))} seeds each). Rank 1 is the least loss of all trained mixtures."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _with_error(value: float, error: float) -> str:
    """Three significant digits, and the error to as many decimals."""
    decimals = int(np.clip(2 - np.floor(np.log10(value)), 0, 6)) if value > 0 else 3
    return f"{value:.{decimals}f}" + ("" if np.isnan(error) else f" ± {error:.{decimals}f}")


def _plain(table: Table, columns: int = 100) -> str:
    """The table in plain text."""
    frame = table.frame
    rows = list(zip(map(str, frame.index), frame.to_numpy(), strict=True))
    indent = "  " if table.groups else ""
    first = max(len(indent + label) for label, _ in [*rows, (str(frame.index.name), None)])
    widths = [max(map(len, [name, *frame[name]])) + 2 for name in frame.columns]
    lines = [str(frame.index.name).ljust(first) + "".join(n.rjust(w) for n, w in zip(frame, widths, strict=True))]
    heading = None
    for i, (label, cells) in enumerate(rows):
        if table.groups and table.groups[i] != heading:
            heading = table.groups[i]
            lines.append(heading)
        lines.append((indent + label).ljust(first) + "".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)))
    notes = [line for note in table.notes for line in textwrap.wrap(note, columns)]
    return "\n".join([*textwrap.wrap(table.title, columns), "", *lines, *([""] if notes else []), *notes])
