"""Token log-probabilities of models on the evaluation domains.

Shapes: N windows, L predicted tokens a window, T scored tokens in all, J evaluation domains.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from mde.data.tokens import TokenStore
from mde.errors import UserError
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.training.pool import on_pool, stack, unstack


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The text that every model is scored on: the first whole documents of each domain, cut into windows.

    Attributes:
      domains: names of the J evaluation domains.
      tokens: [N, L + 1] int32.
      segments: [N, L + 1] int32 document numbers, 0 for padding.
      window_domains: [N] index of the domain that each window belongs to.
      bytes: [J] UTF-8 bytes of the text.
    """

    domains: tuple[str, ...]
    tokens: np.ndarray
    segments: np.ndarray
    window_domains: np.ndarray
    bytes: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """[N, L] which targets are scored; log-probs of T scored tokens are `x[mask]`, window by window."""
        return decoder.target_mask(self.segments)

    @property
    def segment_ids(self) -> np.ndarray:
        """[T] index of the domain of every scored token."""
        return np.repeat(self.window_domains, self.mask.sum(axis=1))

    @property
    def sequence_ids(self) -> np.ndarray:
        """[T] numbers the stretches of text that a model read as one: a document's part of a window."""
        window = np.arange(len(self.tokens))[:, None] * (self.tokens.shape[1] + 1)
        _, ids = np.unique((window + self.segments[:, 1:])[self.mask], return_inverse=True)
        return ids.astype(np.int32)

    def losses(self, log_probs_T: np.ndarray) -> np.ndarray:
        """Mean loss of each domain in nats per token, [J] float64."""
        sums = np.bincount(self.segment_ids, weights=-log_probs_T.astype(np.float64), minlength=len(self.domains))
        return sums / self.token_counts

    @property
    def token_counts(self) -> np.ndarray:
        """[J] scored tokens of each domain."""
        return np.bincount(self.segment_ids, minlength=len(self.domains))

    def subset(self, windows_per_domain: int) -> "EvaluationSet":
        """The first windows of each domain; `bytes` are scaled by the share of tokens that is left."""
        keep = np.concatenate(
            [np.flatnonzero(self.window_domains == j)[:windows_per_domain] for j in range(len(self.domains))]
        )
        part = dataclasses.replace(
            self, tokens=self.tokens[keep], segments=self.segments[keep], window_domains=self.window_domains[keep]
        )
        return dataclasses.replace(part, bytes=self.bytes * part.token_counts / self.token_counts)


def evaluation_set(stores: Mapping[str, TokenStore], tokens_per_domain: int, seq_len: int) -> EvaluationSet:
    """Takes whole documents of each store up to `tokens_per_domain`.

    Raises:
      UserError: a domain has no document.
    """
    tokens, segments, domains, sizes = [], [], [], []
    for j, (name, store) in enumerate(stores.items()):
        n_tokens, n_bytes = store.whole_documents(tokens_per_domain)
        if n_tokens < 2:
            raise UserError(f"evaluation domain {name!r} is empty: no document in {store.directory}")
        for start in range(0, n_tokens - 1, seq_len):
            window = store.read(start, start + seq_len + 1)
            beyond = np.arange(start, start + seq_len + 1) >= n_tokens
            tokens.append(window.tokens)
            segments.append(np.where(beyond, 0, window.segments))
            domains.append(j)
        sizes.append(n_bytes)
    return EvaluationSet(
        tuple(stores), np.stack(tokens), np.stack(segments), np.asarray(domains), np.asarray(sizes, np.float64)
    )


def batched_windows(data: EvaluationSet, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments as [batches, batch_size, L + 1], filled up with padding windows."""
    missing = -len(data.tokens) % batch_size
    pad = lambda x: np.pad(x, ((0, missing), (0, 0))).reshape(-1, batch_size, x.shape[1])  # noqa: E731
    return pad(data.tokens), pad(data.segments)


class Scorer:
    """Scores models of one architecture, one a device at a time, on one evaluation set."""

    def __init__(self, config: DecoderConfig, data: EvaluationSet, mesh: Mesh, batch_size: int = 16):
        self._mesh = mesh
        self._data = data
        batches = batched_windows(data, batch_size)
        self._batches = stack(mesh, [batches] * mesh.size)

        def log_probs(params: decoder.Params, batches: tuple[jax.Array, jax.Array]) -> jax.Array:
            return jax.lax.map(lambda batch: decoder.token_log_probs(config, params, *batch), batches)

        self._score = on_pool(mesh, log_probs, donate=False)

    def __call__(self, models: Sequence[decoder.Params]) -> list[np.ndarray]:
        """Log-probs in nats of the T scored tokens, one [T] float32 array for each of at most a mesh full of models."""
        if len(models) > self._mesh.size:
            raise ValueError(f"{len(models)} models on a mesh of {self._mesh.size}")
        filled = [*models, *[models[-1]] * (self._mesh.size - len(models))]
        scored = unstack(self._score(stack(self._mesh, filled), self._batches))
        mask = self._data.mask
        flat = [x.reshape(-1, x.shape[-1])[: len(mask)][mask] for x in scored]
        return flat[: len(models)]
