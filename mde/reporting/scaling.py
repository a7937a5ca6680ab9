"""What `mde scale` found: tables for the terminal and the page, and figures for the page."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.reporting.style import blank, heat_map, mark, plain
from mde.reporting.table import Table
from mde.reporting.tables import NOTHING, difference, times_as_many
from mde.study import Study

AGAINST = "predicted"  # the mixture that the validation compares the others with


def text(study: Study) -> str:
    """All tables, for a terminal of 100 columns."""
    found = study.read_json("scale.json", "scale")
    shown = [mixtures(study)]
    if "points" in found:
        shown += [laws(study), cross_effects(study)]
    if found.get("validation"):
        shown.append(validation(study))
    return "\n\n".join(map(str, shown))


def mixtures(study: Study) -> Table:
    """The best weights at each budget and at the target, one row per domain."""
    found = study.read_json("scale.json", "scale")
    names, columns = found["domains"], {}
    if "points" in found:
        columns["base"] = _weights({name: found["points"][-1]["domains"][name]["base"] for name in names})
    for m, (budget, optimum) in enumerate(zip(found["ddo"]["budgets"], found["ddo"]["optima"], strict=True)):
        point = found["points"][m]["domains"] if "points" in found else {}
        stars = [" *" if name in point and point[name]["held"] else "" for name in names]
        columns[tokens(budget)] = [f"{weight}{star}" for weight, star in zip(_weights(optimum), stars, strict=True)]
    for method, label in (("ddo", ""), ("mde", " by MDE")):
        if "target" in found.get(method, {}):
            columns[f"{tokens(found[method]['target'])}{label}"] = _weights(found[method]["tokens"])
    if "weights" in found["ddo"]:
        bounds = [found["ddo"]["weights"][name] for name in names]
        columns["all laws"] = _weights(found["ddo"]["mean"])
        columns[f"{found['ddo']['level']:.0%} interval"] = [f"{low:.1%} to {high:.1%}" for low, high in bounds]
    frame = pd.DataFrame(columns, pd.Index(names, name="domain"))
    return Table("Best mixture along the budget in tokens: share of the training tokens", frame, _notes(found))


def laws(study: Study) -> Table:
    """What each domain is worth at the largest budget: its power law."""
    found = study.read_json("scale.json", "scale")
    point = found["points"][-1]
    rows = pd.DataFrame.from_dict(point["domains"], orient="index")
    frame = pd.DataFrame(
        {
            "N0 ÷ base": rows["offset"].map("{:.3g}".format),
            "γ": rows["exponent"].map("{:.3g}".format),
            "floor ÷ loss": rows["floor"].map("{:.3f}".format),
            "misfit": rows["misfit"].map("{:.1e}".format),
            "optimum ÷ base": (rows["optimum"] / rows["base"]).map("{:.2f}".format),
        }
    ).rename_axis("domain")
    note = (
        f"Objective of the base run {point['base_loss']:.4f}, of the best mixture of as many tokens "
        f"{point['predicted_loss']:.4f} as the laws have it."
    )
    return Table(f"Power laws (N0 + N)^-γ + floor at {tokens(point['budget'])} tokens", frame, (note,))


def cross_effects(study: Study) -> Table:
    """What each domain does to each evaluation domain at the largest budget."""
    effects, budget = _largest(study)
    return Table(
        f"Fall of each domain's loss from less to more of a training domain, {tokens(budget)} tokens",
        effects.map("{:.3f}".format),
    )


def validation(study: Study) -> Table:
    """The predicted mixture against its baselines at the target."""
    found = study.read_table("scale/validation.csv", "scale")
    runs = study.read_table("scale/validation_runs.csv", "scale")
    seeds, target = runs["seed"].nunique(), runs["budget"].max()
    frame = pd.DataFrame(
        {
            "objective": found["objective"].map("{:.4f}".format),
            "difference": list(map(difference, found["difference"], found["error"])),
            "last doubling": (-found["slope"]).map("{:+.4f}".format),
            "tokens to equal": found["tokens_to_equal"].map(times_as_many),
        }
    )
    frame.loc[AGAINST, "difference"] = NOTHING
    noise = (
        f"Means of {seeds} seeds, which the mixtures share; ± is the standard error of a difference."
        if seeds > 1
        else "One seed each: differences may be noise."
    )
    note = (
        f"{noise} Tokens to equal: what a mixture needs to be as good as the predicted one, over the target, if its "
        "loss goes on falling as it did over the last doubling (measured from half of the target, first seed)."
    )
    left_out = study.read_json("scale.json", "scale").get("left_out", {})
    notes = [note, *(f"Not trained: {label} ({reason})." for label, reason in left_out.items())]
    title = f"Validation at {tokens(target)} tokens: {_verdict(found)}"
    return Table(title, frame, tuple(notes), marked=(AGAINST,))


def path_figure(study: Study) -> go.Figure:
    """The best weight of each domain along the budget; the last point is predicted."""
    found = study.read_json("scale.json", "scale")
    figure = blank(420)
    ddo = found["ddo"]
    weights = [[each[name] / sum(each.values()) for each in ddo["optima"]] for name in found["domains"]]
    budgets = list(ddo["budgets"])
    for k, name in enumerate(found["domains"]):
        x, y, error = budgets, weights[k], None
        if "target" in ddo:
            x, y = [*x, ddo["target"]], [*y, ddo["tokens"][name] / ddo["target"]]
        if "weights" in ddo:
            low, high = ddo["weights"][name]
            none = [0.0] * len(budgets)
            error = {"array": [*none, max(high - y[-1], 0)], "arrayminus": [*none, max(y[-1] - low, 0)], "width": 4}
        figure.add_scatter(
            x=x,
            y=y,
            error_y=error,
            mode="lines+markers",
            name=plain(name),
            marker={**mark(k), "symbol": ["circle"] * len(budgets) + ["diamond-open"] * (len(x) - len(budgets))},
            hovertemplate="%{x:.3s} tokens: %{y:.1%}",
        )
    ticks = [*budgets, ddo["target"]] if "target" in ddo else budgets
    figure.update_xaxes(title_text="tokens", type="log", tickvals=ticks, ticktext=[tokens(count) for count in ticks])
    figure.update_yaxes(title_text="best weight", tickformat=".0%", rangemode="tozero")
    return figure


def cross_effects_figure(study: Study) -> go.Figure:
    """The matrix of `cross_effects` as a heat map."""
    effects, _ = _largest(study)
    return heat_map(effects, "more of %{y} takes %{z:.4f} from the loss on %{x}")


def tokens(count: float) -> str:
    """A number of tokens in three digits."""
    count = float(f"{count:.3g}")  # first, or 999,600 were 1e+03k
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _largest(study: Study) -> tuple[pd.DataFrame, float]:
    """Cross-effects [K, J] at the largest budget, and the budget."""
    table = study.read_table("scale/effects.csv", "scale")
    budget = float(table["budget"].max())
    return table[table["budget"] == budget].drop(columns="budget"), budget


def _weights(quantities: dict[str, float]) -> list[str]:
    total = sum(quantities.values())
    return [f"{quantity / total:.1%}" for quantity in quantities.values()]


def _notes(found: dict) -> tuple[str, ...]:
    """How sure the mixtures are, and what speaks against them."""
    ddo, notes = found["ddo"], []
    if "points" in found and any(d["held"] for point in found["points"] for d in point["domains"].values()):
        notes.append("* at the min or the max quantity that is allowed.")
    if found.get("noise") is not None:
        notes.append(f"Noise of a run: {found['noise']:.2g} (standard deviation over seeds).")
    if "not_known" in ddo:
        notes.append(f"Interval at {tokens(ddo['target'])}: not known: {ddo['not_known']}.")
    if "weights" in ddo:
        notes += _of_interval(ddo)
    if "points" in found and found.get("noise") is None:
        notes.append("One seed each: no interval, for the noise of a run is not known (give seeds or noise).")
    if ddo.get("misfit", 0) > 1e-9:
        notes.append(f"The optima lie off one line by up to {np.expm1(ddo['misfit']):.0%} of a quantity.")
    return (*notes, *(f"Caution: {each}." for each in (*found.get("cautions", ()), *ddo.get("cautions", ()))))


def _of_interval(ddo: dict) -> list[str]:
    """What the interval at the target is of, and where AutoScale's prediction leaves it."""
    notes = [
        "All laws: mean and interval of the best mixtures under all power laws with an offset that the runs allow. "
        "Assumes that the effects of domains add up, which runs that change one domain at a time cannot test."
    ]
    weights = {name: count / ddo["target"] for name, count in ddo["tokens"].items()}
    outside = [name for name, (low, high) in ddo["weights"].items() if not low <= weights[name] <= high]
    if outside:
        notes.append(
            f"AutoScale's prediction is outside the interval for {', '.join(outside)}: prefer the mean over all laws."
        )
    return notes


def _verdict(found: pd.DataFrame) -> str:
    """Which mixture is best, and whether seeds explain the difference."""
    baselines = found.drop(index=AGAINST)
    best = baselines.sort_values("difference").iloc[0]
    gap, error = best["difference"], best["error"]
    outcome = f"{abs(gap):.4f} {'below' if gap > 0 else 'above'} {best.name}, the best baseline"
    return f"{outcome} ({abs(gap) / error:.1f} standard errors)" if error > 0 else outcome
