"""What experts say of an end task's choices, for any mixture of them: accuracy, and what comes before it.

A choice is a sequence of tokens after a context. Its log-probability under a mixture is, with τ = 0, that of the
mixture of data experts, `Σ_t log Σ_k λ_k p_k(x_t)` (arXiv 2502.15950, eq. 1), and with τ = 1 that of the Bayes mixture
of sequences, `log Σ_k λ_k Π_t p_k(x_t)`, which telescopes (proposition 3.1 there).

Shapes: T tokens of N choices of E examples, K experts, C candidates.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mde.errors import UserError
from mde.optimization import simplex

_BLOCK = 1 << 23  # numbers of a block of candidates


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of a task's examples, right and wrong ones of each.

    Attributes:
      log_probs: [T, K] log-probs in nats of their tokens under each expert, choice by choice.
      lengths: [N] tokens of each choice.
      bytes: [N] UTF-8 bytes of each choice.
      examples: [N] the example that each belongs to, 0 … E − 1, ascending.
      right: [N] whether it is right.

    Raises:
      UserError: lengths that do not add up; an example without a right or without a wrong choice.
    """

    log_probs: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray
    examples: np.ndarray
    right: np.ndarray

    def __post_init__(self) -> None:
        if self.lengths.sum() != len(self.log_probs) or (self.lengths < 1).any():
            raise UserError(f"{len(self.log_probs)} tokens for choices of {self.lengths.sum()} together")
        if (np.diff(self.examples) < 0).any():
            raise UserError("the choices of an example do not stand together")
        for kind, mask in (("right", self.right), ("wrong", ~self.right)):
            missing = np.setdiff1d(self.examples, self.examples[mask])
            if len(missing):
                raise UserError(f"example {missing[0]} has no {kind} choice")

    def mixed(self, weights: np.ndarray, tau: float) -> np.ndarray:
        """Log-probs [C, N] in nats of the choices under the mixtures `weights` [C, K]; −inf for one that is ruled out.

        Raises:
          UserError: weights off the simplex; τ other than 0 and 1.
        """
        if tau not in (0, 1):
            raise UserError(f"tau={tau}: the choices of a mixture are scored with 0 (MDE) or 1 (Bayes)")
        weights = simplex.check_mixtures(weights, [str(k) for k in range(self.log_probs.shape[1])], where="weights")
        starts = np.cumsum(self.lengths) - self.lengths
        rows = np.asarray(self.log_probs, np.float64)
        if tau == 1:
            rows = np.add.reduceat(rows, starts, axis=0)
        largest = rows.max(axis=1)
        largest = np.where(np.isneginf(largest), 0, largest)
        probabilities = np.exp(rows - largest[:, None])
        found = np.empty((len(weights), len(self.lengths)))
        for block in _blocks(len(weights), len(rows)):
            with np.errstate(divide="ignore"):
                mixed = np.log(probabilities @ weights[block].T) + largest[:, None]
            found[block] = (mixed if tau == 1 else np.add.reduceat(mixed, starts, axis=0)).T
        return found

    def summaries(self, scores: np.ndarray) -> "Summaries":
        """What log-probs [C, N] of the choices come to, over all examples; see `Summaries`."""
        begins = np.flatnonzero(np.diff(self.examples, prepend=-1))
        of_example = np.cumsum(np.diff(self.examples, prepend=self.examples[0]) > 0)
        parts = [self._summaries(scores[block], begins, of_example) for block in _blocks(*scores.shape)]
        return Summaries(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _summaries(self, scores: np.ndarray, begins: np.ndarray, of_example: np.ndarray) -> "Summaries":
        best_right = np.maximum.reduceat(np.where(self.right, scores, -np.inf), begins, axis=1)
        best_wrong = np.maximum.reduceat(np.where(self.right, -np.inf, scores), begins, axis=1)
        best = np.maximum(best_right, best_wrong)
        weights = np.exp(scores - np.where(np.isneginf(best), 0, best)[:, of_example])
        right = np.add.reduceat(np.where(self.right, weights, 0), begins, axis=1)
        every = np.add.reduceat(weights, begins, axis=1)
        expected = np.divide(right, every, out=np.zeros_like(right), where=every > 0)
        with np.errstate(invalid="ignore"):
            margin = best_right - best_wrong
        return Summaries((best_right > best_wrong).mean(axis=1), expected.mean(axis=1), margin.mean(axis=1))


class Summaries(NamedTuple):
    """Of each candidate, means over a task's examples, [C].

    Attributes:
      accuracy: how often a right choice has the highest score; a tie with a wrong one is a mistake.
      expected: the share of the right choices in the softmax of the scores, the accuracy of a model that draws.
      margin: the best right choice's score less the best wrong one's.
    """

    accuracy: np.ndarray
    expected: np.ndarray
    margin: np.ndarray


def _blocks(candidates: int, numbers: int) -> Iterator[slice]:
    """The candidates in parts of so many that each has no more than `_BLOCK` numbers."""
    size = max(1, _BLOCK // max(1, numbers))
    for start in range(0, candidates, size):
        yield slice(start, start + size)
