"""What a good mixture is: an average of the evaluation domains' losses, or the worst of them, sure or unsure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mde.errors import UserError, unknown
from mde.patterns import matches, matching

# The names of the MDE paper (arXiv 2502.15950): "sp" are the training domains (SlimPajama there), "et" the end tasks.
NAMED = ("avg-sp", "avg-et", "avg-all")
FAMILIES = "avg-families"
PAPER = {"avg-et+sp": "avg-all"}  # the paper's own name
WORST = {"worst-sp": "avg-sp", "worst-et": "avg-et", "worst-all": "avg-all"}  # the max loss of the same domains


@dataclass(frozen=True)
class Objective:
    """One number for the losses of a mixture, in their unit; less is better.

    Attributes:
      weights: [J], of the evaluation domains, summing to one.
      worst: the max loss of the domains with a weight, not their weighted mean.
      reference: [J], losses that those of a worst case are measured from, such as a baseline's; none by default.
      beta: how many standard deviations of the prediction are added: what is unsure counts as worse.
    """

    weights: np.ndarray
    worst: bool = False
    reference: np.ndarray | None = None
    beta: float = 0.0

    __array_ufunc__ = None  # NumPy leaves `losses @ objective` to us

    def __call__(self, losses: np.ndarray) -> np.ndarray:
        """The objective [...] of losses [..., J] that are known."""
        losses = np.asarray(losses)
        if not self.worst:
            return losses @ self.weights
        excess = losses if self.reference is None else losses - self.reference
        return np.where(self.weights > 0, excess, -np.inf).max(axis=-1)

    def __rmatmul__(self, losses: np.ndarray) -> np.ndarray:
        """`losses @ objective`: it stands wherever weights would."""
        return self(losses)

    @property
    def shape(self) -> tuple[int]:
        """As of weights, (J,)."""
        return self.weights.shape

    def counted(self, evaluation_domains: Sequence[str]) -> list[str]:
        """Those of the J evaluation domains that have a weight."""
        return [name for name, weight in zip(evaluation_domains, self.weights, strict=True) if weight > 0]

    def of_prediction(
        self, mean: np.ndarray, deviations: np.ndarray | None = None, correlation: np.ndarray | None = None
    ) -> np.ndarray:
        """The objective [C] of predicted losses [C, J]: what is unsure counts as worse.

        A mean adds β standard deviations of the weighted sum; a worst case those of each domain, before the greatest is
        taken.

        Args:
          mean: predicted losses, [C, J].
          deviations: their standard deviations, [C, J].
          correlation: of the errors of the domains, [J, J]; if it is not known they are taken to go together, which is
            the most unsure a sum can be.

        Raises:
          UserError: β is not zero and there are no deviations.
        """
        if self.beta == 0:
            return self(mean)
        if deviations is None:
            raise UserError(
                f"objective with beta={self.beta:g}: the regressor does not say how sure it is; one with a standard "
                "deviation, such as 'gp', does"
            )
        if self.worst or correlation is None:
            return self(mean + self.beta * deviations)
        weighted = deviations * self.weights
        variance = np.einsum("cj,jk,ck->c", weighted, correlation, weighted)
        return self(mean) + self.beta * np.sqrt(np.maximum(variance, 0))


def make(
    objective: str | Mapping[str, float],
    evaluation_domains: Sequence[str],
    training_domains: Sequence[str],
    reference: np.ndarray | None = None,
    beta: float = 0.0,
) -> Objective:
    """An objective by its name: those of `weights`, or `worst-sp`, `worst-et`, `worst-all` over the same domains.

    Raises:
      UserError: as `weights`; a reference for a mean, where it would change nothing; β that is not finite.
    """
    average = WORST.get(objective) if isinstance(objective, str) else None
    worst = average is not None
    if not np.isfinite(beta):
        raise UserError(f"objective: beta={beta}, expected a finite number")
    if reference is not None and not worst:
        raise UserError(f"objective {objective!r}: only a worst case has a reference: {', '.join(WORST)}")
    if isinstance(objective, str) and not worst and objective not in (*NAMED, *PAPER, FAMILIES):
        raise unknown("objective", objective, [*NAMED, *PAPER, FAMILIES, *WORST])
    return Objective(weights(average or objective, evaluation_domains, training_domains), worst, reference, beta)


def recorded(
    optimum: Mapping[str, Any], evaluation_domains: Sequence[str], training_domains: Sequence[str]
) -> Objective:
    """The objective that a recommendation was found with, by the content of its `optimum.json`."""
    baseline = optimum.get("reference")
    losses = optimum["predictions"][baseline]["losses"] if baseline else None
    reference = None if losses is None else np.array([losses[name] for name in evaluation_domains])
    return make(optimum["objective"], evaluation_domains, training_domains, reference, optimum.get("beta", 0.0))


def in_families(given: Mapping[str, Sequence[str]] | None, evaluation_domains: Sequence[str]) -> dict[str, list[str]]:
    """By family, its evaluation domains in their own order.

    Args:
      given: by family, names of evaluation domains or patterns, such as `minerva_*`.
      evaluation_domains: those that there are.

    Raises:
      UserError: a pattern that means no domain, a domain in two families, a family without domains or with the name of
        one.
    """
    found: dict[str, list[str]] = {}
    of: dict[str, str] = {}
    for family, patterns in (given or {}).items():
        if family in evaluation_domains:
            raise UserError(f"family {family!r} has the name of an evaluation domain, expected another")
        found[family] = matching(f"evaluation domain in family {family!r}", patterns, evaluation_domains)
        if not found[family]:
            raise UserError(f"family {family!r} is empty, expected names of evaluation domains or patterns")
        for name in found[family]:
            if name in of:
                raise UserError(f"evaluation domain {name!r} is in families {of[name]!r} and {family!r}, expected one")
            of[name] = family
    return found


def expanded(
    objective: str | Mapping[str, float],
    evaluation_domains: Sequence[str],
    training_domains: Sequence[str],
    families: Mapping[str, Sequence[str]],
) -> str | dict[str, float]:
    """An objective that needs no families: a name that is one without them, or weights by evaluation domain.

    Raises:
      UserError: as `weights`.
    """
    if isinstance(objective, str) and objective != FAMILIES:
        return objective
    if not isinstance(objective, str) and all(name in evaluation_domains for name in objective):
        return dict(objective)
    vector = weights(objective, evaluation_domains, training_domains, families)
    return {name: float(weight) for name, weight in zip(evaluation_domains, vector, strict=True) if weight > 0}


def weights(
    objective: str | Mapping[str, float],
    evaluation_domains: Sequence[str],
    training_domains: Sequence[str],
    families: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """The weight of each evaluation domain, [J], summing to one; `losses[C, J] @ weights` is the objective.

    Args:
      objective: `avg-sp`, the mean over the training domains; `avg-et`, the mean over the evaluation domains that are
        not trained on; `avg-all`, the mean over all evaluation domains (`avg-et+sp` in the paper);
        `avg-families`, the mean over the families' means and the domains in none; or relative weights by evaluation
        domain, family or pattern (`minerva_*`). The weight of several domains is spread equally over them, what is
        said of a domain twice adds up, and a domain left out weighs nothing.
      evaluation_domains: names, in the order of the columns of the losses.
      training_domains: names, in any order.
      families: evaluation domains by a name of their own, as `in_families` has them.

    Raises:
      UserError: an unknown objective or domain; `avg-families` without families; a worst case, which has no weights;
        weights that are negative, not finite or all zero; `avg-sp` where a training domain is not evaluated; `avg-et`
        where nothing else is.
    """
    if len(set(evaluation_domains)) != len(evaluation_domains):
        raise UserError(f"evaluation domains {', '.join(evaluation_domains)}: a name occurs twice")
    families = families or {}
    weights = _named(objective, evaluation_domains, training_domains, families)
    vector = np.zeros(len(evaluation_domains))
    for name, weight in weights.items():
        members = _members(name, evaluation_domains, families)
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"objective: domain {name!r} has weight {weight}, expected a finite number, zero or more")
        vector[[evaluation_domains.index(member) for member in members]] += weight / len(members)
    if not vector.sum() > 0:
        raise UserError("objective: every weight is zero, expected at least one evaluation domain to count")
    return vector / vector.sum()


def _members(key: str, evaluation: Sequence[str], families: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The evaluation domains that a weight is of."""
    if key in evaluation:
        return [key]
    if key in families:
        return families[key]
    found = [name for name in evaluation if matches(name, key)]
    if not found:
        raise unknown("evaluation domain in the objective", key, [*evaluation, *families])
    return found


def _named(
    objective: str | Mapping[str, float],
    evaluation: Sequence[str],
    training: Sequence[str],
    families: Mapping[str, Sequence[str]],
) -> Mapping[str, float]:
    if not isinstance(objective, str):
        return objective
    objective = PAPER.get(objective, objective)
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
    if objective == FAMILIES:
        if not families:
            raise UserError(f"objective {FAMILIES}: there are no families, which `mde fit --families` names")
        alone = [name for name in evaluation if not any(name in members for members in families.values())]
        return dict.fromkeys([*families, *alone], 1.0)
    if objective in WORST:
        raise UserError(
            f"objective {objective!r}: a worst case is for optimize, iterate and search; fit on an average, "
            f"such as {WORST[objective]!r}"
        )
    raise unknown("objective", objective, [*NAMED, *PAPER, FAMILIES])
