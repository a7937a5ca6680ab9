"""Scored text that is small enough to travel: what a page needs to compute the losses of any mixture of experts.

Every token is kept as long as there are few enough; of more text, the pseudo-tokens of `compression`. Logarithms of
probabilities are rounded to 16 bits, which moves a mean over thousands of tokens by far less than one step.

Shapes: K experts, J evaluation domains, M tokens or pseudo-tokens.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mde.evaluation.compression import compress

MOST = 1 << 20  # numbers that are kept: two bytes each
FARTHEST = 80.0  # nats below the likeliest expert: what is less likely, or impossible, counts as this


class Portable(NamedTuple):
    """`loss_j = offsets[j] − Σ_m counts[m] log Σ_k λ_k exp(−step · logs[m, k])` over the rows m of domain j.

    Attributes:
      logs: [M, K] uint16, in steps below the row's largest log-prob.
      step: nats.
      domains: [M] whose row it is.
      counts: [M] float32.
      offsets: [J] nats per token.
      error: [J] nats per token, the largest that was found; what rounding does to kept tokens is below 1e-5.
    """

    logs: np.ndarray
    step: float
    domains: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    error: np.ndarray


def portable(log_probs: Any, segment_ids: npt.ArrayLike, seed: int = 0) -> Portable:
    """The losses of all mixtures, in a few hundred kilobytes to two megabytes.

    Args:
      log_probs: [T, K] log-probabilities in nats; an array or a view that gives rows by `log_probs[a:b]`.
      segment_ids: [T] domain of each token.
      seed: of the pseudo-tokens.
    """
    owners = np.asarray(segment_ids)
    n_domains = int(owners.max()) + 1
    if log_probs.shape[0] * log_probs.shape[1] <= MOST:
        rows = _bounded(log_probs)
        largest = rows.max(axis=1)
        tokens = np.bincount(owners, minlength=n_domains)
        offsets = -np.bincount(owners, weights=largest, minlength=n_domains) / tokens
        below, counts, error = largest[:, None] - rows, (1 / tokens)[owners], np.zeros(n_domains)
    else:
        found = compress(_bounded(log_probs), owners, seed=seed)
        M = len(found.nodes)
        nodes = np.log(found.nodes)
        largest = nodes.max(axis=1)
        below = np.tile(largest[:, None] - nodes, (n_domains, 1))
        owners = np.repeat(np.arange(n_domains), M)
        counts = found.node_weights.T.ravel()
        offsets, error = found.offsets - largest @ found.node_weights, found.error
    step = max(float(below.max()) / np.iinfo(np.uint16).max, 1e-12)
    logs = np.round(below / step).astype(np.uint16)
    return Portable(logs, step, owners.astype(np.int32), counts.astype(np.float32), offsets, error)


def _bounded(log_probs: Any) -> np.ndarray:
    """[T, K] float64, no more than `FARTHEST` below the row's largest."""
    rows = np.asarray(log_probs[:], np.float64)
    return np.maximum(rows, rows.max(axis=1, keepdims=True) - FARTHEST)
