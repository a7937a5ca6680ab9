"""What the runs of one budget say: the base run, and for each domain a run with less and one with more of it.

Shapes: R runs, K training domains, J evaluation domains.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mde.errors import UserError
from mde.scaling.ddo import PowerLaws, fit_jointly, fit_power_laws

_SAME = 0.01  # quantities that differ by less, relatively, are the same quantity: steps and sequences are whole
FITS = ("domain", "joint")


@dataclasses.dataclass(frozen=True)
class Effects:
    """The runs of one budget in their places, seeds averaged.

    Attributes:
      names: [K].
      base: tokens of each domain in the base run, [K].
      factors: what the runs with less and with more of a domain multiply its base quantity by, [K, 2].
      losses: of the base run, [J].
      less: of the runs with less of each domain, [K, J].
      more: of those with more, [K, J].
      repeats: seeds of each of the 2K + 1 runs.
      noise: covariance of the losses of a run over seeds, [J, J], without what all runs of a seed have in common; None
        if there is one seed only.
      others: tokens of runs that change several domains, [n, K]; only a joint fit learns from them.
      other_losses: of these, [n, J].
    """

    names: tuple[str, ...]
    base: np.ndarray
    factors: np.ndarray
    losses: np.ndarray
    less: np.ndarray
    more: np.ndarray
    repeats: int
    noise: np.ndarray | None
    others: np.ndarray
    other_losses: np.ndarray

    @property
    def budget(self) -> float:
        """Tokens of the base run."""
        return float(self.base.sum())

    def deviation(self, goal: npt.ArrayLike) -> float | None:
        """Standard deviation of one run's objective over seeds, None if it is not known."""
        weights = np.asarray(goal, np.float64)
        return None if self.noise is None else float(np.sqrt(weights @ self.noise @ weights))

    def power_laws(self, goal: npt.ArrayLike, fit: str = "domain", nearest: bool = False) -> PowerLaws:
        """The laws of an objective that weighs the evaluation domains, [J].

        Args:
          goal: weight of each evaluation domain.
          fit: `domain`, each law through its own three points, or `joint`, from there on all laws at once by least
            squares over all runs; without other runs that is the same.
          nearest: whether a domain that no law fits gets the nearest one.

        Raises:
          UserError: losses that no law fits, with what would help; a joint fit that does not converge.
        """
        weights = np.asarray(goal, np.float64)
        level, less, more = (losses @ weights for losses in (self.losses, self.less, self.more))
        try:
            laws = fit_power_laws(self.names, self.base, float(level), self.factors, less, more, nearest)
            if fit == "domain":
                return laws
            tokens = np.concatenate([self.quantities(), self.others])
            return fit_jointly(laws, tokens, np.concatenate([[level], less, more, self.other_losses @ weights]))
        except UserError as error:
            raise UserError(f"budget of {self.budget:,.0f} tokens: {error}{self._noise_in_words(goal)}") from error

    def quantities(self) -> np.ndarray:
        """Tokens of the runs, [2K + 1, K]: base, less of each domain, more of each."""
        changed = 1 + np.eye(len(self.names)) * (self.factors.T[:, :, None] - 1)  # [2, K, K]
        return self.base * np.concatenate([np.ones((1, len(self.names))), *changed])

    def _noise_in_words(self, goal: npt.ArrayLike) -> str:
        deviation = self.deviation(goal)
        if deviation is None:
            return " (one seed each: how large the noise of a run is, is not known)"
        return f" (noise of a run: {deviation:.2g}, {self.repeats} seeds each)"


def measured_effects(
    names: Sequence[str],
    runs: Sequence[str],
    tokens: npt.ArrayLike,
    losses: npt.ArrayLike,
    seeds: Sequence[Any] | None = None,
) -> Effects:
    """Puts the runs of one budget into their places. Runs of the same quantities are repeats and averaged.

    The base run has of each domain what most runs have.

    Args:
      names: the K domains.
      runs: what the R runs are called, for messages.
      tokens: quantities, [R, K].
      losses: [R, J]; repeats stand in the same order of seeds for every run.
      seeds: of the runs, where they are known: then those of the repeats must be the same.

    Raises:
      UserError: a domain without a run with less or with more of it, or with several such quantities; runs of which
        some are repeated more often than others, or with other seeds.
    """
    tokens_RxK, losses_RxJ = np.asarray(tokens, np.float64), np.asarray(losses, np.float64)
    K = len(names)
    bad = ~(np.isfinite(tokens_RxK) & (tokens_RxK >= 0))
    if bad.any():
        r, k = (int(i) for i in np.argwhere(bad)[0])
        raise UserError(f"run {runs[r]!r}, domain {names[k]!r}: {tokens_RxK[r, k]:g} tokens, expected zero or more")
    base_K = np.array([_most_common(column) for column in tokens_RxK.T])
    if not (base_K > 0).all():
        raise UserError(
            f"domain {names[int(np.argmin(base_K))]!r}: the base run has none of it, which no factor changes"
        )
    ratios_RxK = tokens_RxK / base_K
    changed = np.abs(ratios_RxK - 1) > _SAME
    base = np.flatnonzero(~changed.any(axis=1))
    places = {"the base quantities": base}
    for k, name in enumerate(names):
        alone = changed[:, k] & (changed.sum(axis=1) == 1)
        places[f"less of domain {name!r} alone"] = np.flatnonzero(alone & (ratios_RxK[:, k] < 1))
        places[f"more of domain {name!r} alone"] = np.flatnonzero(alone & (ratios_RxK[:, k] > 1))
    for what, rows in places.items():
        _check_place(what, rows, base, [runs[r] for r in rows.tolist()], ratios_RxK[rows])
        if seeds is not None:
            _check_seeds(what, *([seeds[r] for r in place.tolist()] for place in (rows, base)))
    rows_PxS = np.stack(list(places.values()))
    means = losses_RxJ[rows_PxS].mean(axis=1)
    factors = np.array([[ratios_RxK[rows_PxS[1 + 2 * k + side], k].mean() for side in (0, 1)] for k in range(K)])
    several = changed.sum(axis=1) > 1
    return Effects(
        tuple(names),
        base_K,
        factors,
        means[0],
        means[1::2],
        means[2::2],
        len(base),
        _noise(losses_RxJ[rows_PxS]),
        tokens_RxK[several],
        losses_RxJ[several],
    )


def _most_common(quantities: np.ndarray) -> float:
    """The quantity that most others are the same as."""
    same = np.abs(quantities - quantities[:, None]) <= _SAME * np.abs(quantities)
    return float(quantities[same.sum(axis=1).argmax()])


def _check_place(what: str, rows: np.ndarray, base: np.ndarray, runs: Sequence[str], ratios: np.ndarray) -> None:
    if not len(rows):
        raise UserError(
            f"no run with {what}: each domain has three parameters and needs three runs, the base run, one with less "
            "and one with more of it"
        )
    if (np.ptp(ratios, axis=0) > _SAME * ratios.max(axis=0)).any():
        raise UserError(f"runs {', '.join(runs)} have {what} in different quantities, expected one")
    if len(rows) != len(base):
        raise UserError(f"{len(rows)} runs with {what}, and {len(base)} base runs: expected the same seeds for all")


def _check_seeds(what: str, theirs: Sequence[Any], base: Sequence[Any]) -> None:
    """Seeds are blocks: what runs of one have in common is taken away, which runs of different ones do not have."""
    if list(theirs) != list(base):
        raise UserError(
            f"runs with {what} have seeds {', '.join(map(str, theirs))}, and the base runs "
            f"{', '.join(map(str, base))}: expected the same seeds for all"
        )


def _noise(losses_PxSxJ: np.ndarray) -> np.ndarray | None:
    """Covariance over seeds, [J, J], without what all runs of a seed share: its data order moves no difference."""
    P, S, _ = losses_PxSxJ.shape
    if S == 1:
        return None
    left = losses_PxSxJ - losses_PxSxJ.mean(axis=1, keepdims=True)
    left = left - left.mean(axis=0)
    return np.einsum("psi,psj->ij", left, left) / ((P - 1) * (S - 1))
