"""What a study found, as numbers and sentences: all that the tables, the figures and the page show."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mde.optimization import objectives
from mde.regression import blocks, cross_validation
from mde.regression.features import evaluated_parts
from mde.study import STAGES, Study

MEAN, ALONE, WEIGHTS, EXPERTS, MERGED = "mean", "alone", "λ only", "with MDE", "with merged"
GROUPS = (MEAN, ALONE, WEIGHTS, EXPERTS, MERGED)
RECOMMENDED = "recommended"
CLEARLY = 2  # standard errors by which a difference is clear


def has(study: Study, name: str) -> bool:
    """Whether the study holds the file `name`."""
    return (study.root / name).exists()


def stages(study: Study) -> pd.DataFrame:
    """A row a stage that is on record, in their order: `seconds` and `arguments` (a dict)."""
    found = {path.stem for path in (study.root / "stages").glob("*.json")} - {"report"}
    names = [name for name in STAGES if name in found] + sorted(found - set(STAGES))
    records = [study.read_json(f"stages/{name}.json", name) for name in names]
    columns = {key: [record[key] for record in records] for key in ("seconds", "arguments")}
    return pd.DataFrame(columns, pd.Index(names, name="stage"))


def objective_name(study: Study, objective: str | Mapping[str, float], reference: str | None = None) -> str:
    """The objective in words, and whose losses those of a worst case are measured from."""
    goal = objectives.make(objective, study.domains.evaluation, study.domains.training)
    weights = goal.weights
    counted = weights[weights > 0]
    average = "average" if np.ptp(counted) < 1e-12 else "weighted average"
    names = study.domains.evaluation
    which = "" if len(counted) == len(names) else f" of {len(names)}"
    kind = "worst" if goal.worst else average
    if families := _averaged_families(study, goal):
        alone = len(names) - sum(map(len, families.values()))
        rest = f" and {alone} domains in none" if alone else ""
        return f"average loss over families of evaluation domains ({', '.join(families)}){rest}"
    above = f" above that of {reference}" if reference else ""
    return f"{kind} loss{above} over {len(counted)}{which} evaluation domains"


def sought(optimum: Mapping[str, Any], goal: str) -> str:
    """What the recommended mixture is the best by, in a sentence: `goal` alone, or what was added to it."""
    added = []
    if optimum.get("beta", 0):
        added.append(f"{optimum['beta']:g} standard deviations of its prediction")
    if optimum.get("kl_penalty", 0):
        added.append(f"{optimum['kl_penalty']:g} times the divergence from the prior")
    plus = f" plus {' and '.join(added)}" if added else ""
    broken = any(not baseline.get("feasible", True) for baseline in optimum["predictions"].values())
    among = ", of the mixtures that obey the constraints" if broken else ""
    return f"The recommended mixture has the lowest predicted {goal}{plus}{among}."


def _averaged_families(study: Study, goal: objectives.Objective) -> Mapping[str, list[str]]:
    """The families that an objective is the average of; none if it is another objective."""
    choice = study.read_json("fit/choice.json", "fit") if has(study, "fit/choice.json") else {}
    families = choice.get("families", {})
    if not families or goal.worst:
        return {}
    domains = study.domains
    average = objectives.weights(objectives.FAMILIES, domains.evaluation, domains.training, families)
    return families if np.allclose(goal.weights, average, rtol=0, atol=1e-12) else {}


def objective_unit(study: Study, objective: str | Mapping[str, float]) -> str:
    """The unit of the losses that an objective is of."""
    names = study.domains.evaluation
    return study.unit_of(objectives.make(objective, names, study.domains.training).counted(names))


def regressors(study: Study) -> pd.DataFrame:
    """One row per method, grouped in the order of `GROUPS`, lowest error first within a group.

    Columns: group, regressor, features, mse and spearman of the objective by cross-validation, their standard errors
    over new swarms (mse_se, spearman_se), n (splits), failed (why a method has no scores, or empty) and chosen. Squared
    units of the losses.
    """
    table = study.read_table("fit/objective.csv", "fit")
    table["failed"] = table["failed"].astype(object).fillna("")
    choice = study.read_json("fit/choice.json", "fit")
    groups = list(map(_group, table["regressor"], table["features"]))
    table.insert(0, "group", pd.Series(pd.Categorical(groups, GROUPS, ordered=True), table.index))
    table["chosen"] = (table["regressor"] == choice["regressor"]) & (table["features"] == choice["features"])
    return table.sort_values(["group", "mse"], kind="stable").reset_index(drop=True)


def main_methods(methods: pd.DataFrame) -> list[tuple[str, str]]:
    """The chosen method and the best of each group and regressor: pairs (regressor, features) out of `regressors`."""
    methods = methods[methods["failed"] == ""]
    best = methods.loc[methods.groupby("group", observed=True)["mse"].idxmin()].set_index("group")
    groups = [group for group in (WEIGHTS, ALONE, EXPERTS, MERGED) if group in best.index]
    learnt = methods[~methods["group"].isin([MEAN, ALONE])]
    each = learnt.loc[learnt.groupby("regressor", sort=False)["mse"].idxmin()]
    rows = pd.concat([methods[methods["chosen"]], best.loc[groups].reset_index(), each])
    return list(dict.fromkeys(zip(rows["regressor"], rows["features"], strict=True)))


def fit_conditions(study: Study) -> str:
    """What the regressors were cross-validated on, in words."""
    choice = study.read_json("fit/choice.json", "fit")
    methods = regressors(study)
    splits = sorted({int(n) for n in methods.loc[methods["failed"] == "", "n"]})
    kind = f"× {choice['folds']} folds" if choice.get("folds") else "splits"
    parts = [
        objective_name(study, choice["objective"]),
        _runs(choice),
        f"{choice['train_mixtures']} training mixtures",
        f"{splits[-1]} {kind}" if len(splits) == 1 else f"{splits[0]} to {splits[-1]} {kind}",
    ]
    return ", ".join(parts)


def worth_of_experts(study: Study) -> str:
    """Whether features from the experts predict better than the mixture weights alone: one sentence, with the ratio.

    The ratio is the geometric mean over the splits; it is clear if its logarithm is more than two standard errors, over
    new swarms, from zero.
    """
    methods = regressors(study)
    methods = methods[methods["failed"] == ""]
    choice = study.read_json("fit/choice.json", "fit")
    baselines = {group: _methods_of(methods, group) for group in (EXPERTS, WEIGHTS)}
    if not all(baselines.values()):
        return "No comparison of MDE features with the mixture weights alone: only one of them was tried."
    rounds = cross_validation.from_rows(study.read_table("fit/rounds.csv", "fit"))
    ranked = cross_validation.compare(rounds[baselines[EXPERTS] + baselines[WEIGHTS]], _ratio(choice))
    with_mde, without = (next(method for method in ranked.index if method in baselines[group]) for group in baselines)
    ratio = np.exp(ranked["log_ratio"][with_mde] - ranked["log_ratio"][without])
    second = ranked.loc[with_mde if without == ranked.index[0] else without]  # the best of all is one of the two
    if not second["log_ratio"] > CLEARLY * second["error"]:
        verdict = "not clear whether MDE features improve predictions (the difference is within two standard errors)"
    elif ratio < 1:
        verdict = "MDE features improve predictions"
    else:
        verdict = "MDE features do not improve predictions on this study"
    return (
        f"Best with MDE ({with_mde[0]} on {with_mde[1]}) ÷ best on mixture weights only "
        f"({without[0]} on {without[1]}): MSE ratio {ratio:.2f} (geometric mean over splits); {verdict}. "
        f"(Best of {len(baselines[EXPERTS])} methods with MDE and of {len(baselines[WEIGHTS])} without.)"
    )


def _runs(choice: Mapping[str, Any]) -> str:
    """How many proxy runs were fitted, and of how many mixtures where there are replicates."""
    runs, mixtures = choice["proxy_runs"], choice["mixtures"]
    return f"{runs} proxy runs" + (f" of {mixtures} mixtures" if mixtures != runs else "")


def _ratio(choice: Mapping[str, Any]) -> float:
    """Held-out rows per training row of the fit's splits."""
    return (choice["mixtures"] - choice["train_mixtures"]) / choice["train_mixtures"]


def evaluators_by_domain(study: Study) -> pd.DataFrame:
    """Spearman of the evaluators alone with the observed losses: one row per evaluator, one column per domain."""
    table = study.read_table("fit/domains.csv", "fit")
    alone = table[table["regressor"] == ALONE]
    wide = alone.pivot(index="features", columns="domain", values="spearman")
    return wide.loc[alone["features"].unique(), list(study.domains.evaluation)]


def recommendation(study: Study) -> pd.DataFrame:
    """One row per training domain: its weight in every predicted mixture, and low and high of the recommended weight.

    There is no interval where the regressor is a constant.

    Where the study has the domains' text, their `tokens` come first.
    """
    optimum = study.read_json("optimum.json", "optimize")
    names = list(study.domains.training)
    stores = study.about.get("stores", {})
    tokens = {"tokens": [stores[f"{name}/train"]["tokens"] for name in names]} if stores else {}
    table = pd.DataFrame(tokens, names)
    for label, predicted in optimum["predictions"].items():
        table[label] = pd.Series(predicted["mixture"])
    if optimum["weight_intervals"]:
        table = table.join(pd.DataFrame(optimum["weight_intervals"], ["low", "high"]).T)
    return table.rename_axis("domain")


def predictions(study: Study) -> pd.DataFrame:
    """One row per mixture: predicted objective, and low and high of its interval, in the study's unit."""
    optimum = study.read_json("optimum.json", "optimize")
    rows = {
        label: [predicted["objective"], *predicted["objective_interval"]]
        for label, predicted in optimum["predictions"].items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["predicted", "low", "high"]).rename_axis("mixture")


def compared_with(mixtures: Iterable[str]) -> str:
    """Which of these mixtures the losses of the others are shown against: proportional, or else the last."""
    *_, last = names = [str(name) for name in mixtures]
    return "proportional" if "proportional" in names else last


def chosen_by_domain(study: Study) -> pd.DataFrame:
    """One row per evaluation domain: cross-validated scores of the chosen regressor, lowest R² first.

    Further columns: responds, whether anything predicts the domain better than the mean does, and noise, the variance
    of a run where there are replicates.
    """
    table = study.read_table("fit/domains.csv", "fit")
    choice = study.read_json("fit/choice.json", "fit")
    chosen = (table["regressor"] == choice["regressor"]) & (table["features"] == choice["features"])
    found = table[chosen].set_index("domain").sort_values("r2", kind="stable")
    noise = pd.Series(choice["noise"].get("domains", {}), dtype=float).reindex(found.index) ** 2
    return found.assign(responds=~found.index.isin(choice["unresponsive"]), noise=noise)


def with_differences(table: pd.DataFrame, against: str) -> pd.DataFrame:
    """A table of predictions (predicted, low, high) with the intervals of their differences to one of them.

    Columns low_difference and high_difference; the difference of a mixture to itself has none.
    """
    one = table.loc[against]
    bounds = blocks.difference_interval(
        table["predicted"], table[["low", "high"]], one["predicted"], one[["low", "high"]]
    )
    bounds[table.index == against] = np.nan
    return table.assign(low_difference=bounds[:, 0], high_difference=bounds[:, 1])


def bits_per_byte(study: Study, losses: pd.Series) -> pd.Series:
    """Losses in nats per token, indexed by evaluation domain, as bits per UTF-8 byte: total bits over total bytes."""
    text = study.read_table("evaluation.csv", "score").loc[losses.index]
    return losses * text["tokens"] / text["bytes"] / np.log(2)


def all_bits_per_byte(study: Study, losses: pd.DataFrame) -> pd.Series:
    """Losses [M, J] in nats per token as bits per UTF-8 byte of all their domains: total bits over total bytes, [M]."""
    text = study.read_table("evaluation.csv", "score").loc[losses.columns]
    return (losses * text["tokens"]).sum(axis=1) / text["bytes"].sum() / np.log(2)


def expert_losses(study: Study) -> pd.DataFrame:
    """Losses of the experts in nats per token: one row per expert, by its domain, one column per evaluation domain."""
    runs = study.mixtures()
    experts = runs.loc[runs["role"] == "expert", list(study.domains.training)]
    names = [experts.columns[i] for i in experts.to_numpy().argmax(axis=1)] if len(experts) else []
    return study.losses(runs=experts.index).set_axis(names).rename_axis("expert")


def evaluator_shifts(study: Study) -> pd.DataFrame:
    """What the evaluators say of the proxy runs and what training gave, each less its domain's mean.

    Columns evaluator, domain, run, evaluated and observed; nats per token.
    """
    runs = study.mixtures()
    proxy_runs = runs.index[runs["role"] == "proxy"]
    observed = _shifts(study.losses(runs=proxy_runs))
    parts = [
        pd.concat({"evaluated": _shifts(table), "observed": observed}, axis=1).assign(evaluator=name)
        for name, table in study.features(proxy_runs).items()
    ]
    return pd.concat(parts).reset_index()


def _shifts(losses: pd.DataFrame) -> pd.Series:
    """Losses less the mean of their column, in one column indexed by run and domain."""
    shifts = (losses - losses.mean()).rename_axis("run").reset_index().melt("run", var_name="domain")
    return shifts.set_index(["run", "domain"])["value"]


def noise(study: Study) -> float | None:
    """Variance of the fit's objective between runs of one mixture; None where no mixture has several proxy runs."""
    found = study.read_json("fit/choice.json", "fit")["noise"]
    return found["objective"] ** 2 if found else None


def versions(study: Study) -> dict[str, dict[str, str]]:
    """The versions that each stage on record ran with."""
    records = {name: study.read_json(f"stages/{name}.json", name) for name in stages(study).index}
    return {name: record["versions"] for name, record in records.items() if "versions" in record}


def training_curves(study: Study, points: int = 150) -> pd.DataFrame:
    """Training losses of the seed model and the experts: columns run, step and loss, the longest run in `points` means.

    Experts continue from the seed model, so their steps count on from its last one.
    """
    runs = study.mixtures()
    names = ["seed", *runs.index[runs["role"] == "expert"]]
    paths = {name: study.root / "runs" / name / "metrics.jsonl" for name in names}
    curves = {
        name: pd.DataFrame(map(json.loads, path.read_text().splitlines())).drop_duplicates("step", keep="last")
        for name, path in paths.items()
        if path.exists()
    }
    width = -(-max((len(curve) for curve in curves.values()), default=1) // points)
    start = curves["seed"]["step"].max() if "seed" in curves else 0
    binned = [pd.DataFrame(columns=["run", "step", "loss"])]
    for name, curve in curves.items():
        means = curve.groupby((curve["step"] - 1) // width)[["step", "loss"]].mean()
        binned.append(means.assign(run=name, step=means["step"] + (start if name != "seed" else 0)))
    return pd.concat(binned[1:] or binned, ignore_index=True)


def _methods_of(methods: pd.DataFrame, group: str) -> list[tuple[str, str]]:
    rows = methods[methods["group"] == group]
    return list(zip(rows["regressor"], rows["features"], strict=True))


def _group(regressor: str, features: str) -> str:
    if regressor in (MEAN, ALONE):
        return regressor
    parts = evaluated_parts(features)
    if "merged" in parts:
        return MERGED
    return EXPERTS if parts else WEIGHTS
