"""Epochs: how often a mixture at a budget repeats each domain."""

from collections.abc import Sequence

import numpy as np

LIMIT = 4.0  # up to four epochs cost next to nothing, sixteen most of what new text would give (arXiv 2305.16264)


def repeats(weights: np.ndarray, available_K: np.ndarray, budget: float | np.ndarray) -> np.ndarray:
    """How often each domain's text is read.

    Args:
        weights: [..., K] mixtures.
        available_K: [K] training tokens that each domain has.
        budget: training tokens in all: steps × sequences per step × predicted tokens per sequence; one, or [...].

    Returns:
        [..., K] epochs; infinite where a positive weight meets a domain without tokens.
    """
    weights, available_K = np.asarray(weights, float), np.asarray(available_K, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weights > 0, weights * np.asarray(budget)[..., None] / available_K, 0.0)


def warning(names: Sequence[str], epochs_K: np.ndarray, limit: float = LIMIT) -> str | None:
    """One line that names the domains read more than `limit` times, the most repeated first; None if there is none."""
    over = [k for k in np.argsort(-epochs_K, kind="stable") if epochs_K[k] > limit]
    if not over:
        return None
    return f"text is repeated more than {limit:g} times: " + ", ".join(f"{names[k]} {epochs_K[k]:.1f}" for k in over)
