"""What a study found, as numbers and sentences: all that the tables, the figures and the page show."""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from mde.optimization import objectives
from mde.regression.features import evaluated_parts
from mde.study import STAGES, Study

MEAN, ALONE, WEIGHTS, EXPERTS, MERGED = "mean", "alone", "λ only", "with MDE", "with merged"
GROUPS = (MEAN, ALONE, WEIGHTS, EXPERTS, MERGED)
RECOMMENDED = "recommended"


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


def objective_name(study: Study, objective: str | Mapping[str, float]) -> str:
    """The objective in words."""
    goal = objectives.make(objective, study.domains.evaluation, study.domains.training)
    weights = goal.weights
    counted = weights[weights > 0]
    average = "average" if np.ptp(counted) < 1e-12 else "weighted average"
    names = study.domains.evaluation
    which = "" if len(counted) == len(names) else f" of {len(names)}"
    kind = "worst" if goal.worst else average
    return f"{kind} loss over {len(counted)}{which} evaluation domains"


def regressors(study: Study) -> pd.DataFrame:
    """A row a method, grouped in the order of `GROUPS`, least error first within a group.

    Columns: group, regressor, features, mse and spearman of the objective out of fold, their standard errors over the
    splits (mse_se, spearman_se), n (splits) and chosen. Squared nats per token.
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
    observations = int((study.mixtures()["role"] == "observation").sum())
    parts = [
        objective_name(study, choice["objective"]),
        f"{observations} observations",
        f"{choice['train_mixtures']} training mixtures",
        f"{int(regressors(study)['n'].max())} splits",
    ]
    return ", ".join(parts)


def worth_of_experts(methods: pd.DataFrame) -> str:
    """Whether features from the experts predict better than the mixture weights alone: one sentence, with the ratio.

    Args:
      methods: the table of `regressors`.
    """
    rivals = {group: methods[methods["group"] == group] for group in (EXPERTS, WEIGHTS)}
    if any(table.empty for table in rivals.values()):
        return "MDE features and λ-only features were not both there to try, so there is no ratio between them."
    with_mde, without = (table.sort_values("mse").iloc[0] for table in rivals.values())
    ratio = with_mde["mse"] / without["mse"]
    gap = abs(with_mde["mse"] - without["mse"])
    if gap <= np.hypot(with_mde["mse_se"], without["mse_se"]):
        verdict = "no clear difference (within one standard error): MDE features do not visibly help here"
    elif ratio < 1:
        verdict = "MDE features help"
    else:
        verdict = "MDE features do NOT help here"
    return (
        f"Best with MDE ({with_mde['regressor']} on {with_mde['features']}) ÷ best λ-only "
        f"({without['regressor']} on {without['features']}): MSE ratio {ratio:.2f}; {verdict}. "
        f"(Best of {len(rivals[EXPERTS])} methods with MDE and of {len(rivals[WEIGHTS])} without.)"
    )


def evaluators_by_domain(study: Study) -> pd.DataFrame:
    """Spearman of the evaluators alone with the observed losses: a row an evaluator, a column a domain."""
    table = study.read_table("fit/domains.csv", "fit")
    alone = table[table["regressor"] == ALONE]
    wide = alone.pivot(index="features", columns="domain", values="spearman")
    return wide.loc[alone["features"].unique(), list(study.domains.evaluation)]


def recommendation(study: Study) -> pd.DataFrame:
    """A row a training domain: share of every predicted mixture, and low and high of the recommended share.

    Where the study has the domains' text, their `tokens` come first.
    """
    optimum = study.read_json("optimum.json", "optimize")
    names = list(study.domains.training)
    stores = study.about.get("stores", {})
    tokens = {"tokens": [stores[f"{name}/train"]["tokens"] for name in names]} if stores else {}
    table = pd.DataFrame(tokens, names)
    for label, predicted in optimum["predictions"].items():
        table[label] = pd.Series(predicted["mixture"])
    intervals = pd.DataFrame(optimum["share_intervals"], ["low", "high"]).T
    return table.join(intervals).rename_axis("domain")


def predictions(study: Study) -> pd.DataFrame:
    """A row a mixture: predicted objective, and low and high of its interval; nats per token."""
    optimum = study.read_json("optimum.json", "optimize")
    rows = {
        label: [predicted["objective"], *predicted["objective_interval"]]
        for label, predicted in optimum["predictions"].items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["predicted", "low", "high"]).rename_axis("mixture")


def proof_runs(study: Study) -> pd.DataFrame:
    """A row a run of the proof: mixture, seed and measured objective in nats per token."""
    planned = study.mixtures("proof/mixtures.csv", "prove")
    losses = study.losses("proof/losses.csv", "prove").loc[planned.index]
    goal = objectives.recorded(
        study.read_json("optimum.json", "optimize"), study.domains.evaluation, study.domains.training
    )
    table = planned[["role", "seed"]].rename(columns={"role": "mixture"})
    return table.assign(objective=goal(losses.to_numpy()))


def proof_losses(study: Study) -> pd.DataFrame:
    """Measured losses, mean over seeds: a row a mixture, a column an evaluation domain; nats per token."""
    runs = study.mixtures("proof/mixtures.csv", "prove")
    losses = study.losses("proof/losses.csv", "prove").loc[runs.index]
    return losses.groupby(runs["role"], sort=False).mean().rename_axis("mixture")


def proof(study: Study) -> pd.DataFrame:
    """A row a mixture: what `mde prove` found, and how far it is from the recommended one.

    Columns beside those of proof/summary.csv: seeds; difference, measured minus the recommended mixture's measured
    loss; error, the standard error of a difference; clear, whether it is beyond what seeds explain (two-sided t-test at
    5%). Runs of one seed share their data order and with it much of their noise, so seeds are blocks: the error is that
    of what is left of the losses when each mixture's and each seed's mean is taken away. A single seed says nothing of
    noise: error is NaN and clear false.
    """
    table = study.read_table("proof/summary.csv", "prove")
    runs = proof_runs(study).pivot(index="seed", columns="mixture", values="objective")
    losses = runs.to_numpy()
    left = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    seeds, mixtures = losses.shape
    freedom = (seeds - 1) * (mixtures - 1)
    error = float(np.sqrt(2 * (left**2).sum() / freedom / seeds)) if freedom else np.nan
    best = runs[RECOMMENDED].mean()
    table["seeds"] = seeds
    table["difference"] = table["measured"] - best
    table["error"] = error
    table["clear"] = table["difference"].abs() > error * stats.t.ppf(0.975, max(freedom, 1))
    return table


def proof_verdict(table: pd.DataFrame) -> str:
    """Whether the recommended mixture won, in one or two sentences; `table` is that of `proof`."""
    rivals = table.drop(index=RECOMMENDED)
    best = rivals.sort_values("measured").iloc[0]
    gap, clear = best["difference"], best["clear"]
    size = f"{abs(gap):.4f} nats per token"
    than = f"{size} below {best.name}, the next best" if gap > 0 else f"{best.name} is {size} below it"
    times = f"{abs(gap) / best['error']:.1f} standard errors"
    if np.isnan(best["error"]):
        outcome = "has the lowest measured loss" if gap > 0 else "did not win"
        return f"The recommended mixture {outcome}: {than}. One seed each: it may be noise."
    if gap > 0 and clear:
        return f"The recommended mixture won: {than} ({times}, more than seeds explain)."
    beaten = list(rivals.index[rivals["clear"] & (rivals["difference"] > 0)])
    also = f" It beats {' and '.join(beaten)} by more than seeds explain." if beaten else ""
    if gap <= 0 and clear:
        return f"The recommended mixture did NOT win: {than} ({times}, more than seeds explain).{also}"
    outcome = "has the lowest measured loss, but the lead is" if gap > 0 else "did not win, but the difference is"
    return f"The recommended mixture {outcome} within seed noise: {than} ({times}).{also}"


def calibration(table: pd.DataFrame, level: float) -> str:
    """In how many mixtures of the table of `proof` the measured loss lies in its interval, and how far off it is."""
    inside = int(table["measured"].between(table["low"], table["high"]).sum())
    off = table["measured"] - table["predicted"]
    return (
        f"The measured loss lies in the predicted {level:.0%} interval in {inside} of {len(table)} mixtures (the "
        "interval covers the regressor's uncertainty, not the noise of a training run). It is "
        f"{off.mean():+.4f} off on average, and ±{off.std(ddof=0):.4f} around that: what all mixtures share is the "
        "proof's seeds, which the observations have not."
    )


def bits_per_byte(study: Study, losses: pd.Series) -> pd.Series:
    """Losses in nats per token, indexed by evaluation domain, as bits per UTF-8 byte: total bits over total bytes."""
    text = study.read_table("evaluation.csv", "score").loc[losses.index]
    return losses * text["tokens"] / text["bytes"] / np.log(2)


def proof_is_current(study: Study) -> bool:
    """Whether the proof trained the mixture that is recommended now."""
    runs = study.mixtures("proof/mixtures.csv", "prove")
    names = list(study.domains.training)
    trained = runs.loc[runs["role"] == RECOMMENDED, names].to_numpy()
    shares = study.read_json("optimum.json", "optimize")["shares"]
    return bool(np.allclose(trained, [shares[name] for name in names], atol=1e-9))


def expert_losses(study: Study) -> pd.DataFrame:
    """Losses of the experts in nats per token: a row an expert, named by its domain, a column an evaluation domain."""
    runs = study.mixtures()
    experts = runs.loc[runs["role"] == "expert", list(study.domains.training)]
    names = [experts.columns[i] for i in experts.to_numpy().argmax(axis=1)] if len(experts) else []
    return study.losses().loc[experts.index].set_axis(names).rename_axis("expert")


def evaluator_shifts(study: Study) -> pd.DataFrame:
    """What the evaluators say of the observations and what training gave, each less its domain's mean.

    Columns evaluator, domain, run, evaluated and observed; nats per token.
    """
    runs = study.mixtures()
    observations = runs.index[runs["role"] == "observation"]
    observed = _shifts(study.losses().loc[observations])
    parts = [
        pd.concat({"evaluated": _shifts(table.loc[observations]), "observed": observed}, axis=1).assign(evaluator=name)
        for name, table in study.features().items()
    ]
    return pd.concat(parts).reset_index()


def _shifts(losses: pd.DataFrame) -> pd.Series:
    """Losses less the mean of their column, in one column indexed by run and domain."""
    shifts = (losses - losses.mean()).rename_axis("run").reset_index().melt("run", var_name="domain")
    return shifts.set_index(["run", "domain"])["value"]


def noise(study: Study) -> float | None:
    """Variance of the objective between runs of one mixture, from the seeds of the proof, where there are any."""
    if not has(study, "proof/summary.csv"):
        return None
    deviations = study.read_table("proof/summary.csv", "prove")["noise"]
    return None if deviations.isna().any() else float((deviations**2).mean())


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


def _group(regressor: str, features: str) -> str:
    if regressor in (MEAN, ALONE):
        return regressor
    parts = evaluated_parts(features)
    if "merged" in parts:
        return MERGED
    return EXPERTS if parts else WEIGHTS
