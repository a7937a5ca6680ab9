"""From small budgets to large ones: the best mixture at a budget, and where it moves. Sees numbers only."""

from mde.scaling.autoscale import BudgetPath, fit_path
from mde.scaling.ddo import PowerLaws, cross_effects, fit_jointly, fit_power_laws
from mde.scaling.effects import Effects, measured_effects
from mde.scaling.posterior import Draws, draw_laws, not_known
from mde.scaling.prediction import Point, solve

__all__ = [
    "BudgetPath",
    "Draws",
    "Effects",
    "Point",
    "PowerLaws",
    "cross_effects",
    "draw_laws",
    "fit_jointly",
    "fit_path",
    "fit_power_laws",
    "measured_effects",
    "not_known",
    "solve",
]
