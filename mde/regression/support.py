"""How far a mixture is from the proxy runs: where predictions are supported by data and where they extrapolate."""

import numpy as np
from scipy.spatial.distance import cdist

from mde.regression.groups import mixture_groups


class Support:
    """Distances to the nearest proxy run, in total variation: the share of the tokens that would have to move.

    Args:
      mixtures: of the proxy runs, [R, K].

    Attributes:
      mixtures: the distinct ones, [G, K].
      spacing: the largest distance from a proxy run to its nearest neighbour; farther away than this is extrapolation.
    """

    def __init__(self, mixtures: np.ndarray):
        _, first = np.unique(mixture_groups(mixtures), return_index=True)
        self.mixtures = np.asarray(mixtures, dtype=np.float64)[np.sort(first)]
        between = cdist(self.mixtures, self.mixtures, "cityblock") / 2
        np.fill_diagonal(between, np.inf)
        self.spacing = float(between.min(axis=1).max()) if len(self.mixtures) > 1 else 0.0

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Total variation distance from each mixture [C, K] to the nearest proxy run, [C], between 0 and 1."""
        return cdist(points, self.mixtures, "cityblock").min(axis=1) / 2
