"""Accuracies on end tasks, as people read them: what was measured, and how well it is predicted."""

import pandas as pd

from mde.reporting import findings
from mde.reporting.table import Table
from mde.study import Study


def measured(study: Study) -> Table:
    """How often models choose right, by task: the experts, the proxy runs, and what `mde validate` trained."""
    found = study.read_table("accuracies.csv", "score")
    shown = found[[name for name in found if str(name).startswith("acc/")]]
    shown = shown.rename(columns=lambda name: str(name).removeprefix("acc/"))
    roles = study.mixtures()["role"]
    experts, proxy_runs = shown.loc[roles[roles == "expert"].index], shown.loc[roles[roles == "proxy"].index]
    rows = {
        "best expert": experts.max(),
        "proxy runs, min": proxy_runs.min(),
        "mean": proxy_runs.mean(),
        "max": proxy_runs.max(),
    }
    if findings.has(study, "validation/accuracies.csv"):
        validation = study.read_table("validation/accuracies.csv", "validate")[[f"acc/{name}" for name in shown]]
        validation.columns = shown.columns
        of = study.mixtures("validation/mixtures.csv", "validate")["role"]
        rows |= {
            str(role): mean for role, mean in validation.groupby(of.loc[validation.index], sort=False).mean().iterrows()
        }
    frame = pd.DataFrame(rows).map("{:.1%}".format).rename_axis("task")
    return Table("Accuracy: how often a model's likeliest choice is the right one", frame)


def predicted(study: Study) -> Table:
    """How well the mean accuracy over the tasks is predicted out of fold: the best of each regressor on either side."""
    found = study.read_table("fit/accuracy.csv", "fit")
    found = found[found["metric"] == "acc"]
    answers = found["features"].str.contains("[", regex=False)
    kinds = {"λ alone": found[~answers], "the experts' answers": found[answers]}
    best = {
        (str(regressor), kind): rows.iloc[int(rows["mse"].argmin())]
        for kind, part in kinds.items()
        for regressor, rows in part.groupby("regressor", sort=False)
    }
    frame = pd.DataFrame(
        {
            "from": [kind for _, kind in best],
            "features": [row["features"].replace("lambda", "λ") for row in best.values()],
            "MSE ×10⁻⁵": [f"{row['mse'] * 1e5:.3g}" for row in best.values()],
            "Spearman": ["–" if pd.isna(row["spearman"]) else f"{row['spearman']:.2f}" for row in best.values()],
        },
        pd.Index([regressor for regressor, _ in best], name="regressor"),
    )
    note = "The best feature set of each regressor. Accuracies are fractions: 1 ×10⁻⁵ is an error of .3 percent points."
    return Table("Mean accuracy over the tasks, predicted out of fold", frame, (note,))
