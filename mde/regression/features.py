"""Features of mixtures, by name: what a regressor sees.

A feature set is a union written with "+", such as `mde[0.03]+log`. Its parts are

  lambda, sqrt,
  cbrt, log          functions of the mixture alone, in `FEATURES`;
  an evaluated name  losses that an evaluator predicts for the mixture from the pool of experts, [R, J], computed
                     elsewhere and handed in by name: `mde[0]` (the mixture of data experts, arXiv 2502.15950),
                     `mde[0.03]` and `mde[1]` (its prefix-posterior forms), `merged` (the averaged experts). Each target
                     domain is given its own column;
  all:<evaluated>    the same losses, every column given to every target;
  own                the weight of each target's own domain, for laws of a domain's own data; the
                     `own_domain_weights` of a mixture, handed in as if they were evaluated.

With a few dozen rows or fewer the own column does better than J collinear ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mde.errors import UserError, unknown

FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lambda": lambda mixtures: mixtures,
    "sqrt": np.sqrt,
    "cbrt": np.cbrt,
    "log": lambda mixtures: np.log(mixtures + 0.01),
}
OWN = "own"
LEAST_OWN = 1e-3  # weight that less counts as: laws of the own weight have no loss without any
ALL = "all:"
MERGED = "merged"


def evaluated_parts(features: str) -> list[str]:
    """The evaluated features that a feature set needs, without `all:`; they must be computed before `assemble`."""
    known = (*FEATURES, OWN)
    return list(dict.fromkeys(part.removeprefix(ALL) for part in _parts(features) if part not in known))


def own_domain_weights(
    features: str, mixtures: np.ndarray, training_domains: Sequence[str], evaluation_domains: Sequence[str]
) -> dict[str, np.ndarray]:
    """The weight of each evaluation domain in mixtures [R, K], at least `LEAST_OWN`: {"own": [R, J]}, if it is a part.

    Raises:
      UserError: `own` is asked for and an evaluation domain is not trained on.
    """
    if OWN not in _parts(features):
        return {}
    places = {name: k for k, name in enumerate(training_domains)}
    for name in evaluation_domains:
        if name not in places:
            raise UserError(
                f"feature {OWN!r}: evaluation domain {name!r} is not trained on and has no weight; "
                f"training domains are {', '.join(training_domains)}"
            )
    weights = np.asarray(mixtures, dtype=np.float64)[:, [places[name] for name in evaluation_domains]]
    return {OWN: np.maximum(weights, LEAST_OWN)}


def assemble(features: str, mixtures: np.ndarray, evaluated: Mapping[str, np.ndarray]) -> np.ndarray:
    """The design of a feature set, for the estimators of `mde.regression.estimators`.

    Args:
      features: names joined by "+".
      mixtures: [R, K], points of the simplex.
      evaluated: by name, losses of the same R mixtures on the J evaluation domains, [R, J], nats per token, columns in
        the order of the observed losses.

    Returns:
      [R, F] where every target is given the same features; [R, J, F] as soon as one part gives each target its own
      column. Own columns come first, then the shared features, both in the order in which they are named.

    Raises:
      UserError: an unknown feature, one named twice, or evaluated losses of another shape than [R, J].
    """
    mixtures = np.asarray(mixtures, dtype=np.float64)
    own: list[np.ndarray] = []
    shared: list[np.ndarray] = []
    n_domains: set[int] = set()
    for part in _parts(features):
        if part in FEATURES:
            shared.append(FEATURES[part](mixtures))
            continue
        name = part.removeprefix(ALL)
        if name not in evaluated:
            raise unknown("feature", part, [*FEATURES, OWN, *evaluated, *(ALL + name for name in evaluated)])
        losses = np.asarray(evaluated[name], dtype=np.float64)
        if losses.ndim != 2 or len(losses) != len(mixtures):
            raise UserError(f"feature {name!r} of shape {losses.shape}, expected one row for each of {len(mixtures)}")
        n_domains.add(losses.shape[1])
        (own if part == name else shared).append(losses)
    if len(n_domains) > 1:
        raise UserError(f"feature set {features!r}: evaluated losses of {sorted(n_domains)} domains, expected one J")
    common = np.hstack([np.empty((len(mixtures), 0)), *shared])
    if not own:
        return common
    own_RJO = np.stack(own, axis=2)
    return np.concatenate([own_RJO, np.repeat(common[:, None], own_RJO.shape[1], axis=1)], axis=2)


def traceable(features: str, evaluated: Sequence[str] = ()) -> Callable[[Any], Any]:
    """The rows of `assemble` as a pure JAX function, for gradients.

    Args:
      features: names joined by "+", without `all:`.
      evaluated: names of the own columns that lead a row.

    Returns:
      A function from a row, the mixture [K] or own columns and mixture [J, E + K], to its features, [F] or [J, F].
      Weights below 1e-9 are taken for 1e-9, where roots still have gradients.
    """
    import jax.numpy as jnp

    functions = {
        "lambda": lambda mixture: mixture,
        "sqrt": lambda mixture: jnp.sqrt(jnp.maximum(mixture, 1e-9)),
        "cbrt": lambda mixture: jnp.cbrt(jnp.maximum(mixture, 1e-9)),
        "log": lambda mixture: jnp.log(mixture + 0.01),
    }
    parts = _parts(features)
    if unknown_parts := [part for part in parts if part not in functions and part not in evaluated]:
        raise unknown("feature", unknown_parts[0], [*functions, *evaluated])
    columns = [list(evaluated).index(part) for part in parts if part in evaluated]

    def design(row: Any) -> Any:
        mixture = row if row.ndim == 1 else row[0, len(evaluated) :]
        shared = [functions[part](mixture) for part in parts if part in functions]
        if not columns:
            return jnp.concatenate(shared)
        own = row[:, jnp.array(columns)]
        common = jnp.concatenate(shared) if shared else jnp.zeros(0)
        return jnp.concatenate([own, jnp.broadcast_to(common, (len(own), len(common)))], axis=1)

    return design


def _parts(features: str) -> list[str]:
    parts = [part.strip() for part in features.split("+")]
    if "" in parts or len(set(parts)) != len(parts):
        raise UserError(f"feature set {features!r}: expected distinct names joined by '+'")
    return parts
