"""What `mde final` found: tables for the terminal, and the section of the page."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mde.optimization import objectives
from mde.reporting import figures, findings, markup, tables
from mde.reporting.scaling import tokens
from mde.reporting.table import Table
from mde.study import Study

FOLDER = "final"  # of the final models in their study; a folder for each model and training


def parts(study: Study) -> list[Study]:
    """The final models of a study that are compared already, each kind a part of it."""
    found = sorted(path.parent.name for path in (study.root / FOLDER).glob("*/summary.csv"))
    return [study.part(f"{FOLDER}/{name}") for name in found]


def text(part: Study) -> str:
    """All tables, for a terminal of 100 columns."""
    return "\n\n".join(map(str, _tables(part)))


def body(study: Study) -> list[str]:
    """The section of the page."""
    found = parts(study)
    if not found:
        return ['<p class="missing">They are in training: run the same command again to go on.</p>']
    return [piece for part in found for piece in _shown(part)]


def models(part: Study) -> Table:
    """How the mixtures compare: measured, and as the study's own small models had it predicted."""
    found, about = _summary(part), part.read_json("final.json", "final")
    against = about["against"]
    columns: dict[str, Any] = {"measured": found["measured"].map("{:.4f}".format)}
    if several := len(found) > 1:
        columns["difference"] = list(map(tables.difference, found["difference"], found["error"]))
    if several and "low_difference" in found:
        bounds = zip(found["low_difference"], found["high_difference"], strict=True)
        columns["as predicted"] = [tables.difference_interval(low, high) for low, high in bounds]
    if "tokens_to_equal" in found:
        columns["tokens to equal"] = [tables.times_as_many(ratio) for ratio in found["tokens_to_equal"]]
    columns["bits per byte"] = found["bits_per_byte"].map("{:.4f}".format)
    frame = pd.DataFrame(columns, found.index)
    frame.loc[against, [name for name in ("difference", "as predicted") if name in frame]] = tables.NOTHING
    notes = [
        findings.verdict(found, against),
        tables.seed_noise(found),
        *_transfer(found, against),
        _bits(part),
        _cost(part),
    ]
    goal = findings.objective_name(part, about["objective"])
    title = f"Final models {part.root.name}: {goal}, nats per token"
    return Table(title, frame, tuple(notes), marked=(against,))


def losses(part: Study) -> Table:
    """Measured losses by evaluation domain, and how far seeds move them."""
    runs, found = _whole(part), part.losses("losses.csv", "final")
    roles = runs["role"]
    means = found.loc[runs.index].groupby(roles, sort=False).mean()
    against = part.read_json("final.json", "final")["against"]
    table = tables.losses_by_domain(means, against, findings.bits_per_byte(part, means.T[against]))
    if runs["seed"].nunique() == 1:
        return table
    spread = np.sqrt((found.loc[runs.index].groupby(roles, sort=False).std(ddof=1) ** 2).mean())
    return tables.with_row(table, "± of one run", spread.map("{:.3f}".format))


def accuracies(part: Study) -> Table | None:
    """How often the final models choose right, by end task, mean over seeds; None without end tasks."""
    if not findings.has(part, "accuracies.csv"):
        return None
    runs = _whole(part)
    found = part.read_table("accuracies.csv", "final").loc[runs.index]
    shown = found[[name for name in found if str(name).startswith("acc/")]]
    means = shown.groupby(runs["role"], sort=False).mean().rename(columns=lambda name: name.removeprefix("acc/"))
    return Table("Accuracy of the final models, mean over seeds", means.T.map("{:.1%}".format).rename_axis("task"))


def _tables(part: Study) -> list[Table]:
    names = list(part.domains.training)
    shares = tables.shares_of(_whole(part).groupby("role", sort=False)[names].first())
    return [table for table in (models(part), shares, losses(part), accuracies(part)) if table]


def _shown(part: Study) -> list[str]:
    """One kind of final models on the page."""
    first, *others = _tables(part)
    verdict, *notes = first.notes
    runs, found = _whole(part), _summary(part)
    objective = part.read_table("objective.csv", "final").loc[runs.index, "objective"]
    seen = runs[["role", "seed"]].rename(columns={"role": "mixture"}).assign(objective=objective)
    measured = part.losses("losses.csv", "final").loc[runs.index].groupby(runs["role"], sort=False).mean()
    against = part.read_json("final.json", "final")["against"]
    pieces = [
        markup.verdict(verdict),
        markup.figure(
            figures.measured(found, seen),
            f"Measured objective of the final models {part.root.name}",
            "Left is better. Dots: one run each; bar: their mean. The table below has the same numbers.",
        ),
        markup.table(replace(first, notes=tuple(notes))),
    ]
    if len(found) > 1:
        chart = markup.figure(
            figures.trade_off(measured, against),
            f"Measured loss of each domain less that of the {against} mixture, {part.root.name}",
            f"Where each mixture gains (left of zero) and pays (right), against {against}; means over seeds.",
        )
        pieces.append(chart)
    return [*pieces, *map(markup.table, others)]


def _whole(part: Study) -> pd.DataFrame:
    """The runs of full length."""
    runs = part.read_table("mixtures.csv", "final")
    return runs[runs["steps"] == runs["steps"].max()]


def _summary(part: Study) -> pd.DataFrame:
    """The table of `summary.csv`, with differences as predicted and bits per byte."""
    found, about = part.read_table("summary.csv", "final"), part.read_json("final.json", "final")
    if "predicted" in found:
        found = findings.with_differences(found, about["against"])
    runs = _whole(part)
    means = part.losses("losses.csv", "final").loc[runs.index].groupby(runs["role"], sort=False).mean()
    return found.assign(bits_per_byte=findings.all_bits_per_byte(part, means[_counted(part)]))


def _counted(part: Study) -> list[str]:
    """The evaluation domains that the objective counts."""
    objective, names = part.read_json("final.json", "final")["objective"], part.domains.evaluation
    weights = objectives.make(objective, names, part.domains.training).weights
    return [name for name, weight in zip(names, weights, strict=True) if weight > 0]


def _bits(part: Study) -> str:
    """What bits per byte are of, whatever is measured beside them."""
    return (
        f"Bits per byte: total bits over total bytes of the {len(_counted(part))} evaluation domains that the "
        "objective counts, whatever their weights."
    )


def _transfer(found: pd.DataFrame, against: str) -> list[str]:
    """Whether the study's small models had it right, and what tokens to equal are."""
    notes = []
    if "predicted" in found and len(found) > 1:
        rivals = found.drop(index=against)
        told = int(rivals["difference"].between(rivals["low_difference"], rivals["high_difference"]).sum())
        ahead = rivals["predicted"].to_numpy() - found["predicted"][against]
        signs = int((np.sign(ahead) == np.sign(rivals["difference"])).sum())
        notes.append(
            "“As predicted” are differences that the regressor gave for models and budgets of the study's own size: "
            f"{signs} of {len(rivals)} have the sign of the measured ones, {told} of {len(rivals)} intervals hold them."
        )
    if "tokens_to_equal" in found:
        notes.append(
            f"Tokens to equal: how many times its tokens a mixture needs to be as good as {against}, if its loss goes "
            "on falling as over the last doubling (a run of half the length, first seed)."
        )
    return notes


def _cost(part: Study) -> str:
    """What was trained for this table, and what finding the mixture had cost."""
    cost = part.read_json("final.json", "final")["cost"]
    proxies, one = cost["proxies"], cost["run"]
    return (
        f"Cost: {tokens(one['tokens'])} tokens a run ({one['flops']:.3g} FLOPs), {tokens(cost['tokens'])} for all "
        f"{cost['runs']}; the study's {proxies['runs']} small runs took {tokens(proxies['tokens'])} "
        f"({proxies['flops']:.3g} FLOPs, {proxies['flops'] / one['flops']:.2g} times one run's)."
    )
