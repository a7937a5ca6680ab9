"""What a study found, as numbers and sentences: all that the tables, the figures and the page show."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mde.optimization import objectives
from mde.regression import blocks, validation
from mde.regression.features import evaluated_parts
from mde.study import STAGES, Study

MEAN, ALONE, WEIGHTS, EXPERTS, MERGED = "mean", "alone", "λ only", "with MDE", "with merged"
GROUPS = (MEAN, ALONE, WEIGHTS, EXPERTS, MERGED)
RECOMMENDED = "recommended"
_ROUNDING = 1e-12  # a standard error below it is of seeds that agree


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
    broken = any(not rival.get("feasible", True) for rival in optimum["predictions"].values())
    among = ", of the mixtures that obey the constraints" if broken else ""
    return f"The recommended mixture has the least predicted {goal}{plus}{among}."


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
    """A row a method, grouped in the order of `GROUPS`, least error first within a group.

    Columns: group, regressor, features, mse and spearman of the objective out of fold, their standard errors over the
    splits (mse_se, spearman_se), n (splits) and chosen. Squared units of the losses.
    """
    table = study.read_table("fit/objective.csv", "fit")
    choice = study.read_json("fit/choice.json", "fit")
    groups = list(map(_group, table["regressor"], table["features"]))
    table.insert(0, "group", pd.Series(pd.Categorical(groups, GROUPS, ordered=True), table.index))
    table["chosen"] = (table["regressor"] == choice["regressor"]) & (table["features"] == choice["features"])
    return table.sort_values(["group", "mse"], kind="stable").reset_index(drop=True)


def main_methods(methods: pd.DataFrame) -> list[tuple[str, str]]:
    """The chosen method and the best of each group and regressor: pairs (regressor, features) out of `regressors`."""
    best = methods.loc[methods.groupby("group", observed=True)["mse"].idxmin()].set_index("group")
    groups = [group for group in (WEIGHTS, ALONE, EXPERTS, MERGED) if group in best.index]
    learnt = methods[~methods["group"].isin([MEAN, ALONE])]
    each = learnt.loc[learnt.groupby("regressor", sort=False)["mse"].idxmin()]
    rows = pd.concat([methods[methods["chosen"]], best.loc[groups].reset_index(), each])
    return list(dict.fromkeys(zip(rows["regressor"], rows["features"], strict=True)))


def fit_conditions(study: Study) -> str:
    """What the regressors were judged on, in words."""
    choice = study.read_json("fit/choice.json", "fit")
    splits = sorted({int(n) for n in regressors(study)["n"]})
    kind = f"× {choice['folds']} folds" if choice.get("folds") else "splits"
    parts = [
        objective_name(study, choice["objective"]),
        f"{choice['observations']} observations",
        f"{choice['train_mixtures']} training mixtures",
        f"{splits[-1]} {kind}" if len(splits) == 1 else f"{splits[0]} to {splits[-1]} {kind}",
    ]
    return ", ".join(parts)


def worth_of_experts(study: Study) -> str:
    """Whether features from the experts predict better than the mixture weights alone: one sentence, with the ratio."""
    methods = regressors(study)
    rivals = {group: _methods_of(methods, group) for group in (EXPERTS, WEIGHTS)}
    if not all(rivals.values()):
        return "MDE features and λ-only features were not both there to try, so there is no ratio between them."
    rounds = validation.from_rows(study.read_table("fit/rounds.csv", "fit"))
    ranked = validation.compare(rounds[rivals[EXPERTS] + rivals[WEIGHTS]])
    with_mde, without = (next(method for method in ranked.index if method in rivals[group]) for group in rivals)
    ratio = ranked["mse"][with_mde] / ranked["mse"][without]
    second = ranked.loc[with_mde if without == ranked.index[0] else without]  # the best of all is one of the two
    if second["excess"] <= second["error"]:
        verdict = "no clear difference (within one standard error): MDE features do not visibly help here"
    elif ratio < 1:
        verdict = "MDE features help"
    else:
        verdict = "MDE features do NOT help here"
    return (
        f"Best with MDE ({with_mde[0]} on {with_mde[1]}) ÷ best λ-only "
        f"({without[0]} on {without[1]}): MSE ratio {ratio:.2f}; {verdict}. "
        f"(Best of {len(rivals[EXPERTS])} methods with MDE and of {len(rivals[WEIGHTS])} without.)"
    )


def evaluators_by_domain(study: Study) -> pd.DataFrame:
    """Spearman of the evaluators alone with the observed losses: a row an evaluator, a column a domain."""
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
    if optimum["share_intervals"]:
        table = table.join(pd.DataFrame(optimum["share_intervals"], ["low", "high"]).T)
    return table.rename_axis("domain")


def predictions(study: Study) -> pd.DataFrame:
    """A row a mixture: predicted objective, and low and high of its interval, in the study's unit."""
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
    """A row an evaluation domain: scores out of fold of the chosen regressor, least R² first."""
    table = study.read_table("fit/domains.csv", "fit")
    choice = study.read_json("fit/choice.json", "fit")
    chosen = (table["regressor"] == choice["regressor"]) & (table["features"] == choice["features"])
    return table[chosen].set_index("domain").sort_values("r2", kind="stable")


def proof_objective(study: Study) -> dict[str, Any]:
    """What the proof was measured by: the objective of its time, which a later recommendation may have changed.

    A study of before it was kept has that of the recommendation.
    """
    if has(study, "proof/objective.json"):
        return study.read_json("proof/objective.json", "prove")
    return study.read_json("optimum.json", "optimize")


def proof_runs(study: Study) -> pd.DataFrame:
    """A row a run of the proof: mixture, seed and measured objective in nats per token."""
    planned = study.mixtures("proof/mixtures.csv", "prove")
    losses = study.losses("proof/losses.csv", "prove", planned.index)
    goal = objectives.recorded(proof_objective(study), study.domains.evaluation, study.domains.training)
    table = planned[["role", "seed"]].rename(columns={"role": "mixture"})
    return table.assign(objective=goal(losses.to_numpy()))


def proof_losses(study: Study) -> pd.DataFrame:
    """Measured losses, mean over seeds: a row a mixture, a column an evaluation domain; nats per token."""
    runs = study.mixtures("proof/mixtures.csv", "prove")
    losses = study.losses("proof/losses.csv", "prove", runs.index)
    return losses.groupby(runs["role"], sort=False).mean().rename_axis("mixture")


def proof(study: Study) -> pd.DataFrame:
    """A row a mixture: what `mde prove` found, and how far it is from the recommended one.

    Columns beside those of proof/summary.csv: seeds, difference, error and clear, as `blocks.compare` has them;
    low_difference and high_difference, the interval that was predicted of the difference; low_any_seed and
    high_any_seed, the interval of the loss when it may be that of other seeds than the observations' (see
    `blocks.seed_reach`; that of the regressor alone where the proof has one seed).
    """
    table = study.read_table("proof/summary.csv", "prove")
    runs = proof_runs(study).pivot(index="seed", columns="mixture", values="objective")[table.index]
    compared = blocks.compare(runs, RECOMMENDED)[["seeds", "difference", "error", "clear"]]
    level = study.read_json("optimum.json", "optimize")["interval_level"]
    reach = np.nan_to_num(blocks.seed_reach(runs, level))
    wider = {
        "low_any_seed": table["predicted"] - np.hypot(table["predicted"] - table["low"], reach),
        "high_any_seed": table["predicted"] + np.hypot(table["high"] - table["predicted"], reach),
    }
    return with_differences(table, RECOMMENDED).join(compared).assign(**wider)


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


def verdict(table: pd.DataFrame, against: str = RECOMMENDED) -> str:
    """Whether a mixture won, in one or two sentences; `table` has the columns of `blocks.compare`, against this one."""
    subject = "The recommended mixture" if against == RECOMMENDED else f"Mixture {against!r}"
    rivals = table.drop(index=against)
    if rivals.empty:
        return f"{subject} alone was trained: name others to compare it with."
    best = rivals.sort_values("measured").iloc[0]
    gap, clear = best["difference"], best["clear"]
    size = f"{abs(gap):.4f} nats per token"
    than = f"{size} below {best.name}, the next best" if gap > 0 else f"{best.name} is {size} below it"
    error = best["error"]
    times = f"{abs(gap) / error:.1f} standard errors" if error > _ROUNDING else "all seeds agree"
    beyond = f"{times}, more than seeds explain" if error > _ROUNDING else times
    if np.isnan(error):
        outcome = "has the lowest measured loss" if gap > 0 else "did not win"
        return f"{subject} {outcome}: {than}. One seed each: it may be noise."
    if gap > 0 and clear:
        return f"{subject} won: {than} ({beyond})."
    beaten = list(rivals.index[rivals["clear"] & (rivals["difference"] > 0)])
    named = " and ".join(filter(None, [", ".join(beaten[:-1]), *beaten[-1:]]))
    also = f" It beats {named} by more than seeds explain." if beaten else ""
    if gap <= 0 and clear:
        return f"{subject} did NOT win: {than} ({beyond}).{also}"
    outcome = "has the lowest measured loss, but the lead is" if gap > 0 else "did not win, but the difference is"
    return f"{subject} {outcome} within seed noise: {than} ({times}).{also}"


def calibration(table: pd.DataFrame, level: float) -> str:
    """How often measured differences and losses lie in the predicted intervals; `table` is that of `proof`.

    A seed moves all mixtures together, and the observations have a single one. So differences are what a prediction can
    be held to; of a loss the interval has to be wider, by what the proof's seeds differ.
    """
    rivals = table.drop(index=RECOMMENDED)
    told = int(rivals["difference"].between(rivals["low_difference"], rivals["high_difference"]).sum())
    off = (table["measured"] - table["predicted"]).mean()
    differences = (
        f"Of the differences to the recommended mixture, {told} of {len(rivals)} lie in their predicted {level:.0%} "
        "intervals"
    )
    losses = f"Losses are {off:+.4f} off their predictions on average"
    within = int(table["measured"].between(table["low"], table["high"]).sum())
    if table["seeds"].iloc[0] == 1:
        return (
            f"{differences}. {losses}, and {within} of {len(table)} lie in the regressor's intervals, which are of "
            "runs with the observations' own seed: how far seeds move all mixtures together, one seed does not tell."
        )
    wider = int(table["measured"].between(table["low_any_seed"], table["high_any_seed"]).sum())
    return (
        f"{differences}. {losses}: a seed moves all mixtures together, and the observations have one seed. "
        f"{wider} of {len(table)} losses lie in the {level:.0%} intervals shown, which allow for that by what the "
        f"proof's seeds differ; {within} in those of the regressor alone."
    )


def bits_per_byte(study: Study, losses: pd.Series) -> pd.Series:
    """Losses in nats per token, indexed by evaluation domain, as bits per UTF-8 byte: total bits over total bytes."""
    text = study.read_table("evaluation.csv", "score").loc[losses.index]
    return losses * text["tokens"] / text["bytes"] / np.log(2)


def all_bits_per_byte(study: Study, losses: pd.DataFrame) -> pd.Series:
    """Losses [M, J] in nats per token as bits per UTF-8 byte of all their domains: total bits over total bytes, [M]."""
    text = study.read_table("evaluation.csv", "score").loc[losses.columns]
    return (losses * text["tokens"]).sum(axis=1) / text["bytes"].sum() / np.log(2)


def proof_is_current(study: Study) -> bool:
    """Whether the proof trained the mixture that is recommended now, and measured it by the objective of now."""
    runs = study.mixtures("proof/mixtures.csv", "prove")
    names = list(study.domains.training)
    trained = runs.loc[runs["role"] == RECOMMENDED, names].to_numpy()
    optimum = study.read_json("optimum.json", "optimize")
    same = np.allclose(trained, [optimum["shares"][name] for name in names], atol=1e-9)
    return bool(same) and _goal(study, proof_objective(study)) == _goal(study, optimum)


def _goal(study: Study, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """An objective on record, to compare it with another."""
    goal = objectives.recorded(record, study.domains.evaluation, study.domains.training)
    reference = None if goal.reference is None else goal.reference.tolist()
    return goal.worst, goal.beta, goal.weights.tolist(), reference


def proof_is_of_known(study: Study) -> bool:
    """Whether the proof trained nothing but the mixtures that the recommendation's own table shows."""
    optimum = study.read_json("optimum.json", "optimize")
    return set(study.mixtures("proof/mixtures.csv", "prove")["role"]) <= set(optimum["predictions"])


def expert_losses(study: Study) -> pd.DataFrame:
    """Losses of the experts in nats per token: a row an expert, named by its domain, a column an evaluation domain."""
    runs = study.mixtures()
    experts = runs.loc[runs["role"] == "expert", list(study.domains.training)]
    names = [experts.columns[i] for i in experts.to_numpy().argmax(axis=1)] if len(experts) else []
    return study.losses(runs=experts.index).set_axis(names).rename_axis("expert")


def evaluator_shifts(study: Study) -> pd.DataFrame:
    """What the evaluators say of the observations and what training gave, each less its domain's mean.

    Columns evaluator, domain, run, evaluated and observed; nats per token.
    """
    runs = study.mixtures()
    observations = runs.index[runs["role"] == "observation"]
    observed = _shifts(study.losses(runs=observations))
    parts = [
        pd.concat({"evaluated": _shifts(table), "observed": observed}, axis=1).assign(evaluator=name)
        for name, table in study.features(observations).items()
    ]
    return pd.concat(parts).reset_index()


def _shifts(losses: pd.DataFrame) -> pd.Series:
    """Losses less the mean of their column, in one column indexed by run and domain."""
    shifts = (losses - losses.mean()).rename_axis("run").reset_index().melt("run", var_name="domain")
    return shifts.set_index(["run", "domain"])["value"]


def noise(study: Study) -> float | None:
    """Variance of the fit's objective between runs of one mixture, from the seeds of the proof, where there are any.

    It goes with the errors of the fit, whatever objective the proof was measured by.
    """
    if not has(study, "proof/summary.csv"):
        return None
    runs = study.mixtures("proof/mixtures.csv", "prove")
    if not runs["role"].duplicated().any():
        return None
    objective = study.read_json("fit/choice.json", "fit")["objective"]
    weights = objectives.weights(objective, study.domains.evaluation, study.domains.training)
    losses = study.losses("proof/losses.csv", "prove", runs.index)
    return validation.noise_floor(losses.to_numpy(), list(runs["role"]), weights)


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
