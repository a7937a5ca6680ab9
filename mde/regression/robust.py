"""Runs that do not fit: found from the errors of predictions that had not seen them."""

from typing import NamedTuple


class Outlier(NamedTuple):
    """A loss that is far from what the other proxy runs predict.

    Attributes:
      row: of the proxy run.
      target: column of the evaluation domain.
      deviations: how far above (or, negative, below) the prediction, in robust standard deviations of such errors.
    """

    row: int
    target: int
    deviations: float
