"""From small budgets to large ones: the best mixture at a budget, and where it moves. Sees numbers only."""

from mde.scaling.autoscale import BudgetPath, fit_path
from mde.scaling.ddo import PowerLaws, cross_effects, fit_jointly, fit_power_laws
from mde.scaling.effects import Effects, measured_effects
from mde.scaling.prediction import Point, resampled_optima, solve

__all__ = [
    "BudgetPath",
    "Effects",
    "Point",
    "PowerLaws",
    "cross_effects",
    "fit_jointly",
    "fit_path",
    "fit_power_laws",
    "measured_effects",
    "resampled_optima",
    "solve",
]
