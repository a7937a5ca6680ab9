# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: a study from scratch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/mde/blob/main/notebooks/01_quickstart.ipynb)
#
# Given three domains of text, which share of each should a language model be pre-trained on? This notebook trains a
# seed model, one small expert per domain and twelve mixtures, learns how the mixture moves the losses, and recommends
# one. It needs no accelerator: about five minutes on a Colab CPU.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("mde") is None:
    package = "mde[demo] @ git+https://github.com/OWNER/mde"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# ## What to train
# `preset="tiny"` finishes in a minute and shows the path; its models are too small to say anything about the text.

# %%
preset, seed_steps, steps = "demo", 300, 80

# %% [markdown]
# ## Text
# Here it comes out of installed packages. For text of your own give a name and a place instead:
# `training_domains={"web": "web/*.jsonl.zst", "code": "src/"}`, where a place is a file, a folder or a pattern.

# %%
import mde

study = mde.Study("studies/quickstart")
study.run("prepare", training_domains=["licenses", "docs", "wiki"], evaluation_domains=["news"], vocab_size=2048)
study.read_table("corpus.csv", made_by="prepare")

# %% [markdown]
# ## Train and score
# Experts and proxy runs all continue from the seed model. A stage that is interrupted goes on where it was; one that
# was done with the same arguments is skipped.

# %%
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
study.plot_training()

# %%
study.plot_experts()

# %% [markdown]
# ## Evaluate, fit, optimize
# `evaluate` computes the losses of mixtures of experts, for every mixture without training it. `fit` holds proxy runs
# out and says which regressor predicts them best. `optimize` searches the simplex with it.

# %%
study.run("evaluate", candidates=256, merged_windows=0)
study.run("fit", repeats=20, regressors=["ridge", "auto"])
study.regressors()

# %%
study.run("optimize", candidates=512, refits=50)
study.recommendation()

# %%
study.plot_mixture()

# %% [markdown]
# ## Is it true?
# `study.run("validate")` trains the recommended mixture and its baselines from scratch; `study.run("report")` writes
# all of this as one page, `studies/quickstart/report.html`.

# %%
study.run("report")
study
