"""Values, gradients and Hessians of many objectives, each at its own mixture, in one pass over the tokens.

Shapes: T rows (tokens, or sequences), K experts, J evaluation domains, N objectives, U units of resampling.
"""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mde import hosts
from mde.errors import UserError
from mde.evaluation.mixture import Text

_BLOCK_BYTES = 3_200_000  # a block and what is made of it stay in the cache
_BLOCKS = 4  # that a thread takes at once
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Model:
    """Second-order models of N objectives, each at its own mixture: [N], [N, K] and [N, K, K], nats per token."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray

    def at(self, which: np.ndarray) -> "Model":
        """Some of them."""
        return Model(self.value[which], self.gradient[which], self.hessian[which])


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows, tokens or sequences, and how much each counts in each objective.

    Attributes:
      log_probs: [T, K].
      segment_ids: [T] domains.
      experts: indices of the experts that count.
      unit_ids: [T] units of resampling, where there are any.
      domain_weights: [N, J] weight of a row of each domain: the domain's weight over its tokens.
      unit_counts: [N, U] how often a unit counts.
      pull: [K] weights of −log λ.
    """

    log_probs: np.ndarray
    segment_ids: np.ndarray
    experts: np.ndarray
    unit_ids: np.ndarray | None = None
    domain_weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    unit_counts: np.ndarray | None = None
    pull: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def objectives(self) -> int:
        """N."""
        return len(self.domain_weights)

    def weigh(self, tokens: np.ndarray | None, objectives: np.ndarray, unit_counts: np.ndarray | None) -> "Rows":
        """The same rows for `objectives` [N, J] over means of tokens; `tokens` [T] are those that a row stands for, one
        by default.

        Raises:
          UserError: objectives or counts that are negative or of another shape; a domain that counts without tokens.
        """
        domains = int(self.segment_ids.max()) + 1
        objectives = np.asarray(objectives, np.float64)
        if objectives.ndim != 2 or objectives.shape[1] != domains:
            raise UserError(f"objectives {objectives.shape}: expected one weight for each of the {domains} domains")
        wrong = ~(np.isfinite(objectives) & (objectives >= 0))
        if wrong.any():
            n, j = np.argwhere(wrong)[0]
            raise UserError(f"objective {n}: domain {j} has weight {objectives[n, j]}, expected zero or more")
        if not (objectives.sum(axis=1) > 0).all():
            raise UserError(f"objective {np.argmin(objectives.sum(axis=1))}: every weight is zero")
        if unit_counts is None:
            totals = np.bincount(self.segment_ids, tokens, domains)[None]
        else:
            totals = self._unit_totals(tokens, objectives, unit_counts)
        empty = (objectives > 0) & (totals == 0)
        if empty.any():
            n, j = np.argwhere(empty)[0]
            raise UserError(f"objective {n}: domain {j} has no token that counts")
        per_token = np.divide(objectives, totals, out=np.zeros_like(objectives), where=totals > 0)
        return dataclasses.replace(self, domain_weights=per_token, unit_counts=unit_counts)

    def _unit_totals(self, tokens: np.ndarray | None, objectives: np.ndarray, unit_counts: np.ndarray) -> np.ndarray:
        """[N, J] tokens of each domain as often as they count."""
        if self.unit_ids is None:
            raise UserError("unit_counts need unit_ids: which unit each token belongs to")
        units, domains = int(self.unit_ids.max()) + 1, objectives.shape[1]
        if unit_counts.shape != (len(objectives), units) or not (unit_counts >= 0).all():
            raise UserError(
                f"unit_counts {unit_counts.shape}: expected a count for each of {len(objectives)} objectives and "
                f"{units} units, zero or more"
            )
        each = 1.0 if tokens is None else tokens
        sizes = [np.bincount(self.unit_ids, each * (self.segment_ids == j), units) for j in range(domains)]
        return unit_counts @ np.stack(sizes, axis=1)

    def least(self) -> np.ndarray:
        """[N] the smallest positive weight of any term of each objective, or less."""
        rows = self.domain_weights
        if self.unit_counts is not None:
            rows = rows * np.where(self.unit_counts > 0, self.unit_counts, np.inf).min(axis=1, keepdims=True)
        terms = np.hstack([rows, np.tile(self.pull, (self.objectives, 1))])
        return np.where(terms > 0, terms, np.inf).min(axis=1)

    def sample(self, size: int) -> "Rows":
        """About `size` rows from all over, and as many of a small domain as of an average one if it has them; they
        weigh what all of it does."""
        rng = np.random.default_rng(0)
        total, counts = len(self.segment_ids), np.bincount(self.segment_ids)
        chosen = ((np.arange(size) + rng.random(size)) * (total / size)).astype(np.int64)
        drawn = np.bincount(self.segment_ids[chosen], minlength=len(counts))
        for j in np.flatnonzero((drawn < size // len(counts) // 4) & (drawn < counts)):
            mine = rng.choice(np.flatnonzero(self.segment_ids == j), size // len(counts))
            chosen = np.append(chosen[self.segment_ids[chosen] != j], mine)
            drawn[j] = len(mine)
        chosen.sort()
        return dataclasses.replace(
            self,
            log_probs=self.log_probs[chosen],
            segment_ids=self.segment_ids[chosen],
            unit_ids=None if self.unit_ids is None else self.unit_ids[chosen],
            domain_weights=self.domain_weights * (counts / drawn),
        )

    def evaluate(self, weights_NxK: np.ndarray, which: np.ndarray, dtype: npt.DTypeLike = np.float64) -> Model:
        """Models of the objectives `which` [N] at their weights; a value of infinity has no gradient.

        With float32 as `dtype`, which takes half the time, they are right to about 1e-6.
        """
        experts = self.experts
        domain_weights, mixtures = (x.astype(dtype) for x in (self.domain_weights[which], weights_NxK[:, experts]))
        unit_counts = None if self.unit_counts is None else self.unit_counts[which]

        def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
            probs, largest = self._probs(rows, dtype)
            counted = domain_weights.take(self.segment_ids[rows], axis=1)
            if unit_counts is not None and self.unit_ids is not None:
                counted *= unit_counts.take(self.unit_ids[rows], axis=1)
            mixed = mixtures @ probs
            if not mixed.all():
                mixed[counted == 0] = 1  # what does not count may be impossible
            value = -np.einsum("nt,nt->n", counted, np.log(mixed)) - counted @ largest
            return value.astype(np.float64), _products(counted / (mixed * mixed), probs).astype(np.float64)

        n, k = weights_NxK.shape
        hessian = np.zeros((n, k, k))
        numbers = 3 * self.objectives + len(experts) * (len(experts) + 5) // 2
        blocks = _map(block, len(self.segment_ids), numbers * np.dtype(dtype).itemsize)
        value, curvature = (np.asarray(sum(parts)) for parts in zip(*blocks, strict=True))
        left, right = np.triu_indices(len(experts))
        hessian[:, experts[left], experts[right]] = hessian[:, experts[right], experts[left]] = curvature
        # A gradient of degree −1 in λ is −Hλ (Euler): sums of positive terms, in which nothing cancels.
        gradient = -np.einsum("nij,nj->ni", hessian, weights_NxK)
        return self._pulled(weights_NxK, Model(value, gradient, hessian))

    def _probs(self, rows: slice, dtype: npt.DTypeLike) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [K, rows] of a block over the largest of their row, and the logarithms [rows] of those."""
        chosen = self.log_probs[rows]
        if len(self.experts) < chosen.shape[1]:
            chosen = chosen[:, self.experts]
        logs = chosen.T.astype(np.promote_types(chosen.dtype, dtype), order="C")
        largest = logs.max(axis=0)
        logs -= largest
        logs = logs.astype(dtype, copy=False)
        return np.exp(logs, out=logs), largest

    def _pulled(self, weights: np.ndarray, model: Model) -> Model:
        """With the pull's KL(prior ‖ λ) added."""
        held = np.flatnonzero(self.pull)
        pull = self.pull[held]
        if not len(held):
            return model
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = pull / weights[:, held]
            model.gradient[:, held] -= slope
            model.hessian[:, held, held] += slope / weights[:, held]
            shares = pull / pull.sum()
            return dataclasses.replace(model, value=model.value + np.log(shares / weights[:, held]) @ pull)


def _products(weights_NxT: np.ndarray, probs_KxT: np.ndarray) -> np.ndarray:
    """[N, K (K + 1) / 2] weighted sums of the products of every two experts' probabilities."""
    left, right = np.triu_indices(len(probs_KxT))
    if len(weights_NxT) < 4:  # the products of all pairs pay from here on
        return np.stack([((probs_KxT * row) @ probs_KxT.T)[left, right] for row in weights_NxT])
    return weights_NxT @ (probs_KxT[left] * probs_KxT[right]).T


def rows_of(text: Text, tau: float, allowed: np.ndarray, unit_ids: np.ndarray | None) -> tuple[Rows, np.ndarray | None]:
    """The rows: tokens for tau = 0, sequences for tau = 1, and the number of tokens [T] that each of these stands for.

    Raises:
      UserError: what is no log-prob; a row impossible under every expert of `allowed` [K].
    """
    text.check_taus([tau])
    if tau not in (0, 1):
        raise UserError(f"tau={tau}: only the losses of tau=0 and tau=1 are convex")
    if unit_ids is not None and unit_ids.shape != (len(text),):
        raise UserError(f"unit_ids {unit_ids.shape}: expected one for each of {len(text)} tokens")
    experts = np.flatnonzero(allowed)
    text.check(experts)
    if tau == 0:
        return Rows(text.log_probs, text.segment_ids, experts, unit_ids), None
    starts = text.starts
    assert starts is not None
    sums = np.add.reduceat(text.log_probs, starts, dtype=np.float64)
    impossible = np.isneginf(sums[:, experts]).all(axis=1)
    if impossible.any():
        raise UserError(f"sequence {np.argmax(impossible)} is impossible under every expert that is allowed")
    lengths = np.diff(starts, append=len(text))
    units = None if unit_ids is None else unit_ids[starts]
    return Rows(sums, text.segment_ids[starts], experts, units), lengths.astype(np.float64)


def _map(block: Callable[[slice], _Result], rows: int, row_bytes: int) -> Iterator[_Result]:
    """Results of blocks of rows in their order, whatever the threads; what is made of a row takes so many bytes."""
    size = max(64, _BLOCK_BYTES // row_bytes)

    def several(start: int) -> list[_Result]:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a loss of infinity tells itself
            return [block(slice(i, i + size)) for i in range(start, min(start + _BLOCKS * size, rows), size)]

    with ThreadPoolExecutor(hosts.cores()) as threads:
        for results in threads.map(several, range(0, rows, _BLOCKS * size)):
            yield from results
