"""A finished study of two training domains and one that is only evaluated on, written by hand."""

import json

import numpy as np
import pandas as pd

from mde.regression.cross_validation import in_rows
from mde.results import comparison
from mde.study import Study

TRAINING = ["code", "web"]
EVALUATION = ["code", "web", "news"]
INTERVAL = [2.0, 2.2]
# Losses of the four validation mixtures, two seeds each: (code, web, news), so the objective is their mean.
VALIDATION = {
    "recommended": [(1.0, 2.0, 3.0), (1.0, 2.0, 3.06)],
    "uniform": [(1.3, 2.3, 3.36), (1.3, 2.3, 3.3)],
    "proportional": [(1.6, 2.6, 3.6), (1.6, 2.6, 3.66)],
    "best observed": [(1.9, 2.9, 3.96), (1.9, 2.9, 3.9)],
}
METHODS = [
    # regressor, features, mse, mse_se, spearman
    ("mean", "lambda", 0.004, 0.0004, None),
    ("alone", "mde[0]", 0.003, 0.0001, 0.9),
    ("ridge", "lambda", 0.002, 0.0002, 0.5),
    ("ridge", "sqrt", 0.001, 0.0001, 0.6),
    ("ridge", "merged+log", 0.0008, 0.0001, 0.7),
    ("ridge", "mde[0]+log", 0.0005, 0.0001, 0.8),
    ("ridge", "mde[0]+mde[1]", 0.00025, 0.00001, 0.95),
]


def finish(root):
    """A study with all stages done."""
    study = Study(root)
    prepare(study)
    train(study)
    fit(study)
    optimize(study)
    validate(study, VALIDATION)
    return study


def prepare(study, code="code"):
    names = {"code": code, "web": "web", "news": "news"}
    study.write_json(
        "study.json",
        {
            "format": 3,
            "training_domains": [names[name] for name in TRAINING],
            "evaluation_domains": [names[name] for name in EVALUATION],
            "vocab_size": 2048,
            "tokenizer": "abc",
            "stores": {f"{code}/train": {"tokens": 3000}, "web/train": {"tokens": 1000}},
            "sources": {
                code: {
                    "description": f"the text of {code}",
                    "source": "installed_text/code/1.0",
                    "metadata": {"versions": {"gensim": "4.4.0"}},
                },
                "web": {"description": "pages", "source": "FunctionDataSource"},
            },
        },
    )
    record(study, "prepare", 40.0, vocab_size=2048)


def train(study, code="code"):
    weights = {"expert-code": (1, 0), "expert-web": (0, 1)} | {f"proxy-{i}": (i / 20, 1 - i / 20) for i in range(20)}
    table = pd.DataFrame.from_dict(weights, orient="index", columns=[code, "web"]).rename_axis("run")
    table.insert(0, "role", [run.split("-")[0] for run in table.index])
    table.insert(1, "seed", 0)
    study.write_table("mixtures.csv", table)
    losses = pd.DataFrame({code: 2 - table[code], "web": 2 - table["web"], "news": 3.0}, table.index)
    study.write_table("losses.csv", losses)
    evaluated = losses[losses.index.str.startswith("proxy")]
    features = [evaluated.add_prefix("mde[0]/"), (evaluated * 2 + 1).add_prefix("merged/")]
    study.write_table("features.csv", pd.concat(features, axis=1).rename_axis("mixture"))
    text = pd.DataFrame({"tokens": [100, 200, 300], "bytes": [200, 800, 900]}, ["news", "web", code])
    study.write_table("evaluation.csv", text.rename_axis("domain"))
    for run, steps in [("seed", 400), ("expert-code", 10), ("expert-web", 10)]:
        lines = [json.dumps({"step": i + 1, "loss": 5 - i / 1000}) for i in range(steps)]
        path = study.root / "runs" / run / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")
    record(study, "train", 20.5, steps=10, mixtures=None)


def fit(study, methods=METHODS):
    table = pd.DataFrame(methods, columns=["regressor", "features", "mse", "mse_se", "spearman"]).assign(
        n=100, failed=""
    )
    study.write_table("fit/objective.csv", table.rename_axis("method"))
    study.write_table("fit/rounds.csv", in_rows(pd.DataFrame({(r, f): spread(m, e) for r, f, m, e, _ in methods})))
    domains = study.domains.evaluation
    alone = table[table["regressor"] == "alone"].drop(columns="n")
    learnt = table[table["regressor"] == "ridge"]
    best = learnt.loc[learnt["mse"].idxmin()]
    chosen = best.to_frame().T.drop(columns="n").assign(mse_se=1e-5, regret=0.01)
    scored = [alone.assign(domain=d) for d in domains[::-1]]
    scored += [chosen.assign(domain=d, r2=0.9 - 0.3 * i) for i, d in enumerate(domains)]
    study.write_table("fit/domains.csv", pd.concat(scored).rename_axis("method"))
    runs = [f"proxy-{i}" for i in range(20)]
    predicted = [
        pd.DataFrame(
            {"regressor": r, "features": f, "observed": range(20), "predicted": range(20), "splits": 21, "spread": 0.5},
            pd.Index(runs, name="run"),
        )
        for r, f in zip(table["regressor"], table["features"], strict=True)
    ]
    study.write_table("fit/predictions.csv", pd.concat(predicted))
    learning = [("ridge", name, mse / n, mse / 10, n) for n in (8, 16) for _, name, mse, *_ in methods[2:4]]
    columns = ["regressor", "features", "mse", "mse_se", "train"]
    study.write_table("fit/learning.csv", pd.DataFrame(learning, columns=columns).rename_axis("point"))
    choice = {key: best[key] for key in ("regressor", "features", "mse", "spearman")}
    study.write_json(
        "fit/choice.json",
        {
            "objective": "avg-all",
            "proxy_runs": 20,
            "mixtures": 20,
            "train_mixtures": 16,
            "noise": {},
            "unresponsive": [],
            **choice,
        },
    )
    record(study, "fit", 7.0, train_mixtures=16, repeats=100)


def spread(mean, error):
    """Errors of 100 rounds with this geometric mean, whose logarithm has the (corrected) standard error error / mean.

    The order is another one for every mean.
    """
    values = np.random.default_rng(int(mean * 1e6)).permutation(np.linspace(-1, 1, 100))
    return mean * np.exp(error / mean / np.sqrt(1 / 100 + 4 / 16) * values / values.std(ddof=1))


def optimize(study, code="code"):
    mixtures = {"recommended": 0.6, "uniform": 0.5, "proportional": 0.75, "best observed": 0.9}
    predictions = {
        name: {
            "mixture": {"web": 1 - share, code: share},
            "objective": 2.1 + i / 10,
            "objective_interval": [INTERVAL[0] + i / 10, INTERVAL[1] + i / 10],
            "losses": {code: 1.0, "web": 2.0, "news": 3.0},
        }
        for i, (name, share) in enumerate(mixtures.items())
    }
    study.write_json(
        "optimum.json",
        {
            "objective": "avg-all",
            "regressor": "ridge",
            "features": "mde[0]+mde[1]",
            "weights": {"web": 0.4, code: 0.6},
            "weight_intervals": {"web": [0.3, 0.45], code: [0.55, 0.7]},
            "interval_level": 0.9,
            "binding": ["web is at its min weight 0.4"],
            "epochs": {"web": 4.0, code: 2.0},
            "predictions": predictions,
        },
    )
    losses = np.linspace(1, 2, 12).reshape(1, 4, 3)
    study.write_arrays(
        "surface.npz",
        {
            "triples": np.zeros((0, 3), int),  # three domains would have a slice
            "points": np.eye(3),
            "losses": losses[:0],
            "draws": np.full((4, 2), 0.5),
            "draw_losses": losses[0] * [1, -1, 2],
            "moves": np.array([[0.001, -0.002, 0.0], [-0.003, 0.002, 0.0]]),
        },
    )
    record(study, "optimize", 2.0, refits=200)


def validate(study, losses, code="code", documents=3, split="test", proxy_setting=False):
    """The validation runs as `mde validate` leaves them, from (code, web, news) of each seed of each mixture.

    Every domain has documents of ten tokens, which differ from each other by the same for all runs, so that the text
    adds nothing to the error of a difference.
    """
    optimum = study.read_json("optimum.json", "optimize")
    rows = [(name, seed, *loss) for name, seeds in losses.items() for seed, loss in enumerate(seeds, start=1)]
    table = pd.DataFrame(rows, columns=["role", "seed", code, "web", "news"])
    table.index = pd.Index(
        [f"validation-{role}-{seed}" for role, seed in zip(table["role"], table["seed"], strict=True)], name="run"
    )
    measured = table[[code, "web", "news"]]
    part = study.part("validation")
    part.write_part()
    part.write_table("losses.csv", measured[["news", "web", code]].iloc[::-1])
    for name in (code, "web"):
        weights = {label: mixture["mixture"][name] for label, mixture in optimum["predictions"].items()}
        table[name] = table["role"].map(weights)
    table = table[["role", "seed", code, "web"]].assign(steps=10)
    part.write_table("mixtures.csv", table)
    each = np.linspace(-0.1, 0.1, documents) * (documents > 1)
    nats = 10 * (measured[list(study.domains.evaluation)].to_numpy()[:, :, None] + each).reshape(len(table), -1)
    sums = nats, np.full(3 * documents, 10), np.repeat(np.arange(3), documents)
    goal = comparison.Goal(study, list(losses))
    found = comparison.summary(table, sums, goal, "recommended")
    predicted = {name: [p["objective"], *p["objective_interval"]] for name, p in optimum["predictions"].items()}
    predictions = pd.DataFrame.from_dict(predicted, orient="index", columns=["predicted", "low", "high"])
    part.write_table("summary.csv", found.join(predictions))
    part.write_table("objective.csv", pd.DataFrame({"objective": goal.of(measured, table)}, table.index))
    part.write_table("evaluation.csv", study.read_table("evaluation.csv", "score"))
    part.write_json("scoring.json", {"split": split})
    cost = {"runs": 28, "tokens": 28_000, "flops": 1e9, "controlled": 0.2}
    cost = {"run": {"tokens": 5000, "flops": 1e8, "controlled": 1.0}, "runs": 8, "tokens": 40_000, "proxies": cost}
    about = {"objective": goal.name, "reference": goal.reference, "against": "recommended", "cost": cost}
    part.write_json("final.json", {**about, "proxy_setting": proxy_setting, "documents": 3 * documents})
    record(study, "validate", 10.0, seeds=len(losses["recommended"]))


def record(study, stage, seconds, **arguments):
    study.write_json(f"stages/{stage}.json", {"digest": "0", "arguments": arguments, "seconds": seconds})
