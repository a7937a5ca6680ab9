# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore a finished study
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/mde/blob/main/notebooks/02_explore.ipynb)
#
# Regressors, objectives and constraints: what a study recommends depends on what is asked of it. The study is that of
# the first notebook; where it is not there yet, it is made now (about five minutes on a Colab CPU).

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mde") is None:
    package = "mde[demo] @ git+https://github.com/OWNER/mde"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %%
preset, seed_steps, steps = "demo", 300, 80

# %%
import numpy as np
import pandas as pd

import mde

study = mde.Study("studies/quickstart")
study.run("prepare", training_domains=["licenses", "docs", "wiki"], evaluation_domains=["news"], vocab_size=2048)
study.run(
    "train",
    preset=preset,
    seed_steps=seed_steps,
    steps=steps,
    batch_size=16,
    seq_len=128,
    learning_rate=3e-3,
    proxy_runs=12,
)
study.run("score", tokens_per_domain=4096)
study.run("evaluate", candidates=256, merged_windows=0)
study.run("fit", repeats=20, regressors=["ridge", "auto"])
study

# %% [markdown]
# ## How far to trust the regressors
# Each point is a proxy run that its regressor had not seen. The legend shows and hides methods.

# %%
study.plot_predictions()

# %%
study.plot_errors()

# %% [markdown]
# ## Any mixture, at once
# The chosen regressor is a function from mixtures to losses.

# %%
domains = study.domains
mixtures = pd.DataFrame(np.eye(3) * 0.8 + 0.2 / 3, [f"mostly {name}" for name in domains.training], domains.training)
losses = study.predictor()(mixtures.to_numpy())
pd.DataFrame(losses, mixtures.index, domains.evaluation).round(3)

# %% [markdown]
# The experts answer without any regressor. `mixture_nll` is the loss of their mixture, token by token, at any exponent
# τ of the prefix posterior; its optimum is known to within a gap.

# %%
text = study.scored_text()
alone = mde.mixture_nll(text.log_probs, text.segment_ids, mixtures.to_numpy())  # [C, J] nats per token
pd.DataFrame(alone, mixtures.index, domains.evaluation).round(3)

# %%
equal = np.full((1, len(domains.evaluation)), 1 / len(domains.evaluation))
best = mde.optimum(text.log_probs, text.segment_ids, equal)
pd.DataFrame(best.weights, ["best mixture of experts"], domains.training).assign(gap=best.gap).round(3)

# %% [markdown]
# ## Objectives
# The average over all evaluation domains, over those never trained on, the worst of all, or weights of your own.

# %%
objectives = ["avg-all", "avg-et", "worst-all", {"news": 3, "wiki": 1}]
found = {str(objective): study.search(objective).mixture for objective in objectives}
pd.DataFrame(found).T.style.format("{:.1%}")

# %% [markdown]
# ## Constraints
# Bounds, and a budget at which no domain may be read more than twice. What binds is said.

# %%
budget = 2 * sum(study.about["stores"][f"{name}/train"]["tokens"] for name in domains.training) / 3
study.search("avg-all", mde.Constraints(min={"docs": 0.1}, max={"wiki": 0.5}, budget=budget, max_epochs=2))

# %%
study.search("avg-all", mde.Constraints(prior="proportional", max_kl=0.05)).plot()
