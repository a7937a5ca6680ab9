"""Losses of merged models: the weighted average of the experts' parameters, run as one model.

The average `θ(λ) = Σ_k λ_k θ_k` stands for the model trained on the mixture λ (modular training and merging,
arXiv 2410.15661). Around a base it is `θ_0 + Σ_k λ_k (θ_k − θ_0)`, in which the base is one more expert whose weight
is what the others leave of 1.

Averages are formed inside the jitted program, one candidate a device at a time, so memory does not grow with the
number of candidates. Where there are fewer candidates than devices, the windows of text are cut over the rest.

Shapes: C candidates, K experts, J evaluation domains, N windows of L predicted tokens, T scored tokens.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.errors import UserError
from mde.evaluation import experts as stacks
from mde.evaluation.scoring import (
    MEMORY,
    EvaluationSet,
    check_vocabulary,
    filled_up,
    token_log_probs,
    windows_per_batch,
)
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.models.products import compiler_options
from mde.training.placement import mesh_of

Experts = decoder.Params | Iterable[decoder.Params]


class MergedLosses:
    """Losses of any average of the experts; prepare it once, call it often.

    Args:
      config: architecture of the experts.
      experts: parameters of the K experts: a tree for each, or one tree whose leaves have a leading axis K. With
        `names` they may come from a generator, and are then never held twice. Any floating dtype; averages are float32.
      data: the text.
      base: parameters θ_0 that the average is taken around; the weights may then be any numbers.
      names: of the experts, for messages; their numbers otherwise.
      batch_size: windows run through a merged model at a time; by default as many as keep a device busy.
      memory: bytes that the activations of a batch may take on a device, where `batch_size` is not given.

    Raises:
      UserError: experts whose parameters differ in names, shapes or dtypes from the model's or each other's, or are
        not finite: with the expert and the parameter; text of another vocabulary.
    """

    def __init__(
        self,
        config: DecoderConfig,
        experts: Experts,
        data: EvaluationSet,
        *,
        base: decoder.Params | None = None,
        names: Sequence[str] | None = None,
        batch_size: int | None = None,
        memory: int = MEMORY,
    ):
        check_vocabulary(config, data)
        self._config, self._data, self._around_base = config, data, base is not None
        self._stack = stacks.stack(config, experts, names, base, _mesh(jax.device_count()))
        self._names = list(names or map(str, range(len(self._stack[0]) - self._around_base)))
        self._batch = batch_size or windows_per_batch(config, len(data.tokens), data.seq_len, memory)
        self._placed: dict[int, tuple[jax.Array, jax.Array]] = {}  # the windows, by the way the devices are cut

    def __call__(self, weights: np.ndarray, advance: Callable[[int], object] = lambda candidates: None) -> np.ndarray:
        """[C, K] weights to [C, J] losses in nats per token, float64.

        Args:
          weights: mixtures on the simplex; around a base any finite numbers. Experts that are left out have 0.
          advance: told how many more candidates are done.

        Raises:
          UserError: weights that are neither; a loss that is not a number.
        """
        domains, owners, counts = self._data.domains, self._data.window_domains, self._data.token_counts
        rows: list[np.ndarray] = []
        for sums_CxN in self._blocks(weights, per_token=False):
            rows += [-np.bincount(owners, sums_N, len(domains)) / counts for sums_N in sums_CxN]
            advance(len(sums_CxN))
        losses = np.array(rows).reshape(-1, len(domains))
        bad = np.isnan(losses)
        if bad.any():
            c, j = np.argwhere(bad)[0]
            raise UserError(
                f"candidate {c}, domain {domains[j]!r}: the merged model's loss is nan; weights {weights[c]}"
            )
        return losses

    def token_log_probs(self, weights: np.ndarray) -> np.ndarray:
        """Log-probs in nats of the T scored tokens under each of the [C, K] merged models, [C, T] float32."""
        mask = self._data.mask
        blocks = [np.empty((0, int(mask.sum())), np.float32)]
        return np.concatenate([*blocks, *(block[:, mask] for block in self._blocks(weights, per_token=True))])

    def _blocks(self, weights: np.ndarray, per_token: bool) -> Iterator[np.ndarray]:
        """Sums [block, N] or log-probs [block, N, L]; a block is read while the next one is run."""
        weights = self._checked(weights)
        abreast = _candidates_abreast(len(weights))
        program = _program(self._config, abreast, per_token)
        windows = self._windows(abreast)
        unread: tuple[jax.Array, int] | None = None
        for start in range(0, len(weights), abreast):
            block = weights[start : start + abreast]
            filled = np.pad(block, ((0, abreast - len(block)), (0, 0)), mode="edge")
            running = program(self._stack, windows, filled), len(block)
            if unread is not None:
                yield np.asarray(unread[0])[: unread[1], : len(self._data.tokens)]
            unread = running
        if unread is not None:
            yield np.asarray(unread[0])[: unread[1], : len(self._data.tokens)]

    def _windows(self, abreast: int) -> tuple[jax.Array, jax.Array]:
        """Tokens and segments [batches, B, L + 1], on the devices."""
        if abreast not in self._placed:
            mesh, count = _mesh(abreast), len(self._data.tokens)
            step = self._batch * (mesh.size // abreast)
            filled = (filled_up(x, -(-count // step) * step) for x in (self._data.tokens, self._data.segments))
            batches = tuple(x.reshape(-1, self._batch, x.shape[1]) for x in filled)
            self._placed[abreast] = jax.device_put(batches, NamedSharding(mesh, P("data")))
        return self._placed[abreast]

    def _checked(self, weights: np.ndarray) -> np.ndarray:
        """[C, K] float32 weights, with one more column for the base."""
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 2 or weights.shape[1] != len(self._names):
            raise UserError(
                f"weights of shape {weights.shape}, expected [C, {len(self._names)}]: "
                f"one for each expert, {', '.join(self._names)}"
            )
        bad = ~np.isfinite(weights) if self._around_base else ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            c, k = np.argwhere(bad)[0]
            expected = "a finite number" if self._around_base else "zero or more (or a base)"
            raise UserError(f"candidate {c}, expert {self._names[k]!r}: weight {weights[c, k]}, expected {expected}")
        left = 1 - weights.sum(axis=1)
        if self._around_base:
            return np.column_stack([weights, left]).astype(np.float32)
        off = np.abs(left) > 1e-6  # what rounding to float32 leaves is less
        if off.any():
            c = int(np.argmax(off))
            raise UserError(f"candidate {c}: weights sum to {1 - left[c]:.9g}, expected 1 within 1e-6 (or a base)")
        return weights.astype(np.float32)


def merged_nll(
    config: DecoderConfig,
    experts: Experts,
    data: EvaluationSet,
    weights: np.ndarray,
    *,
    base: decoder.Params | None = None,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
) -> np.ndarray:
    """Losses [C, J] in nats per token of the averages `weights` [C, K] of the experts; see `MergedLosses`."""
    losses = MergedLosses(config, experts, data, base=base, names=names, batch_size=batch_size, memory=memory)
    return losses(weights)


def _candidates_abreast(candidates: int) -> int:
    """How many candidates the devices take at a time: one each, or fewer with several devices each if there are few."""
    devices = jax.device_count()
    return next(n for n in range(1, devices + 1) if devices % n == 0 and n >= min(candidates, devices))


@functools.cache
def _mesh(abreast: int) -> Mesh:
    return mesh_of((jax.device_count() // abreast, abreast), stacks.AXES)


@functools.cache
def _program(config: DecoderConfig, abreast: int, per_token: bool) -> Callable[..., jax.Array]:
    """The jitted program of a block of candidates: averages them, then runs batch by batch."""

    def run(params: decoder.Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens, segments = batch
        log_probs = token_log_probs(config, params, tokens, segments)
        if per_token:
            return log_probs
        return jnp.where(decoder.scored(tokens, segments, config.masked), log_probs, 0).sum(axis=1)

    def local(stacked: list[jax.Array], batches: tuple[jax.Array, ...], weights_CxK: jax.Array) -> jax.Array:
        params = stacks.average(config, stacked, weights_CxK)
        out = jax.lax.map(functools.partial(run, params), batches)
        return out.reshape(1, -1, *out.shape[2:])

    split = P("candidates", "data")
    in_specs = (P(None, stacks.AXES), P("data"), P())
    mapped = jax.shard_map(local, mesh=_mesh(abreast), in_specs=in_specs, out_specs=split, check_vma=False)
    return jax.jit(mapped, compiler_options=compiler_options())
