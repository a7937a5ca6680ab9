"""What `mde validate` and `mde final` measured: tables for the terminal, and the sections of the page."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mde.optimization import objectives
from mde.regression import paired
from mde.reporting import figures, findings, markup, tables
from mde.reporting.scaling import tokens
from mde.reporting.table import Table
from mde.study import Study

FOLDER = "final"  # of the final models in their study; a folder for each model and training
VALIDATION = "validation"  # of the validation runs in their study
VALIDATED = f"{VALIDATION}/final.json"


def parts(study: Study) -> list[Study]:
    """The final models of a study that are compared already, each kind a part of it."""
    found = sorted(path.parent.name for path in (study.root / FOLDER).glob("*/final.json"))
    return [study.part(f"{FOLDER}/{name}") for name in found]


def validation(study: Study) -> Study | None:
    """The validation runs of a study, a part of it, if they are compared already."""
    return study.part(VALIDATION) if findings.has(study, VALIDATED) else None


def text(part: Study) -> str:
    """All tables, for a terminal of 100 columns."""
    return "\n\n".join(map(str, _tables(part)))


def body(study: Study) -> list[str]:
    """The section of the page on final models."""
    found = parts(study)
    if not found:
        return ['<p class="missing">They are in training: run the same command again to go on.</p>']
    return [piece for part in found for piece in _shown(part)]


def validation_body(study: Study) -> list[str]:
    """The section of the page on validation runs."""
    return _shown(study.part(VALIDATION))


def models(part: Study) -> Table:
    """How the mixtures compare, with what seeds and text leave open."""
    found, about = _summary(part), _about(part)
    against = about["against"]
    columns: dict[str, Any] = {"measured": found["measured"].map("{:.4f}".format)}
    if len(found) > 1:
        columns["difference"] = list(map(tables.difference, found["difference"], found["error"]))
        columns["± seeds"] = found["error_seeds"].map(tables.error)
        columns["± text"] = found["error_text"].map(tables.error)
        columns["p (Holm)"] = found["p_holm"].map(tables.p_value)
        columns["seeds for 80%"] = found["seeds_needed"].map(tables.count)
    frame = pd.DataFrame(columns, found.index)
    frame.loc[against, list(frame)[1:]] = tables.NOTHING
    notes = [verdict(found, against), *_errors(part, found), _controlled(part), *_text(part), _cost(part)]
    if not _is_current(part):
        notes.insert(1, "These runs are of an earlier recommendation or objective: run the command again.")
    goal = findings.objective_name(part, about["objective"], about["reference"])
    title = f"{_name(part)}: {goal}, nats per token"
    return Table(title, frame, tuple(notes), marked=(against,))


def predictions(part: Study) -> Table:
    """What proxy runs predicted of the mixtures, how many times its tokens each would need, and bits per byte."""
    found, about = _summary(part), _about(part)
    columns: dict[str, Any] = {}
    if len(found) > 1:
        columns["measured rank"] = found["measured"].rank(method="min").map("{:.0f}".format)
    if len(found) > 1 and "predicted" in found:
        columns["predicted rank"] = found["predicted"].rank(method="min").map("{:.0f}".format)
    if "low_difference" in found and about["proxy_setting"]:
        bounds = zip(found["low_difference"], found["high_difference"], strict=True)
        columns["difference as predicted"] = [tables.difference_interval(low, high) for low, high in bounds]
    if "tokens_to_equal" in found:
        columns["tokens to equal"] = [tables.times_as_many(ratio) for ratio in found["tokens_to_equal"]]
    columns["bits per byte"] = found["bits_per_byte"].map("{:.4f}".format)
    notes = (*_transfer(found, about["against"], about["proxy_setting"]), _bits(part))
    return Table(
        "Measured and predicted order of the mixtures",
        pd.DataFrame(columns, found.index),
        notes,
        marked=(about["against"],),
    )


def verdict(found: pd.DataFrame, against: str) -> str:
    """The regret of a mixture and which others it is clearly better or worse than; `found` as of `paired.compare`."""
    subject = "the recommended mixture" if against == findings.RECOMMENDED else f"mixture {against!r}"
    others = found.drop(index=against)
    if others.empty:
        return f"{subject.capitalize()} alone was trained: name others to compare it with."
    value, low, high = paired.regret(found, against)
    best = found["measured"].idxmin()
    lowest = f"it has the lowest measured loss of {len(found)}" if best == against else f"{best} is measured lower"
    interval = "no interval" if np.isnan(low) else f"{paired.LEVEL:.0%} interval {low:.4f} to {high:.4f}"
    sentence = f"Regret of {subject}: {value:.4f} nats per token ({interval}): {lowest}."
    if others["error"].isna().any():
        return f"{sentence} The noise is not known: it takes two seeds, and two documents per evaluation domain."
    kinds = {
        "Clearly better than": others["clear"] & (others["difference"] > 0),
        "Clearly WORSE than": others["clear"] & (others["difference"] < 0),
        "Not clearly different from": ~others["clear"],
    }
    named = [f"{words} {', '.join(map(str, others.index[which]))}" for words, which in kinds.items() if which.any()]
    return f"{sentence} {'. '.join(named)} (p < {1 - paired.LEVEL:.2f})."


def regret(part: Study) -> tuple[str, str]:
    """The regret of the recommended mixture, and its interval in words."""
    value, low, high = paired.regret(_summary(part), _about(part)["against"])
    words = f"{paired.LEVEL:.0%} interval {low:.4f} to {high:.4f}" if not np.isnan(low) else "noise not known"
    return f"{value:.4f}", f"above the best mixture that was trained; {words}"


def measured_figure(part: Study) -> go.Figure:
    """What the runs of each mixture measured."""
    runs = _whole(part)
    objective = part.read_table("objective.csv", _made_by(part)).loc[runs.index, "objective"]
    seen = runs[["role", "seed"]].rename(columns={"role": "mixture"}).assign(objective=objective)
    return figures.measured(_summary(part), seen)


def losses(part: Study) -> Table:
    """Measured losses by evaluation domain, and how far seeds move them."""
    runs, found = _whole(part), part.losses("losses.csv", _made_by(part))
    roles = runs["role"]
    means = found.loc[runs.index].groupby(roles, sort=False).mean()
    against = _about(part)["against"]
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
    found = part.read_table("accuracies.csv", _made_by(part)).loc[runs.index]
    shown = found[[name for name in found if str(name).startswith("acc/")]]
    means = shown.groupby(runs["role"], sort=False).mean().rename(columns=lambda name: name.removeprefix("acc/"))
    return Table(f"Accuracy of the {_called(part)}, mean over seeds", means.T.map("{:.1%}".format).rename_axis("task"))


def _tables(part: Study) -> list[Table]:
    names = list(part.domains.training)
    weights = tables.weights_of(_whole(part).groupby("role", sort=False)[names].first())
    return [table for table in (models(part), predictions(part), weights, losses(part), accuracies(part)) if table]


def _shown(part: Study) -> list[str]:
    """The tables and charts of one kind of runs on the page."""
    first, *others = _tables(part)
    sentence, *notes = first.notes
    runs, against = _whole(part), _about(part)["against"]
    measured = part.losses("losses.csv", _made_by(part)).loc[runs.index].groupby(runs["role"], sort=False).mean()
    pieces = [
        markup.verdict(sentence),
        markup.figure(
            measured_figure(part),
            f"Measured objective of the {_called(part)}",
            "Left is better. Dots: one run each; bar: their mean. The table below has the same numbers.",
        ),
        markup.table(replace(first, notes=tuple(notes))),
    ]
    if len(measured) > 1:
        chart = markup.figure(
            figures.trade_off(measured, against),
            f"Measured loss of each domain less that of the {against} mixture, {_called(part)}",
            f"Where each mixture gains (left of zero) and pays (right), against {against}; means over seeds.",
        )
        pieces.append(chart)
    return [*pieces, *map(markup.table, others)]


def _made_by(part: Study) -> str:
    return "validate" if part.root.name == VALIDATION else "final"


def _called(part: Study) -> str:
    return "validation runs" if _made_by(part) == "validate" else f"final models {part.root.name}"


def _name(part: Study) -> str:
    called = _called(part)
    return called[0].upper() + called[1:]


def _about(part: Study) -> dict[str, Any]:
    return part.read_json("final.json", _made_by(part))


def _whole(part: Study) -> pd.DataFrame:
    """The runs of full length."""
    runs = part.read_table("mixtures.csv", _made_by(part))
    return runs[runs["steps"] == runs["steps"].max()]


def _summary(part: Study) -> pd.DataFrame:
    """The table of `summary.csv`, with differences as predicted and bits per byte."""
    part.read_table("summary.csv", _made_by(part), ["p_holm"])  # a table of an older version has none
    found = part.read_table("summary.csv", _made_by(part))
    if "predicted" in found:
        found = findings.with_differences(found, _about(part)["against"])
    runs = _whole(part)
    means = part.losses("losses.csv", _made_by(part)).loc[runs.index].groupby(runs["role"], sort=False).mean()
    return found.assign(bits_per_byte=findings.all_bits_per_byte(part, means[_counted(part)]))


def _is_current(part: Study) -> bool:
    """Whether the runs are of the mixture that is recommended now, and compared by its objective."""
    study, runs, about = part.whole, _whole(part), _about(part)
    if not findings.has(study, "optimum.json"):
        return True
    optimum = study.read_json("optimum.json", "optimize")
    names = [name for name in study.domains.training if name in runs]
    trained = runs.loc[runs["role"] == findings.RECOMMENDED, names].to_numpy()
    same = np.allclose(trained, [optimum["weights"][name] for name in names], atol=1e-9)
    return same and all(about[key] == optimum.get(key) for key in ("objective", "reference"))


def _counted(part: Study) -> list[str]:
    """The evaluation domains that the objective counts."""
    objective, names = _about(part)["objective"], part.domains.evaluation
    weights = objectives.make(objective, names, part.domains.training).weights
    return [name for name, weight in zip(names, weights, strict=True) if weight > 0]


def _errors(part: Study, found: pd.DataFrame) -> list[str]:
    """What the errors are made of, and what would make them smaller."""
    seeds, baselines = int(found["seeds"].iloc[0]), len(found) - 1
    if not baselines:
        return []
    documents, split = _about(part)["documents"], part.read_json("scoring.json", _made_by(part))["split"]
    notes = [
        f"±: standard error of a difference, from {seeds} seeds and {documents:,} {split} documents together (text by "
        f"a bootstrap). p: two-sided t-test, Holm's correction for {baselines} differences. Seeds for 80%: runs per "
        "mixture that find a difference of this size with 80% power, as far as the noise of runs is the limit."
    ]
    others = found.drop(index=_about(part)["against"])
    if (others["error_text"] > others["error_seeds"]).all():
        notes.append("The text is the larger part of every ±: more test text would tell more than more seeds.")
    return notes


def _transfer(found: pd.DataFrame, against: str, proxy_setting: bool) -> list[str]:
    """Whether the proxy runs had it right, and what tokens to equal are."""
    notes = []
    if "predicted" in found and len(found) > 1:
        others = found.drop(index=against)
        ahead = others["predicted"].to_numpy() - found["predicted"][against]
        signs = int((np.sign(ahead) == np.sign(others["difference"])).sum())
        told = f"{signs} of {len(others)} differences have the predicted sign"
        if proxy_setting:
            notes.append(f"The difference as predicted is the regressor's interval, for runs like these: {told}.")
        else:
            notes.append(f"Proxy runs predict an order, not the size of a gain in runs of another kind: {told}.")
    if "tokens_to_equal" in found:
        notes.append(
            f"Tokens to equal: how many times its tokens a mixture needs to be as good as {against}, if its loss goes "
            "on falling as over the last doubling (a run of half the length, first seed)."
        )
    return notes


def _controlled(part: Study) -> str:
    """Which part of all tokens the mixtures decided on."""
    cost = _about(part)["cost"]
    here, there = (cost[which]["controlled"] for which in ("run", "proxies"))
    rest = "" if there == 1 else "; the rest the seed model read, on its own mixture"
    return f"The mixture controlled {here:.0%} of the tokens of these runs and {there:.0%} of a proxy run's{rest}."


def _text(part: Study) -> list[str]:
    """What the runs are scored on, where it is not the test split alone."""
    notes = []
    if part.read_json("scoring.json", _made_by(part))["split"] != "test":
        notes.append(
            "Scored on VALIDATION text, which the mixture was chosen on, so its lead is flattered: this study has no "
            "test split for all domains. Prepare a new study to have one."
        )
    if part.tasks:
        notes.append(f"End tasks have no test split: {', '.join(part.tasks)} have the same examples throughout.")
    return notes


def _bits(part: Study) -> str:
    """What bits per byte are of, whatever is measured beside them."""
    return (
        f"Bits per byte: total bits over total bytes of the {len(_counted(part))} evaluation domains that the "
        "objective counts, whatever their weights."
    )


def _cost(part: Study) -> str:
    """What was trained for this table, and what finding the mixture had cost."""
    cost = _about(part)["cost"]
    proxies, one = cost["proxies"], cost["run"]
    return (
        f"Cost: {tokens(one['tokens'])} tokens a run ({one['flops']:.3g} FLOPs), {tokens(cost['tokens'])} for all "
        f"{cost['runs']}; the study's {proxies['runs']} experts and proxy runs took {tokens(proxies['tokens'])} "
        f"({proxies['flops']:.3g} FLOPs, {proxies['flops'] / one['flops']:.2g} times one run's)."
    )
