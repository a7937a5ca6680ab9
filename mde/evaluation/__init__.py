"""Scoring models, and the two evaluators: mixtures of experts and merged models."""

from mde.evaluation.merged import MergedLosses, merged_nll
from mde.evaluation.mixture import MixtureLosses, mixture_nll

__all__ = ["MergedLosses", "MixtureLosses", "merged_nll", "mixture_nll"]
