"""The exactly best mixture of experts, with a certificate: no allowed mixture is better by more than the gap.

The loss of a mixture of data experts, `−mean_t log Σ_k λ_k p_k(x_t)` (MDE, arXiv 2502.15950, eq. 1; MixMin, arXiv
2502.10510, with sequences for tokens), is convex in λ, and so is every non-negative combination of domain losses. There
are few weights and very many tokens, so what counts is the number of passes over the tokens, and second-order steps
need few: a pass gives value, gradient and Hessian of all objectives at their own points, and small quadratic programs
over the allowed mixtures give the next points. A sample of the tokens is solved first, so that the passes over all of
them start near the end, the first of them in single precision.

The certificate: the objective lies above its tangent, so no allowed mixture is below the tangent's least value, which a
linear program finds (Frank and Wolfe's gap). As a sum of logarithms it also is self-concordant, which bounds how far it
is from its quadratic models (Nesterov, Introductory Lectures on Convex Optimization, 2004, theorems 4.1.7 and 4.1.8);
so the last step can be taken, and certified, without another pass. All that the certificate rests on is float64.

Shapes: T tokens (or sequences), K experts, J evaluation domains, N objectives, U units of resampling, G caps.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from mde.errors import UserError
from mde.evaluation import quadratic
from mde.evaluation.mixture import Text
from mde.evaluation.polytope import Polytope, inequalities, least_linear, polytope
from mde.evaluation.second_order import Model, Rows, rows_of

_SAMPLE = 1 << 14  # rows that are solved at once; of more, a part is solved first
_PART = 16
_ENOUGH = 0.01  # share of a sample's statistical error to which it is solved
_INWARD = 1e-3  # a start from the sample is moved inside by this: rows outside the sample may need any expert
_SUFFICIENT = 1e-4  # share of the predicted decrease that a step must bring (Armijo)
_ROUNDING = {np.float32: 1e-6, np.float64: 1e-13}  # of values, relative
_SHORTER = (0.9, 0.5)  # a step that was refused is first kept off the boundary, then halved


@dataclasses.dataclass(frozen=True)
class Optima:
    """The best mixture for each objective.

    Attributes:
      weights: [N, K] mixtures.
      objective: [N] values there, nats per token, the pull to the prior included, to within half the gap.
      gap: [N] upper bounds on how far the values are above the least possible, nats per token.
      lower_price: [N, K] what raising a lower bound costs, nats per token and unit of weight; positive where it binds.
      upper_price: [N, K] what raising an upper bound gains.
      cap_price: [N, G] what raising a cap gains.
      passes: how often all tokens were read.
    """

    weights: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    lower_price: np.ndarray
    upper_price: np.ndarray
    cap_price: np.ndarray
    passes: int


def optimum(
    log_probs: np.ndarray,
    segment_ids: np.ndarray,
    objectives: np.ndarray,
    *,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    caps: tuple[np.ndarray, np.ndarray] | None = None,
    prior: np.ndarray | None = None,
    kl: float = 0.0,
    tau: float = 0.0,
    sequence_ids: np.ndarray | None = None,
    unit_ids: np.ndarray | None = None,
    unit_counts: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    tolerance: float = 1e-8,
    max_passes: int = 100,
) -> Optima:
    """Minimises `objectives @ losses(λ) + kl·KL(prior ‖ λ)` over the allowed mixtures, for every objective at once.

    The pull is what `kl` more tokens a token would add, drawn from the prior, that only their own expert can produce:
    a Dirichlet prior. It keeps every expert in that the prior has in.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert; may be memory-mapped.
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      objectives: [N, J] non-negative weights of the domains' losses.
      lower: [K] least weights; 0 by default.
      upper: [K] largest weights; 1 by default.
      caps: rows [G, K] and limits [G] of `rows @ λ ≤ limits`: for a group of experts, or for tokens that are to be had.
      prior: [K] the mixture to pull to.
      kl: weight of the pull.
      tau: 0 for mixtures of tokens' probabilities, 1 for mixtures of sequences' (MixMin). Between them the loss is not
        convex.
      sequence_ids: [T] numbers of the sequences, the tokens of one standing together; needed for tau = 1.
      unit_ids: [T] number of the unit (a document) that each token belongs to, for `unit_counts`.
      unit_counts: [N, U] how often each unit counts in each objective, as `bootstrap` draws it; losses are means over
        the tokens as often as they count.
      names: of the K experts, for messages.
      tolerance: largest gap, nats per token.
      max_passes: over all tokens; what is then left open, the gap tells.

    Raises:
      UserError: what is no log-prob; a token impossible under every expert that is allowed; bounds or caps that leave
        no mixture; objectives that are negative or zero; a domain without tokens.
    """
    text = Text(log_probs, segment_ids, sequence_ids, None, None, names)
    allowed = polytope(text.experts, lower, upper, caps)
    rows, tokens = rows_of(text, tau, allowed.upper > 0, unit_ids)
    rows = rows.weigh(tokens, np.atleast_2d(objectives), unit_counts)
    rows = dataclasses.replace(rows, pull=_pull(prior, kl, allowed))
    with threadpool_limits(1, "blas"):  # blocks of tokens are spread over threads already
        return _solve(rows, allowed, tolerance, max_passes)


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
    mixed = domain[unit_ids] != segment_ids
    if mixed.any():
        raise UserError(f"unit {unit_ids[np.argmax(mixed)]} has tokens of more than one domain")
    rng = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(domain)), np.uint16)
    for j in range(int(segment_ids.max()) + 1):
        (mine,) = np.nonzero(domain == j)
        for row in counts:
            row[mine] = np.bincount(rng.integers(len(mine), size=len(mine)), minlength=len(mine))
    return counts


def _pull(prior: np.ndarray | None, kl: float, allowed: Polytope) -> np.ndarray:
    """[K] kl·prior, after checks."""
    if not (np.isfinite(kl) and kl >= 0):
        raise UserError(f"kl={kl} must be a finite number, zero or more")
    if kl == 0:
        return np.zeros(len(allowed.upper))
    pull = np.full(len(allowed.upper), np.nan) if prior is None else np.asarray(prior, np.float64)
    if pull.shape != allowed.upper.shape or not (pull >= 0).all() or abs(pull.sum() - 1) > 1e-6:
        raise UserError(f"kl={kl} needs a prior: {len(allowed.upper)} shares that sum to one, not {prior}")
    for i in np.flatnonzero((pull > 0) & (allowed.upper == 0)).tolist():
        raise UserError(f"domain {allowed.names[i]}: the prior gives it {pull[i]:g}, but its upper bound is 0")
    return kl * pull / pull.sum()


@dataclasses.dataclass(frozen=True)
class _Proposal:
    """The optima of the quadratic models."""

    weights: np.ndarray  # [N, K]
    value: np.ndarray  # [N] of the models there
    gap: np.ndarray  # [N] bounds on how far the objectives there are above the least possible
    gap_before: np.ndarray  # [N] the same where the models were made
    prices: np.ndarray  # [N, R] multipliers of the inequalities

    @property
    def certified(self) -> np.ndarray:
        """[N] bounds for the better known of the two points."""
        return np.minimum(self.gap, self.gap_before)


def _solve(rows: Rows, allowed: Polytope, tolerance: float, max_passes: int) -> Optima:
    """From the optima of a sample, and theirs from a smaller one."""
    start = np.tile(allowed.start, (rows.objectives, 1))
    count = len(rows.segment_ids)
    if count > 4 * _SAMPLE:
        part = count // _PART
        enough = max(tolerance, _ENOUGH * start.shape[1] / part)
        sampled = _solve(rows.sample(part), allowed, enough, max_passes).weights
        start = sampled + _INWARD * (start - sampled)
    return _minimize(rows, allowed, start, tolerance, max_passes)


def _minimize(rows: Rows, allowed: Polytope, start: np.ndarray, tolerance: float, max_passes: int) -> Optima:
    """Sequential quadratic programming with backtracking, every objective at its own pace; `rows` are one pass.

    Of many rows the first pass is of single precision: it says where to go, and certifies nothing.
    """
    weights, everything, least = start.copy(), np.arange(len(start)), rows.least()
    dtype = np.float32 if len(rows.segment_ids) > 4 * _SAMPLE and max_passes > 1 else np.float64
    model = rows.evaluate(weights, everything, dtype)
    if not np.isfinite(model.value).all():
        raise UserError(f"the loss of the mixture {weights[0].round(4).tolist()} is not finite")
    proposal = _propose(allowed, weights, model, least)
    if dtype is np.float32:
        proposal.gap[:] = proposal.gap_before[:] = np.inf
    size, passes, rounding = np.ones(len(start)), 1, np.full(len(start), _ROUNDING[dtype])
    while passes < max_passes and len(rest := np.flatnonzero(proposal.certified > tolerance)):
        now, then, share = weights[rest], proposal.weights[rest], size[rest, None]
        tried = np.where(share == 1, then, now + share * (then - now))
        found = rows.evaluate(tried, rest)
        passes += 1
        good = _good_enough(model.at(rest), found, then - now, size[rest], rounding[rest])
        done = rest[good]
        weights[done], size[done], rounding[done] = tried[good], 1, _ROUNDING[np.float64]
        _put(model, done, found, good)
        _put(proposal, done, _propose(allowed, weights[done], model.at(done), least[done]), slice(None))
        refused = rest[~good]
        size[refused] = np.where(size[refused] == 1, _SHORTER[0], _SHORTER[1] * size[refused])
    return _optima(allowed, weights, model, proposal, passes)


def _good_enough(
    before: Model, after: Model, direction: np.ndarray, size: np.ndarray, rounding: np.ndarray
) -> np.ndarray:
    """[N] whether steps of this size are taken: Armijo's rule, and one against going too far.

    Far beyond the least value on the way a weight may be so small that the steps from there only double it.
    """
    slope = (before.gradient * direction).sum(axis=1)
    slope_there = (after.gradient * direction).sum(axis=1)
    rounding = rounding * (1 + np.abs(before.value))
    lower = after.value <= before.value + _SUFFICIENT * size * slope + rounding
    return lower & (slope_there <= np.abs(slope) + rounding)


def _optima(allowed: Polytope, weights: np.ndarray, model: Model, proposal: _Proposal, passes: int) -> Optima:
    free = allowed.free
    lower_price, upper_price = np.zeros((2, *weights.shape))
    lower_price[:, free], upper_price[:, free], cap_price = np.split(
        proposal.prices, [len(free), 2 * len(free)], axis=1
    )
    further = proposal.gap < proposal.gap_before
    weights = np.where(further[:, None], proposal.weights, weights)
    value = np.where(further, proposal.value, model.value)
    return Optima(weights, value, proposal.certified, lower_price, upper_price, cap_price, passes)


def _put(target: Model | _Proposal, where: np.ndarray, source: Model | _Proposal, which: np.ndarray | slice) -> None:
    for field in dataclasses.fields(target):
        getattr(target, field.name)[where] = getattr(source, field.name)[which]


def _propose(allowed: Polytope, weights: np.ndarray, model: Model, least: np.ndarray) -> _Proposal:
    """Minimises the quadratic models; `least` [N] are the smallest weights of the objectives' terms."""
    free = allowed.free
    rows, limits = inequalities(allowed)
    proposed, prices = weights.copy(), np.zeros((len(weights), len(limits)))
    if len(weights) and len(free):
        curvature = model.hessian[:, free[:, None], free]
        slope = model.gradient[:, free] - np.einsum("nij,nj->ni", curvature, weights[:, free])
        proposed[:, free], prices = quadratic.minimize(curvature, slope, rows, limits, allowed.start[free])
        proposed = _snap(allowed, proposed, prices)
    step = proposed - weights
    bend = np.einsum("nij,nj->ni", model.hessian, step)
    linear, square = ((a * step).sum(axis=1) for a in (model.gradient, bend))
    # If no s changes the argument of a term by a share of more than |s|, |s|² = sᵀHs / c, then f(x + s) is at least
    # f(x) + g·s + c(|s| − log(1 + |s|)) and at most f(x) + g·s + cω, ω = −|s| − log(1 − |s|). A plane of slope g + Hs
    # is above the first by cω at most. The smallest weight of a term is such a c; often a far larger one is known.
    least = np.maximum(least, _stiffness(model.hessian[:, free[:, None], free], weights[:, free]))
    distance = np.sqrt(np.maximum(square, 0) / least)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = least * np.where(distance < 1, -distance - np.log1p(-distance), np.inf)
    tangent, model_gap = (
        _linear_gap(allowed, weights, slope, prices) for slope in (model.gradient, model.gradient + bend)
    )
    before = np.maximum(np.minimum(tangent, model_gap + bound), 0)
    return _Proposal(
        proposed, model.value + linear + square / 2, np.maximum(model_gap + linear + 2 * bound, 0), before, prices
    )


def _stiffness(curvature_NxFxF: np.ndarray, weights_NxF: np.ndarray) -> np.ndarray:
    """[N] the largest c so that |s_k| ≤ λ_k √(sᵀHs / c) for all k and all changes s of no sum.

    Then s·p, for no matter what p, is at most that share of λ·p. Of |s_k|² / sᵀHs the inverse of H on these changes has
    the largest on its diagonal. Eigenvalues are taken as less by what rounding could have added.
    """
    f = weights_NxF.shape[1]
    if f < 2:
        return np.zeros(len(weights_NxF))
    basis = np.linalg.qr(np.column_stack([np.ones(f), np.eye(f)[:, 1:]]))[0][:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ curvature_NxFxF @ basis)
    values = values - f * 1e-14 * np.abs(curvature_NxFxF).max(axis=(1, 2))[:, None]
    spread = ((basis @ vectors) ** 2 / np.maximum(values, np.finfo(float).tiny)[:, None]).sum(axis=2)
    return (weights_NxF**2 / spread).min(axis=1)


def _linear_gap(allowed: Polytope, weights: np.ndarray, slopes: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """[N] bounds on how much smaller than at the weights the linear functions get among the allowed mixtures."""
    cap_price = prices[:, 2 * len(allowed.free) :]
    least = least_linear(allowed, slopes + cap_price @ allowed.cap_rows) - cap_price @ allowed.cap_limits
    return (slopes * weights).sum(axis=1) - least


def _snap(allowed: Polytope, weights: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Puts weights on the bounds that bind; what that changes in the sum goes to the weight with the most room."""
    free = allowed.free
    low, high, x = allowed.lower[free], allowed.upper[free], weights[:, free]
    to_low, to_high = x - low, high - x
    x = np.where(to_low < np.minimum(prices[:, : len(free)], 1e-6), low, x)
    x = np.where(to_high < np.minimum(prices[:, len(free) : 2 * len(free)], 1e-6), high, x)
    snapped = weights.copy()
    snapped[:, free] = x
    room, missing = np.minimum(x - low, high - x), 1 - snapped.sum(axis=1)
    snapped[np.arange(len(x)), free[np.argmax(room, axis=1)]] += np.clip(missing, -room.max(axis=1), room.max(axis=1))
    return snapped
