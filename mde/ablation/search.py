"""Which units to take: subsets scored by evaluators, the worth of every unit, and what to add next. Numbers only.

Shapes: C subsets, n units, J evaluation domains.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mde.ablation import subsets
from mde.ablation.subsets import Losses, Remembered
from mde.optimization.objectives import Objective

OBJECTIVE = "objective"


class Search(NamedTuple):
    """What one evaluator says of subsets of units; losses and worths in nats per token.

    Attributes:
      candidates: one row per scored subset, best first: one column per unit (whether it is in), and `objective`.
      values: indexed by unit; a Shapley value and its error for the objective and for each evaluation domain: columns
        domain, value, error.
      additions: what to add next, in order: indexed by unit; columns step and objective (once it is added).
    """

    candidates: pd.DataFrame
    values: pd.DataFrame
    additions: pd.DataFrame


def search(
    losses: Losses,
    units: Sequence[str],
    domains: Sequence[str],
    objective: Objective,
    limit: int,
    given: Sequence[str] = (),
    seed: int = 0,
) -> Search:
    """Scores all subsets of the units in one call where they are no more than `limit`, and random orders otherwise.

    Args:
      losses: of subsets [C, n], as [C, J].
      units: their names.
      domains: names of the evaluation domains.
      objective: what is to be made small.
      limit: subsets that may be scored; a little more where orders are drawn.
      given: units that are there already, to add to.
      seed: of the orders.
    """
    n = len(units)

    def with_objective(rows: np.ndarray) -> np.ndarray:
        found = losses(rows)
        return np.column_stack([found, found @ objective])

    remembered = Remembered(with_objective)
    if 2**n <= limit:
        worth = subsets.shapley(remembered(subsets.every(n)))
    else:
        worth = subsets.sampled_shapley(remembered, n, max(2, limit // (2 * n)), seed)
    start = np.array([unit in given for unit in units])
    order, reached = subsets.additions(lambda rows: remembered(rows)[:, -1], start)
    rows, scored = remembered.known(n)
    candidates = pd.DataFrame(rows.astype(int), columns=list(units)).assign(objective=scored[:, -1])
    names = pd.Index(np.repeat(list(units), len(domains) + 1), name="unit")
    columns = {"domain": [*domains, OBJECTIVE] * n, "value": worth.values.ravel(), "error": worth.errors.ravel()}
    added = pd.Index([units[i] for i in order], name="unit")
    return Search(
        candidates.sort_values(OBJECTIVE, ignore_index=True).rename_axis("rank"),
        pd.DataFrame(columns, names),
        pd.DataFrame({"step": np.arange(1, len(order) + 1), OBJECTIVE: reached}, added),
    )


def together(found: Mapping[str, Search], table: str) -> pd.DataFrame:
    """One of the tables of several evaluators, with a column `evaluator`."""
    return pd.concat([getattr(each, table).assign(evaluator=name) for name, each in found.items()])
