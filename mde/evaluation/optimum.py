"""The best mixture of experts, with a certificate: no mixture is better by more than the gap.

The loss of a mixture of data experts, `−mean_t log Σ_k λ_k p_k(x_t)` (MDE, arXiv 2502.15950, eq. 1; MixMin, arXiv
2502.10510, with sequences for tokens), is convex in λ, and so is every non-negative combination of domain losses. It is
minimised by sequential quadratic programming (Kim, Carbonetto, Stephens and Anitescu, "A fast algorithm for maximum
likelihood estimation of mixture proportions using sequential quadratic programming", arXiv 1806.01412): one pass over
the tokens gives value and Hessian, in float64, and a non-negative least-squares problem gives the next weights.

The certificate is Frank and Wolfe's gap: the objective lies above its tangent, whose lowest value over the simplex is
at a corner.

Shapes: T rows (tokens or sequences), K experts, J evaluation domains, N objectives, U units of resampling.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits

from mde import hosts
from mde.errors import UserError
from mde.evaluation.mixture import Text

_TOLERANCE = 1e-8  # nats per token
_PASSES = 200  # the gap tells what is then left
_SAMPLE = 1 << 16  # rows; of more, every sixteenth is solved first
_BLOCK_BYTES = 3_200_000  # a block and what is made of it stay in the cache
_RIDGE = 1e-10
_SUFFICIENT, _ROUNDING = 1e-4, 1e-13  # decrease that a step must bring, as part of the predicted; rounding of values


@dataclasses.dataclass(frozen=True)
class Optima:
    """The best mixture for each objective.

    Attributes:
      weights: [N, K] mixtures.
      objective: [N] values there, nats per token.
      gap: [N] upper bounds on how far the values are above the lowest possible, nats per token.
      passes: how often all tokens were read.
    """

    weights: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    passes: int


def optimum(
    log_probs: np.ndarray,
    segment_ids: np.ndarray,
    objectives: np.ndarray,
    *,
    tau: float = 0.0,
    sequence_ids: np.ndarray | None = None,
    unit_ids: np.ndarray | None = None,
    unit_counts: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> Optima:
    """Minimises `objectives @ losses(λ)` over the simplex, for every objective at once, to a gap of 1e-8 nats.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert; may be memory-mapped.
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      objectives: [N, J] non-negative weights of the domains' losses.
      tau: 0 for mixtures of tokens' probabilities, 1 for mixtures of sequences' (MixMin). Between them the loss is not
        convex.
      sequence_ids: [T] numbers of the sequences, the tokens of one standing together; needed for tau = 1.
      unit_ids: [T] number of the unit (a document) that each token belongs to, for `unit_counts`.
      unit_counts: [N, U] how often each unit counts in each objective, as `bootstrap` draws it; losses are means over
        the tokens as often as they count.
      names: of the K experts, for messages.

    Raises:
      UserError: what is no log-prob; a token impossible under every expert; objectives that are negative or zero; a
        domain without tokens.
    """
    text = Text(log_probs, segment_ids, sequence_ids, None, None, names)
    text.check_taus([tau])
    if tau not in (0, 1):
        raise UserError(f"tau={tau}: only the losses of tau=0 and tau=1 are convex")
    if unit_ids is not None and unit_ids.shape != (len(text),):
        raise UserError(f"unit_ids {unit_ids.shape}: expected one for each of {len(text)} tokens")
    text.check()
    objectives = np.atleast_2d(np.asarray(objectives, np.float64))
    _check_objectives(objectives, unit_ids, unit_counts, len(text.domains))
    rows, segments, lengths = log_probs, text.segment_ids, np.ones(len(text))
    if tau == 1:
        assert text.starts is not None
        rows, segments = np.add.reduceat(log_probs, text.starts, dtype=np.float64), segments[text.starts]
        lengths = np.diff(text.starts, append=len(text)).astype(np.float64)
        unit_ids = None if unit_ids is None else unit_ids[text.starts]
        if (impossible := np.isneginf(rows).all(axis=1)).any():
            raise UserError(f"sequence {np.argmax(impossible)} is impossible under every expert")
    problem = _Problem(rows, segments, lengths, objectives, unit_ids, unit_counts)
    empty = (objectives > 0) & (problem.row_weights == 0)
    if empty.any():
        n, j = np.argwhere(empty)[0]
        raise UserError(f"objective {n}: domain {j} has no token that counts")
    with threadpool_limits(1, "blas"):  # blocks of tokens are spread over threads already
        return problem.solve()


def bootstrap(unit_ids: np.ndarray, segment_ids: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """[resamples, U] how often each unit is drawn, with replacement, as many of each domain as it has.

    Documents are the units to take: the tokens of a document are no independent draws.

    Args:
      unit_ids: [T] number of the unit that each token belongs to, 0 … U − 1.
      segment_ids: [T] domain of each token; a unit is in one domain.
      resamples: how many.
      seed: of the draws.

    Raises:
      UserError: a unit in two domains.
    """
    domain = np.full(int(unit_ids.max()) + 1, -1)
    domain[unit_ids] = segment_ids
    torn = domain[unit_ids] != segment_ids
    if torn.any():
        raise UserError(f"unit {unit_ids[np.argmax(torn)]} has tokens of more than one domain")
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(domain)), np.uint16)
    for j in range(int(segment_ids.max()) + 1):
        (mine,) = np.nonzero(domain == j)
        for row in counts:
            row[mine] = np.bincount(rng.integers(len(mine), size=len(mine)), minlength=len(mine))
    return counts


def _check_objectives(
    objectives: np.ndarray, unit_ids: np.ndarray | None, unit_counts: np.ndarray | None, domains: int
) -> None:
    if objectives.ndim != 2 or objectives.shape[1] != domains:
        raise UserError(f"objectives {objectives.shape}: expected one weight for each of the {domains} domains")
    wrong = ~(np.isfinite(objectives) & (objectives >= 0))
    if wrong.any():
        n, j = np.argwhere(wrong)[0]
        raise UserError(f"objective {n}: domain {j} has weight {objectives[n, j]}, expected zero or more")
    if not (objectives.sum(axis=1) > 0).all():
        raise UserError(f"objective {np.argmin(objectives.sum(axis=1))}: every weight is zero")
    if unit_counts is None:
        return
    if unit_ids is None:
        raise UserError("unit_counts need unit_ids: which unit each token belongs to")
    shape = (len(objectives), int(unit_ids.max()) + 1)
    if unit_counts.shape != shape or not (unit_counts >= 0).all():
        raise UserError(f"unit_counts {unit_counts.shape}: expected {shape}, a count of zero or more for each unit")


class _Problem:
    """N objectives over the same rows."""

    def __init__(
        self,
        log_probs: np.ndarray,
        segment_ids: np.ndarray,
        lengths: np.ndarray,
        objectives: np.ndarray,
        unit_ids: np.ndarray | None,
        unit_counts: np.ndarray | None,
    ):
        self.parts = log_probs, segment_ids, lengths
        self.objectives, self.unit_ids, self.unit_counts = objectives, unit_ids, unit_counts
        n, j = objectives.shape
        if unit_ids is None or unit_counts is None:
            tokens_NxJ = np.bincount(segment_ids, lengths, j)[None]
        else:
            units = unit_counts.shape[1]
            sizes = np.bincount(unit_ids * j + segment_ids, lengths, units * j).reshape(units, j)
            tokens_NxJ = unit_counts @ sizes
        # [N, J] weight of a row of each domain: the domain's weight over its tokens.
        self.row_weights = np.divide(objectives, tokens_NxJ, out=np.zeros((n, j)), where=tokens_NxJ > 0)

    def solve(self) -> Optima:
        """From the optima of a sixteenth of the rows, if they are many, and theirs from a sixteenth of those."""
        rows, k = self.parts[0], self.parts[0].shape[1]
        weights = np.full((len(self.objectives), k), 1 / k)
        if len(rows) > _SAMPLE:
            some = slice(None, None, 16)
            units = None if self.unit_ids is None else self.unit_ids[some]
            log_probs, segment_ids, lengths = (part[some] for part in self.parts)
            sample = _Problem(log_probs, segment_ids, lengths, self.objectives, units, self.unit_counts)
            # A little inside: rows outside the sample may need any expert.
            weights = 0.999 * sample.solve().weights + 0.001 / k
        everything = np.arange(len(weights))
        value, hessian = self.evaluate(weights, everything)
        if not np.isfinite(value).all():
            raise UserError(f"the loss of the mixture {weights[0].round(4).tolist()} is not finite")
        target, gap = _newton(weights, hessian)
        size, passes = np.ones(len(weights)), 1
        while passes < _PASSES and len(rest := np.flatnonzero(gap > _TOLERANCE)):
            step = size[rest, None] * (target[rest] - weights[rest])
            tried = weights[rest] + step
            tried /= tried.sum(axis=1, keepdims=True)  # of all multiples of a vector the one on the simplex is best
            found, curvature = self.evaluate(tried, rest)
            passes += 1
            before, after = (_slope(w, h, step) for w, h in ((weights[rest], hessian[rest]), (tried, curvature)))
            rounding = _ROUNDING * (1 + np.abs(value[rest]))
            # Armijo's rule, and one against going too far: where a weight is far too small, steps only double it.
            good = (found <= value[rest] + _SUFFICIENT * before + rounding) & (after <= np.abs(before) + rounding)
            done = rest[good]
            weights[done], value[done], hessian[done], size[done] = tried[good], found[good], curvature[good], 1
            target[done], gap[done] = _newton(weights[done], hessian[done])
            size[rest[~good]] /= 2
        return Optima(weights, value, gap, passes)

    def evaluate(self, weights_NxK: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values [N] and Hessians [N, K, K] of the objectives `which` [N], each at its own mixture."""
        log_probs, segment_ids, _ = self.parts
        n, k = weights_NxK.shape
        left, right = np.triu_indices(k)
        size = max(64, _BLOCK_BYTES // (8 * (3 * n + len(left) + 2 * k)))
        row_weights = self.row_weights[which]
        unit_counts = None if self.unit_counts is None else self.unit_counts[which]

        def block(start: int) -> tuple[np.ndarray, np.ndarray]:
            rows = slice(start, start + size)
            probs_KxT = np.ascontiguousarray(log_probs[rows].T, np.float64)
            largest = probs_KxT.max(axis=0)
            np.exp(np.subtract(probs_KxT, largest, out=probs_KxT), out=probs_KxT)
            counted = row_weights[:, segment_ids[rows]]
            if unit_counts is not None and self.unit_ids is not None:
                counted *= unit_counts[:, self.unit_ids[rows]]
            mixed = weights_NxK @ probs_KxT
            mixed[counted == 0] = 1  # what does not count may be impossible
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a loss of infinity tells itself
                value = -(counted * np.log(mixed)).sum(axis=1) - counted @ largest
                return value, (counted / (mixed * mixed)) @ (probs_KxT[left] * probs_KxT[right]).T

        with ThreadPoolExecutor(hosts.cores()) as threads:
            blocks = list(threads.map(block, range(0, len(segment_ids), size)))
        value, pairs = (np.sum(parts, axis=0) for parts in zip(*blocks, strict=True))
        hessian = np.empty((n, k, k))
        hessian[:, left, right] = hessian[:, right, left] = pairs
        return value, hessian


def _slope(weights_NxK: np.ndarray, hessian_NxKxK: np.ndarray, step_NxK: np.ndarray) -> np.ndarray:
    """[N] derivatives of `objective + total · Σλ` along the steps; see `_newton`."""
    with np.errstate(invalid="ignore", over="ignore"):
        bend = np.einsum("nij,nj->ni", hessian_NxKxK, weights_NxK)
        return (bend * weights_NxK).sum(axis=1) * step_NxK.sum(axis=1) - (bend * step_NxK).sum(axis=1)


def _newton(weights_NxK: np.ndarray, hessian_NxKxK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minima [N, K] over λ ≥ 0 of the quadratic models of `objective + total · Σλ`, and the gaps [N] at the weights.

    The objective falls by `total · log c` when λ is multiplied by c, so with that term the constraint Σλ = 1 holds by
    itself at the optimum. The gradient is −Hλ, as that of any function of degree −1 (Euler).
    """
    target, gap = np.empty_like(weights_NxK), np.empty(len(weights_NxK))
    for n, (weights, hessian) in enumerate(zip(weights_NxK, hessian_NxKxK, strict=True)):
        gradient = -hessian @ weights
        total = -gradient @ weights
        gap[n] = max(-gradient.min() - total, 0)
        scale = 1 / np.sqrt(
            np.maximum(np.diag(hessian), total)
        )  # an expert that has all the weight has curvature total
        target[n] = scale * _quadratic(scale[:, None] * hessian * scale, scale * (2 * gradient + total))
    return target, gap


def _quadratic(hessian_KxK: np.ndarray, slope_K: np.ndarray) -> np.ndarray:
    """The [K] minimum of ½ xᵀHx + cᵀx over x ≥ 0, for a Hessian whose diagonal is at most 1."""
    factor = np.linalg.cholesky(hessian_KxK + _RIDGE * np.eye(len(slope_K)))
    x = nnls(factor.T, np.linalg.solve(factor, -slope_K))[0]
    # The ridge, which experts that are alike need, costs digits; once it is known which entries are zero, the others
    # are found without it.
    free = np.flatnonzero(x)
    exact = np.zeros_like(x)
    exact[free] = np.linalg.lstsq(hessian_KxK[np.ix_(free, free)], -slope_K[free], rcond=_RIDGE)[0]
    model = lambda y: y @ (hessian_KxK @ y / 2 + slope_K)  # noqa: E731
    return exact if exact.min() >= 0 and model(exact) <= model(x) else x
