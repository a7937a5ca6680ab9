"""What a good mixture is: a weighting of the evaluation domains' losses."""

from collections.abc import Mapping, Sequence

import numpy as np

from mde.errors import UserError, unknown

# The names of the MDE paper (arXiv 2502.15950): "sp" are the training domains (SlimPajama there), "et" the end tasks.
NAMED = ("avg-sp", "avg-et", "avg-all")


def weights(
    objective: str | Mapping[str, float], evaluation_domains: Sequence[str], training_domains: Sequence[str]
) -> np.ndarray:
    """The weight of each evaluation domain, [J], summing to one; `losses[C, J] @ weights` is the objective.

    Args:
      objective: `avg-sp`, the mean over the training domains; `avg-et`, the mean over the evaluation domains that are
        not trained on; `avg-all`, the mean over all evaluation domains (`avg-et+sp` in the paper); or relative weights
        by evaluation domain, where a domain left out weighs nothing.
      evaluation_domains: names, in the order of the columns of the losses.
      training_domains: names, in any order.

    Raises:
      UserError: an unknown objective or domain; weights that are negative, not finite or all zero; `avg-sp` where a
        training domain is not evaluated; `avg-et` where nothing else is.
    """
    if len(set(evaluation_domains)) != len(evaluation_domains):
        raise UserError(f"evaluation domains {', '.join(evaluation_domains)}: a name occurs twice")
    shares = _named(objective, evaluation_domains, training_domains) if isinstance(objective, str) else dict(objective)
    for name, share in shares.items():
        if name not in evaluation_domains:
            raise unknown("evaluation domain in the objective", name, evaluation_domains)
        if not (np.isfinite(share) and share >= 0):
            raise UserError(f"objective: domain {name!r} has weight {share}, expected a finite number, zero or more")
    vector = np.array([shares.get(name, 0.0) for name in evaluation_domains], dtype=np.float64)
    if not vector.sum() > 0:
        raise UserError("objective: every weight is zero, expected at least one evaluation domain to count")
    return vector / vector.sum()


def _named(objective: str, evaluation: Sequence[str], training: Sequence[str]) -> dict[str, float]:
    if objective == "avg-all":
        return dict.fromkeys(evaluation, 1.0)
    if objective == "avg-sp":
        missing = [name for name in training if name not in evaluation]
        if missing:
            raise UserError(f"objective avg-sp: training domain {missing[0]!r} is not among the evaluation domains")
        return dict.fromkeys(training, 1.0)
    if objective == "avg-et":
        others = [name for name in evaluation if name not in training]
        if not others:
            raise UserError("objective avg-et: every evaluation domain is a training domain, expected others as well")
        return dict.fromkeys(others, 1.0)
    raise unknown("objective", objective, NAMED)
