"""Scoring models, the two evaluators (mixtures of experts and merged models), and the best mixture of experts."""

from mde.evaluation.merged import MergedLosses, merged_nll
from mde.evaluation.mixture import MixtureLosses, mixture_nll
from mde.evaluation.optimum import Optima, bootstrap, optimum

__all__ = [
    "MergedLosses",
    "MixtureLosses",
    "Optima",
    "bootstrap",
    "merged_nll",
    "mixture_nll",
    "optimum",
]
