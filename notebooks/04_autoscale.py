# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AutoScale: the mixture at a larger budget
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/mde/blob/main/notebooks/04_autoscale.ipynb)
#
# The best mixture moves with the budget. AutoScale (arXiv 2407.20177) finds it at small budgets, from runs with more
# and less of each domain, and carries it to a large one. Here the runs are two CSV files that the notebook writes from
# a law that is known, so that the answer can be checked: seconds on a Colab CPU.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mde") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "git+https://github.com/OWNER/mde"], check=True)


# %% [markdown]
# ## Runs at three budgets
# At each budget a base run, and for each domain one run with a third of its tokens and one with three times as many.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

domains, budgets = ["web", "code", "books"], [1e6, 2e6, 4e6]
weights = np.array([[0.5, 0.2], [0.1, 0.8], [0.4, 0.2]])
exponents = np.array([0.4, 0.3, 0.5])


def law(tokens):
    """Losses of quantities [..., 3], nats per token: one power of each domain's own tokens."""
    return 1.5 + (tokens / 1e6) ** -exponents @ weights


changes = np.concatenate([np.ones((1, 3)), *(1 + np.eye(3) * (times - 1) for times in (1 / 3, 3))])
kinds = ["base", *(f"{change}-{name}" for change in ("less", "more") for name in domains)]
runs = pd.concat(
    pd.DataFrame(budget / 3 * changes, [f"{kind}-{budget:g}-{seed}" for kind in kinds], domains).assign(
        budget=budget, seed=seed
    )
    for seed in (0, 1)
    for budget in budgets
).rename_axis("run")
noise = np.random.default_rng(0).normal(0, 1e-4, (len(runs), 2))
losses = pd.DataFrame(law(runs[domains].to_numpy()) + noise, runs.index, ["news", "code"])
Path("scaling").mkdir(exist_ok=True)
runs.to_csv("scaling/quantities.csv")
losses.to_csv("scaling/losses.csv")

# %% [markdown]
# ## The optimum at each budget, and beyond
# A study with models of its own trains these runs itself: `study.run("scale", budgets=[...], target=...)`.

# %%
import mde
from mde.reporting import scaling

study = mde.Study("studies/scaling")
files = {name: f"scaling/{name}.csv" for name in ("quantities", "losses")}
study.run("scale", **files, target=16e6, floor=0.05, resamples=50)
scaling.mixtures(study)

# %%
study.plot_budget()

# %%
scaling.laws(study)

# %% [markdown]
# ## Against the truth
# Of 100,000 mixtures at the target, the best by the law itself.

# %%
tokens = study.read_json("scale.json", made_by="scale")["ddo"]["tokens"]
predicted = np.array([tokens[name] for name in domains])
grid = np.random.default_rng(1).dirichlet(np.ones(3), 100_000) * 16e6
truth = {
    "predicted": law(predicted).mean(),
    "best of 100,000": law(grid).mean(axis=1).min(),
    "uniform": law(np.full(3, 16e6 / 3)).mean(),
}
pd.Series(truth, name="nats per token").to_frame()
