"""Mixtures that need no training: uniform, proportional to the tokens, and UniMax."""

from collections.abc import Mapping

import numpy as np

from mde.optimization import simplex

Weights = Mapping[str, float]
UNIMAX = "unimax"
TEMPERATURE = 0.5  # power of the token counts, between proportional (1) and uniform (0)
TEMPERED = f"proportional^{TEMPERATURE:g}"


def simple_mixtures(
    domains: tuple[str, ...],
    tokens: Weights | None,
    budget: float | None = None,
    max_epochs: float | Weights | None = None,
) -> dict[str, Weights]:
    """The mixtures that need no training, by name: uniform, and others where what they are made of is known.

    `proportional` and `proportional^0.5`, to the square roots of the counts, take the tokens; `unimax` a budget and a
    largest number of epochs besides, which leave a mixture.
    """
    found: dict[str, Weights] = {"uniform": dict.fromkeys(domains, 1 / len(domains))}
    if not tokens:
        return found
    found["proportional"] = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    tempered = {name: count**TEMPERATURE for name, count in tokens.items()}
    found[TEMPERED] = {name: count / sum(tempered.values()) for name, count in tempered.items()}
    if budget and max_epochs:
        epochs = max_epochs if isinstance(max_epochs, Mapping) else dict.fromkeys(domains, max_epochs)
        most = np.array([tokens[name] * epochs.get(name, np.inf) for name in domains])
        if most.sum() >= budget:
            caps = np.minimum(most / budget, 1)
            found[UNIMAX] = dict(zip(domains, unimax(caps).tolist(), strict=True))
    return found


def unimax(caps: np.ndarray) -> np.ndarray:
    """Equal weights [K], each at most its cap; what a capped domain cannot take the others share equally.

    Source: UniMax (Chung et al., arXiv 2304.09151), which goes through the domains from the smallest on and gives each
    an equal part of what is left, or its cap if that is less. The same mixture is the nearest to uniform under caps.

    Args:
      caps: max weights [K], with a sum of at least 1.
    """
    return simplex.project(np.full((1, len(caps)), 1 / len(caps)), 0.0, caps)[0]
