"""Modular ablations: base units of a corpus, the models trained on them, and what their averages stand for."""

HOME = "ablation"  # the directory of an ablation in its study
