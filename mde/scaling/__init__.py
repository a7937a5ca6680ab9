"""From small budgets to large ones: the best mixture at a budget, and where it moves. Sees numbers only."""

from mde.scaling.autoscale import BudgetPath, fit_path
from mde.scaling.ddo import PowerLaws, fit_jointly, fit_power_laws

__all__ = ["BudgetPath", "PowerLaws", "fit_jointly", "fit_path", "fit_power_laws"]
