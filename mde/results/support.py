"""How far mixtures are from the proxy runs, and which of them the data support."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from mde.errors import UserError
from mde.optimization.constraints import Bounds
from mde.optimization.trust import TrustRegion
from mde.regression import support

NONE = "none"  # the value of max_distance that searches everywhere
UNTRAINED = 1e-9  # a weight below this is none
ABOVE, RELATIVELY = 0.005, 0.1  # a weight extrapolates that is further above every weight trained, the larger of both
ROUNDING = 1e-6


@dataclass(frozen=True)
class Data:
    """The proxy runs, as far as they say which mixtures they support.

    Attributes:
      runs: their mixtures, [R, K], indexed by run.
    """

    runs: pd.DataFrame

    @property
    def largest(self) -> pd.Series:
        """The largest weight that a proxy run gave each domain, [K]."""
        return self.runs.max()

    @property
    def spacing(self) -> float:
        """The largest total variation distance from a proxy run to its nearest neighbour."""
        return support.Support(self.runs.to_numpy()).spacing

    def untrained(self) -> list[str]:
        """Domains that no proxy run trained on."""
        return [str(name) for name, weight in self.largest.items() if weight <= UNTRAINED]

    def caps(self) -> np.ndarray:
        """Weights above these extrapolate, [K]: the largest that were trained and a margin."""
        largest = self.largest.to_numpy()
        return largest + np.maximum(ABOVE, RELATIVELY * largest)

    def about(self, mixture: np.ndarray) -> dict[str, Any]:
        """What `optimum.json` says of a mixture [K]: its nearest proxy run, the distance, whether it extrapolates."""
        distances = cdist(mixture[None], self.runs.to_numpy(), "cityblock")[0] / 2
        nearest = int(distances.argmin())
        above = [str(name) for name in self.runs.columns[mixture > self.caps() + ROUNDING]]
        return {
            "nearest_run": str(self.runs.index[nearest]),
            "distance": float(distances[nearest]),
            "above_trained": above,
            "extrapolates": bool(distances[nearest] > self.spacing + ROUNDING or above),
        }

    def trusted(self, bounds: Bounds, radius: float) -> TrustRegion:
        """The mixtures that obey the constraints, are within a radius of a proxy run and give no domain much more than
        one did. What a constraint asks for is not held back, nor a domain that no run trained on and was asked for.

        Raises:
          UserError: there are none.
        """
        region = bounds.region
        caps = np.where(self.largest <= UNTRAINED, 1.0, np.maximum(self.caps(), region.low))
        capped = replace(region, high=np.minimum(region.high, caps))
        return TrustRegion(capped, support.Support(self.runs.to_numpy()).mixtures, radius)


def distance_limit(max_distance: float | str | None) -> float | str | None:
    """A distance as it was given, checked: a number, "none" for no limit, or None for the default.

    Raises:
      UserError: it is none of these.
    """
    if max_distance is None or max_distance == NONE:
        return max_distance
    try:
        number = float(max_distance)  # a command line has text
    except ValueError:
        number = np.nan
    if not 0 <= number <= 1:
        raise UserError(f"max_distance={max_distance!r}, expected a total variation distance from 0 to 1, or {NONE!r}")
    return number
