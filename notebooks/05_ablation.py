# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablation: which parts of a corpus to take
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/mde/blob/main/notebooks/05_ablation.ipynb)
#
# One small model a part of the corpus, and averages of their parameters in place of the models of every union
# (arXiv 2410.15661). This notebook trains the parts, a few unions to see how well the averages stand for them, and says
# what each part is worth. It needs no accelerator: some minutes on a Colab CPU.

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
import mde
from mde.reporting import ablation

study = mde.Study("studies/quickstart")
study.run("prepare", training_domains=["licenses", "docs", "wiki"], evaluation_domains=["news"], vocab_size=2048)

# %% [markdown]
# ## Parts, unions, averages
# Two parts of each of two domains; their models continue from a seed model, which is what lets them be averaged.

# %%
study.run(
    "ablate",
    preset=preset,
    seed_steps=[seed_steps],
    steps=steps // 4,
    batch_size=16,
    seq_len=128,
    learning_rate=3e-3,
    units={"docs": 2, "wiki": 2},
    unions=3,
    smallest=1,
    largest=2,
    tokens_per_domain=2048,
    merged_windows=1,
)

# %% [markdown]
# ## How well do averages stand for trained unions?

# %%
ablation.domain_table(study)

# %% [markdown]
# ## What is each part worth?

# %%
ablation.worth_table(study)

# %%
study.plot_worth()

# %% [markdown]
# ## What it cost
# A part that is added later costs its own model, and no other is trained again.

# %%
ablation.cost_table(study)
