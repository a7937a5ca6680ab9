"""The search for a recommendation: everywhere, and again among the mixtures that the data support if need be."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mde.errors import UserError
from mde.optimization import search
from mde.optimization.constraints import Bounds
from mde.optimization.losses import Loss
from mde.optimization.search import Optimum
from mde.optimization.trust import Area
from mde.results.support import NONE, Data, distance_limit

RESTARTS = 3  # independent local searches
NO_SEARCH = "none"


@dataclass(frozen=True)
class Search:
    """How a mixture is searched for.

    Attributes:
      candidates: mixtures that the search starts from.
      refits: random halves of the proxy runs; the spread of their optima says how sure the mixture is. There are 200
        by default; of an expensive regressor, such as auto, at most 30.
      method: of the search: auto, exact, gradient, simulation or refinement.
      max_distance: largest total variation distance from the nearest proxy run, from 0 to 1, or none to search
        everywhere. By default there is no limit where the optimum lies among the proxy runs; where it does not, the
        limit is the largest distance between a proxy run and its nearest neighbour.
      allow_untrained: whether domains that no proxy run trained on may get weight.
      seed: of the search and the halves.
    """

    candidates: int = 2048
    refits: int | None = None
    method: str = "auto"
    max_distance: float | str | None = None
    allow_untrained: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What is recommended, and where it was looked for.

    Attributes:
      best: the recommendation.
      region: the mixtures among which it is the best.
      radius: largest distance from a proxy run in there; None for no limit.
      unrestricted: the optimum without that limit, where it lies outside of it.
      note: why there is no limit although the optimum extrapolates, or that nothing was searched; else empty.
    """

    best: Optimum
    region: Area
    radius: float | None = None
    unrestricted: Optimum | None = None
    note: str = ""


def search_for(
    loss: Loss,
    bounds: Bounds,
    data: Data,
    how: Search,
    start: np.ndarray,
) -> Found:
    """The recommendation: the optimum of a loss under constraints, near the proxy runs.

    Args:
      loss: what is minimised.
      bounds: the constraints.
      data: the proxy runs.
      how: it is searched for.
      start: further mixtures that it starts from, [C, K].

    Raises:
      UserError: no mixture obeys the constraints within `max_distance`.
    """

    max_distance = distance_limit(how.max_distance)

    def best_in(region: Area) -> Optimum:
        return search.minimize(
            loss, region, how.seed, how.method, n_candidates=how.candidates, start=start, restarts=RESTARTS
        )

    everywhere = best_in(bounds.region)
    if max_distance == NONE or (max_distance is None and not data.about(everywhere.mixture)["extrapolates"]):
        return Found(everywhere, bounds.region)
    radius = data.spacing if max_distance is None else float(max_distance)
    try:
        trusted = data.trusted(bounds, radius)
    except UserError as error:
        if max_distance is not None:
            raise
        return Found(
            everywhere, bounds.region, note=f"no mixture that the data support obeys the constraints ({error})"
        )
    if trusted.contains(everywhere.mixture[None], 1e-6)[0]:
        return Found(everywhere, trusted, radius)
    return Found(best_in(trusted), trusted, radius, everywhere)


def nothing(bounds: Bounds, known: pd.DataFrame) -> Found:
    """What to recommend where no mixture is predicted to be better than another: proportional, or uniform where sizes
    are not known; or the mixture nearest to that which obeys the constraints.
    """
    name = "proportional" if "proportional" in known.index else "uniform"
    mixture = bounds.region.project(known.loc[[name]].to_numpy())[0]
    best = Optimum(mixture, np.nan, NO_SEARCH, 0)
    return Found(best, bounds.region, note=f"nothing was searched: this is the {name} mixture, or the nearest allowed")
