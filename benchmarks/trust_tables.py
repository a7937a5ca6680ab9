"""The tables of `benchmarks.trust`, in Markdown, from a row per swarm, split and method."""

from collections.abc import Sequence

import numpy as np
import pandas as pd


def tables(rows: pd.DataFrame, parts: Sequence[str]) -> str:
    """Those of these parts, as far as there are rows for them."""
    known_tables = (
        ("error", errors),
        ("coverage", coverage),
        ("regret", regrets),
        ("regret", diverged),
        ("choice", choices),
        ("claims", claims),
    )
    found = []
    for part, tabulate in known_tables:
        known = rows if tabulate in (diverged, choices) else rows[rows["harm"] == ""]
        if part in parts and part in known and known[part].notna().any():
            found.append(tabulate(known[known[part].notna()]))
    return "\n".join(filter(None, found))


def errors(rows: pd.DataFrame) -> str:
    wide = rows.pivot(index=["swarm", "split"], columns="method", values="error").reindex(_names(rows), level="swarm")
    ratio = _by_swarm(wide["auto"] / wide.drop(columns="auto").min(axis=1))
    auto = _by_swarm(_auto(rows))
    added = {
        "auto, worst split": auto["error"].max(),
        "auto ÷ best": ratio.median(),
        "auto ÷ best, worst split": ratio.max(),
        "auto, worst target": auto["worst target"].max(),
    }
    title = "Squared error on new runs ÷ that of the mean (mean over targets, median over splits)"
    return markdown(title, _by_swarm(wide[_methods(rows)]).median().assign(**added))


def coverage(rows: pd.DataFrame) -> str:
    names = {
        "coverage": "new runs",
        "covered, worst target": "worst target",
        "covered, recommended": "at the recommended mixture",
        "covered, objective": "its objective",
    }
    parts = {}
    for method in _methods(rows):
        means = _by_swarm(rows[rows["method"] == method].reindex(columns=["swarm", *names])).mean()
        parts |= {f"{method}: {name}": means[column] for column, name in names.items()}
    table = pd.DataFrame(parts).dropna(axis=1, how="all")
    return markdown("Coverage of 90% intervals (mean over splits)", table)


def regrets(rows: pd.DataFrame) -> str:
    auto = _by_swarm(_auto(rows))
    added = {
        "auto, worst split": 1e3 * auto["regret"].max(),
        "auto promises too much by": 1e3 * auto["optimism"].mean(),
        "auto worse than the best run": auto["lost"].apply(lambda lost: f"{int(lost.sum())} of {len(lost)}"),
    }
    table = 1e3 * rows.pivot_table("regret", "swarm", "method", sort=False)[_methods(rows)]
    return markdown("Regret of the recommended mixture, nats ×10⁻³ (mean over splits)", table.assign(**added))


def diverged(rows: pd.DataFrame) -> str:
    """Splits with a diverged run beside the same without."""
    harmed, sound = rows[rows["harm"] != ""], rows[rows["harm"] == ""]
    if harmed.empty:
        return ""
    means = harmed.pivot_table("regret", ["swarm", "harm"], "method", sort=False)[_methods(rows)]
    without = sound.pivot_table("regret", "swarm", "method", sort=False)[_methods(rows)]
    table = means / without.reindex(means.index.get_level_values("swarm")).to_numpy()
    auto = 1e3 * _auto(harmed).groupby(["swarm", "harm"], sort=False)["regret"].agg(["mean", "max"])
    added = {"auto, nats ×10⁻³": auto["mean"], "auto, worst split": auto["max"]}
    return markdown("Regret with a diverged run ÷ without (means over splits)", table.assign(**added))


def choices(rows: pd.DataFrame) -> str:
    grouped = rows.groupby(["swarm", "harm"], sort=False)
    counted = (("no answer", "nothing"), ("chose the mean", "mean"), ("chose auto", "auto"))
    counts = {name: (rows["choice"] == value).groupby([rows["swarm"], rows["harm"]]).sum() for name, value in counted}
    ratio = grouped["ratio"]
    added = {
        "worse than the mean": ratio.agg(lambda values: (values > 1 + 1e-9).sum()),
        "median ratio": ratio.median(),
        "max ratio": ratio.max(),
    }
    title = "What `mde fit` chooses; squared error of its objective on new runs ÷ that of the mean"
    return markdown(title, pd.DataFrame({"fits": grouped.size()}).assign(**counts, **added))


def claims(rows: pd.DataFrame) -> str:
    """Where there is no real gain, a claim is false."""
    claimed, none = rows["claims"] == 1, rows["real"] <= 0
    columns = {
        "fits": rows["claims"].notna(),
        "no real gain": none,
        "called distinguishable": claimed,
        "of these no real gain": claimed & none,
        "of these less than half of the predicted gain": claimed & (rows["real"] < rows["gain"] / 2),
    }
    table = pd.DataFrame({name: values.groupby(rows["swarm"], sort=False).sum() for name, values in columns.items()})
    table["mean predicted gain ×10⁻³"] = 1e3 * _by_swarm(rows)["gain"].mean()
    table["mean real gain ×10⁻³"] = 1e3 * _by_swarm(rows)["real"].mean()
    return markdown("When `mde optimize` calls the gain over the best baseline distinguishable", table)


def markdown(title: str, table: pd.DataFrame) -> str:
    text = table.map(lambda value: value if isinstance(value, str) else number(value)).reset_index()
    lines = [list(text.columns), ["---"] * text.shape[1], *text.itertuples(index=False)]
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def number(value: float) -> str:
    if np.isnan(value):
        return "–"
    if not np.isfinite(value):
        return "not finite"
    return f"{value:.1e}" if abs(value) >= 1e5 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _auto(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["method"] == "auto"]


def _by_swarm(table: pd.DataFrame | pd.Series):
    return table.groupby("swarm", sort=False)


def _methods(rows: pd.DataFrame) -> list[str]:
    """In the order in which they were run."""
    return list(dict.fromkeys(rows["method"]))


def _names(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["swarm"]))
