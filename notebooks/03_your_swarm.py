# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own swarm
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/mde/blob/main/notebooks/03_your_swarm.ipynb)
#
# Already have a swarm? Pass two CSV files, mixtures and losses, with one row per run. RegMix's and Olmix's files
# are read as they are. Here they are written by the notebook, from a law that is known, so that the answer can be
# checked: a minute on a Colab CPU.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mde") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "git+https://github.com/OWNER/mde"], check=True)

# %% [markdown]
# ## Two files
# In RegMix's layout: `train_DOMAIN` and `metric/DOMAIN_val_loss`. With files of your own, skip this cell.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
domains = ["web", "code", "books", "papers"]
runs = pd.Index(range(1, 49), name="index")
mixtures = rng.dirichlet(np.ones(4), len(runs))
pull = np.array([[-1.2, 0.0, -0.3, -0.1], [0.1, -2.0, 0.0, -0.2], [-0.4, 0.1, -1.5, -0.1], [-0.2, -0.3, -0.2, -1.8]])


def law(mixtures):
    """Losses of a data mixing law (arXiv 2403.16952), nats per token."""
    return 2.0 + np.exp(mixtures @ pull.T)


losses = law(mixtures) + rng.normal(0, 0.005, (len(runs), 4))
Path("swarm").mkdir(exist_ok=True)
pd.DataFrame(mixtures, runs, [f"train_{name}" for name in domains]).to_csv("swarm/mixture.csv")
pd.DataFrame(losses, runs, [f"metric/{name}_val_loss" for name in domains]).to_csv("swarm/loss.csv")

# %% [markdown]
# ## A study of them
# Rows are joined by run, never by order. Every regressor predicts runs it has not seen.

# %%
import mde

study = mde.Study("studies/swarm")
regressors = ["ridge", "gbm", "mixing-law", "gp", "auto"]
study.run("fit", mixtures="swarm/mixture.csv", losses="swarm/loss.csv", repeats=10, regressors=regressors)
study.regressors()

# %%
study.plot_predictions()

# %% [markdown]
# ## The mixture

# %%
study.run("optimize", refits=20)
study.recommendation()

# %%
study.plot_mixture()

# %% [markdown]
# How good is it in truth? The law says.

# %%
weights = study.read_json("optimum.json", made_by="optimize")["weights"]
recommended = np.array([weights[name] for name in domains])
grid = rng.dirichlet(np.ones(4), 100_000)
truth = {
    "recommended": law(recommended).mean(),
    "best of 100,000": law(grid).mean(axis=1).min(),
    "uniform": law(np.full(4, 0.25)).mean(),
    "best of the swarm": law(mixtures).mean(axis=1).min(),
}
pd.Series(truth, name="nats per token").to_frame()

# %% [markdown]
# ## Other questions
# A group of domains that must have its part, and the worst domain instead of the average.

# %%
study.search("worst-all", mde.Constraints(groups={"prose": ["books", "web"]}, group_bounds={"prose": [0.3, 0.5]}))

# %% [markdown]
# ## Without a study
# Estimators are scikit-learn's; `mde.optimize` takes any function that predicts losses.

# %%
law_of_mixing = mde.MixingLaw().fit(mixtures, losses)
mde.optimize(law_of_mixing.predict, domains, domains, "avg-all", mde.Constraints(max={"code": 0.3}))
