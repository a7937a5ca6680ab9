"""Mixtures by their names: uniform, proportional, recommended, found by re-weighting, or shares by domain."""

from collections.abc import Mapping

import numpy as np

from mde.errors import unknown
from mde.optimization import simplex
from mde.study import Study

Shares = Mapping[str, float]
RECOMMENDED = "recommended"
REWEIGHTED = ("doremi", "doge")  # that `mde reweight` finds


def tokens_of(study: Study) -> dict[str, float] | None:
    """Training tokens by domain, where the study has token stores."""
    if "stores" not in study.about:
        return None
    return {name: float(study.about["stores"][f"{name}/train"]["tokens"]) for name in study.domains.training}


def natural(domains: tuple[str, ...], tokens: Shares | None) -> dict[str, Shares]:
    """The mixtures that need no training, by name: uniform, and proportional to the tokens where these are known."""
    found: dict[str, Shares] = {"uniform": dict.fromkeys(domains, 1 / len(domains))}
    if tokens:
        found["proportional"] = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    return found


def mixture(study: Study, value: Shares | str, where: str, more: Mapping[str, Shares] | None = None) -> np.ndarray:
    """The mixture [K] that a name or shares by domain stand for; a domain that is left out has no share.

    Args:
      study: the study.
      value: uniform, proportional, recommended, doremi, doge, a name in `more`, or shares.
      where: what the mixture is for, for messages.
      more: other mixtures that have a name.

    Raises:
      UserError: an unknown name or domain, shares that are no mixture, a mixture that is not found yet.
    """
    names = study.domains.training
    shares = _named(study, value, where, more or {}) if isinstance(value, str) else value
    for name in shares:
        if name not in names:
            raise unknown(f"domain in {where}", name, names)
    return simplex.check_mixtures([shares.get(name, 0.0) for name in names], names, where=where)[0]


def _named(study: Study, name: str, where: str, more: Mapping[str, Shares]) -> Shares:
    if name == RECOMMENDED:
        return study.read_json("optimum.json", "optimize")["shares"]
    if name in REWEIGHTED:
        return study.read_json(f"reweighting/{name}.json", f"reweight --method={name}")["shares"]
    known = {**natural(study.domains.training, tokens_of(study)), **more}
    if name not in known:
        raise unknown(f"mixture in {where}", name, [*known, RECOMMENDED, *REWEIGHTED])
    return known[name]
