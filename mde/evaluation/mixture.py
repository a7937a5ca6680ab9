"""Losses of a mixture of experts for very many candidate weights at once.

The probability of a token under the mixture of data experts is `p(x_t) = Σ_k λ_k p_k(x_t)` (MDE, arXiv 2502.15950,
eq. 1), so for all candidates it is one product of [T, K] probabilities and [K, C] weights, and what remains is a
logarithm of every entry and a sum over tokens. `kernel` says how it is done on the devices.

With an exponent τ > 0 the weights follow the prefix: expert k's weight at position t of a sequence is
`λ_k exp(τ Σ_{s<t} log p_k(x_s))`, normalised, and the loss is the difference of two sums of the same kind. τ = 1 is
the exact Bayes mixture of sequence probabilities (MixMin's objective; proposition 3.1 of the MDE paper), which
telescopes to one term a sequence.

Shapes: T tokens, K experts, C candidates, J evaluation domains.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mde.errors import UserError
from mde.evaluation.kernel import Term, TermBuilder
from mde.optimization import simplex

_CHUNK = 1 << 19  # log-probs that are in float64 at a time

Terms = tuple[Term, ...]  # a sum and, for τ between 0 and 1, one that is taken from it


class MixtureLosses:
    """Losses of any mixture of experts on text that was scored once; prepare it once, call it often.

    Text that fits into `memory` is kept on the devices, in a form that depends on τ. Other text is read in every call,
    block by block, each block once for all candidates and all τ.

    Args:
      log_probs: [T, K] log-probabilities in nats of the scored tokens under each expert: an array, or anything with a
        `shape` that gives rows as an array by `log_probs[start:stop]` (`np.memmap`, a view of stored columns).
      segment_ids: [T] domain of each token, 0 … J − 1; each domain has at least one.
      sequence_ids: [T] numbers of the sequences, the tokens of one standing together in order; needed for τ > 0.
      bounds: in their stead, [S + 1] positions where sequences begin, and T.
      domains: names of the domains, or J; by default the largest segment id says how many there are.
      experts: names of the experts, for messages.
      bytes: [J] UTF-8 bytes of each domain's text: losses are then bits per byte (total bits over total bytes).
      memory: bytes that tokens may take on the host and on each device.

    Raises:
      UserError: an empty domain, a sequence that is torn or reaches into another domain; when log-probs are read, which
        is at once if they fit, NaN or a positive number, a token that is impossible under every expert.
    """

    def __init__(
        self,
        log_probs: Any,
        segment_ids: npt.ArrayLike,
        sequence_ids: npt.ArrayLike | None = None,
        *,
        bounds: npt.ArrayLike | None = None,
        domains: int | Sequence[str] | None = None,
        experts: Sequence[str] | None = None,
        bytes: npt.ArrayLike | None = None,
        memory: int = 1 << 31,
    ):
        self._text = Text(log_probs, segment_ids, sequence_ids, bounds, domains, experts)
        self._units = self._text.counts if bytes is None else _bits(bytes, self._text.domains)
        self._memory = memory
        self._kept: dict[tuple[float, int], Terms] = {}  # by τ and number of devices
        if self._fits(1):
            self._prepared([0.0], jax.device_count())

    def __call__(self, weights: Any, tau: Any = 0.0) -> Any:
        """Losses of mixtures.

        Args:
          weights: [..., K] mixtures. Arrays are checked to lie on the simplex and give float64. Traced ones, under
            `jit`, `grad`, `jacrev`, `jacfwd` or `vmap`, may have any sum and give float32: the loss is that of
            `log Σ_k λ_k p_k` as it stands, nothing is normalised, and so is the derivative by each λ_k. There are no
            second derivatives.
          tau: [...] exponents in [0, 1], broadcast against the leading axes of the weights, so `taus[:, None]` asks for
            every τ of every mixture; for traced weights one number.

        Returns:
          [..., J] nats per token, or bits per byte; infinite where a mixture rules out a token.

        Raises:
          UserError: weights off the simplex; τ outside [0, 1], or above 0 without sequences; traced weights and text
            that does not fit into `memory`.
        """
        if not isinstance(weights, jax.core.Tracer):
            return self._evaluate(weights, tau, gradients=False)[0]
        self._text.check_taus([tau])
        if not self._fits(1):
            raise UserError(
                f"memory={self._memory} does not hold {len(self._text)} tokens, as traced weights need; "
                "`value_and_grad` does without"
            )
        with jax.ensure_compile_time_eval():
            terms = self._prepared([float(tau)], _devices_when_traced())[0]
        sums = _traced_sums(weights.reshape(-1, weights.shape[-1]), terms)
        return (sums / -self._units.astype(np.float32)).reshape(*weights.shape[:-1], -1)

    def value_and_grad(self, weights: npt.ArrayLike, tau: npt.ArrayLike = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Losses [..., J] and all their derivatives by the weights [..., J, K], float64, for arrays of weights.

        The derivative by an expert of weight 0 is there too: it says what weight would bring. It is infinite where
        float32 has no number for it (a token exp(88) times likelier than under those with weight). Tokens that the
        mixture rules out add nothing to it.
        """
        return self._evaluate(weights, tau, gradients=True)

    def _evaluate(self, weights: npt.ArrayLike, tau: npt.ArrayLike, gradients: bool) -> tuple[np.ndarray, np.ndarray]:
        weights = np.asarray(weights, np.float64)
        shape = np.broadcast_shapes(weights.shape[:-1], np.shape(tau))
        mixtures = simplex.check_mixtures(
            np.broadcast_to(weights, (*shape, *weights.shape[-1:])).reshape(-1, *weights.shape[-1:]),
            self._text.experts,
            where="weights",
        )
        taus, tau_of = np.unique(np.broadcast_to(np.asarray(tau, np.float64), shape), return_inverse=True)
        self._text.check_taus(taus.tolist())
        sums = np.zeros((len(mixtures), len(self._units)))
        slopes = np.zeros((*sums.shape, mixtures.shape[1] if gradients else 0))
        for terms_of in self._passes(taus.tolist()):
            for i, terms in enumerate(terms_of):
                rows = np.flatnonzero(tau_of.ravel() == i)
                sums[rows] += _difference([term.sums(mixtures[rows]) for term in terms])
                if gradients:
                    slopes[rows] += _difference([term.gradients(mixtures[rows]) for term in terms])
        losses, slopes = -sums / self._units, -slopes / self._units[:, None]
        return losses.reshape(*shape, losses.shape[1]), slopes.reshape(*shape, *slopes.shape[1:])

    def _passes(self, taus: list[float]) -> Iterator[list[Terms]]:
        """The terms of each τ: of all of the text if it fits, else of one block of it after another."""
        if self._fits(len(taus)):
            yield self._prepared(taus, jax.device_count())
            return
        carry = None
        size = self._block(len(taus))
        for start in range(0, len(self._text), size):
            stop = min(start + size, len(self._text))
            terms, carry = self._text.terms(taus, start, stop, jax.device_count(), carry)
            yield terms

    def _prepared(self, taus: Sequence[float], devices: int) -> list[Terms]:
        """The terms of all of the text, read once for all τ; those of other calls make room if they must."""
        wanted = [(tau, devices) for tau in taus]
        missing = [key for key in wanted if key not in self._kept]
        if missing:
            if not self._fits(len(self._kept) + len(missing)):
                self._kept = {key: self._kept[key] for key in wanted if key in self._kept}
            terms, _ = self._text.terms([tau for tau, _ in missing], 0, len(self._text), devices)
            self._kept.update(zip(missing, terms, strict=True))
        return [self._kept[key] for key in wanted]

    def _fits(self, n_taus: int) -> bool:
        return self._block(n_taus) >= len(self._text)

    def _block(self, n_taus: int) -> int:
        """Tokens that may be prepared at a time: for each τ two terms, each a probability and octaves an expert in
        float32, and once more as much while they are dealt to the devices."""
        return max(1, self._memory // (32 * (len(self._text.experts) + 1) * max(1, n_taus)))


def mixture_nll(
    log_probs: Any,
    segment_ids: npt.ArrayLike,
    weights: Any,
    *,
    tau: Any = 0.0,
    sequence_ids: npt.ArrayLike | None = None,
    **options: Any,
) -> Any:
    """Losses [C, J] of the mixtures `weights` [C, K], in nats per token; see `MixtureLosses` for all arguments."""
    return MixtureLosses(log_probs, segment_ids, sequence_ids, **options)(weights, tau)


def _bits(bytes_J: npt.ArrayLike, domains: Sequence[str]) -> np.ndarray:
    """What sums in nats are divided by to be bits per byte."""
    sizes = np.asarray(bytes_J, np.float64)
    if sizes.shape != (len(domains),) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UserError(f"bytes={sizes.tolist()}: expected a positive number for each of {', '.join(domains)}")
    return sizes * np.log(2)


def _difference(found: list[np.ndarray]) -> np.ndarray:
    """The first, less the second if there is one."""
    if len(found) == 1:
        return found[0]
    with np.errstate(invalid="ignore"):
        # Where nothing is left of a prefix, the token that left nothing has made the sum −inf already.
        return found[0] - np.where(np.isneginf(found[1]), 0, found[1])


def _devices_when_traced() -> int:
    """All, or one on CPUs: collectives of virtual devices can wait for each other for ever when a caller has several
    calls under way."""
    return 1 if jax.default_backend() == "cpu" else jax.device_count()


@jax.custom_jvp
def _traced_sums(weights_CxK: jax.Array, terms: Terms) -> jax.Array:
    """[C, J] sums of logarithms, float32.

    The kernel needs mixtures that sum to one, or products of eight rows could leave float32. So weights are divided by
    their sum, whose logarithm counts once per row.
    """
    mixtures, total_Cx1 = _on_simplex(weights_CxK)
    shift = jnp.log(total_Cx1)
    found = [term.traced(False, mixtures) + (term.offsets + term.counts * shift) for term in terms]
    return functools.reduce(jnp.subtract, found)


@_traced_sums.defjvp
def _traced_sums_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """The derivatives of all C × J sums are found in one pass beside them; what is asked for is a product with them."""
    (weights_CxK, terms), (change_CxK, _) = primals, tangents
    mixtures, total_Cx1 = _on_simplex(weights_CxK)
    slopes_CxKxJ = functools.reduce(jnp.subtract, [term.traced(True, mixtures) for term in terms])
    return _traced_sums(weights_CxK, terms), jnp.einsum("ckj,ck->cj", slopes_CxKxJ / total_Cx1[..., None], change_CxK)


def _on_simplex(weights_CxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights over their sum [C, K], and the sum [C, 1]; uniform weights where there are none to divide."""
    total = weights_CxK.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, weights_CxK / total, 1 / weights_CxK.shape[1]), total


class Text:
    """Log-probs [T, K] of T tokens in J domains under K experts, and which tokens share a prefix.

    The arguments are those of `MixtureLosses`.
    """

    def __init__(
        self,
        log_probs: Any,
        segment_ids: npt.ArrayLike,
        sequence_ids: npt.ArrayLike | None,
        bounds: npt.ArrayLike | None,
        domains: int | Sequence[str] | None,
        experts: Sequence[str] | None,
    ):
        self.log_probs, self.segment_ids = log_probs, _whole(segment_ids)
        shape = tuple(log_probs.shape)
        if len(shape) != 2 or self.segment_ids.shape != shape[:1]:
            raise UserError(f"log_probs {shape} and segment_ids {self.segment_ids.shape}: expected [T, K] and [T]")
        self.experts = _names("experts", experts, shape[1])
        self.domains, self.counts = _domains(self.segment_ids, domains)
        self.starts = _starts(sequence_ids, bounds, self.segment_ids)

    def __len__(self) -> int:
        """T."""
        return len(self.segment_ids)

    def check_taus(self, taus: Sequence[float]) -> None:
        """Raises UserError at a τ that this text has no terms for."""
        for tau in taus:
            if not 0 <= tau <= 1:
                raise UserError(f"tau={tau} must lie in [0, 1]")
            if tau > 0 and self.starts is None:
                raise UserError(f"tau={tau} needs sequence_ids or bounds: which tokens share a prefix")

    def terms(
        self, taus: Sequence[float], start: int, stop: int, devices: int, carry: np.ndarray | None = None
    ) -> tuple[list[Terms], np.ndarray]:
        """The terms of each τ for the tokens from `start` to `stop`, which are read once.

        Args:
          taus: exponents that were checked.
          start: the first token.
          stop: the one behind the last.
          devices: how many the terms are for.
          carry: [K] sums over the part of a sequence that lies before `start`, as the call before returned them.

        Returns:
          The terms, and the sums over the part of a sequence that `stop` cuts off.
        """
        sizes = len(self.domains), len(self.experts), devices
        builders = [
            [TermBuilder(self._domains_of(tau, start, stop), *sizes) for _ in range(2 if 0 < tau < 1 else 1)]
            for tau in taus
        ]
        carry = np.zeros(len(self.experts)) if carry is None else carry
        for first, rows in self.chunks(start, stop):
            self._check(rows, first)
            if max(taus) > 0:
                before, carry, ends = self._prefixes(np.asarray(rows, np.float64), first, carry)
            for tau, (builder, *prefix) in zip(taus, builders, strict=True):
                if tau == 0:
                    builder.add(rows)
                elif tau == 1:
                    builder.add((before + rows)[ends])
                else:
                    builder.add(tau * before + rows)
                    prefix[0].add(tau * before)
        return [tuple(builder.finish() for builder in of_tau) for of_tau in builders], carry

    def _domains_of(self, tau: float, start: int, stop: int) -> np.ndarray:
        """Domains of the rows that the tokens from `start` to `stop` make: one a token, or for τ = 1 one a sequence."""
        if tau < 1:
            return self.segment_ids[start:stop]
        assert self.starts is not None
        ends = np.append(self.starts[1:], len(self)) - 1
        return self.segment_ids[ends[slice(*np.searchsorted(ends, [start, stop]))]]

    def _prefixes(self, rows: np.ndarray, first: int, carry: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums over the earlier tokens of each token's sequence [n, K], the sums that go on behind the rows [K], and
        which rows end a sequence [n]."""
        assert self.starts is not None
        here = slice(*np.searchsorted(self.starts, [first, first + len(rows)]))
        begins = np.zeros(len(rows) + 1, bool)
        begins[self.starts[here] - first] = True
        following = first + len(rows)
        begins[-1] = following == len(self) or self.starts[min(here.stop, len(self.starts) - 1)] == following
        start_of = np.maximum.accumulate(np.where(begins[:-1], np.arange(len(rows)), -1))

        def sums_before(values: np.ndarray, carried: np.ndarray) -> np.ndarray:
            sums = np.cumsum(values, axis=0) - values
            return sums - np.where(start_of[:, None] < 0, -carried, sums[start_of])

        ruled_out = np.isneginf(rows)
        before = sums_before(np.where(ruled_out, 0, rows), np.where(np.isneginf(carry), 0, carry))
        if ruled_out.any() or np.isneginf(carry).any():  # apart, so that −inf stays inside its sequence
            before[sums_before(ruled_out.astype(float), np.isneginf(carry).astype(float)) > 0] = -np.inf
        return before, np.where(begins[-1], 0, before[-1] + rows[-1]), begins[1:]

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The log-probs from one token to another, some at a time: the number of the first, and [n, K] as stored."""
        size = max(1, _CHUNK // len(self.experts))
        stop = len(self) if stop is None else stop
        for first in range(start, stop, size):
            yield first, np.asarray(self.log_probs[first : min(first + size, stop)])

    def check(self) -> None:
        """Raises UserError at the first log-prob that is none, and at a token that no expert can produce."""
        for first, rows in self.chunks():
            self._check(rows, first)

    def _check(self, rows: np.ndarray, first: int) -> None:
        if rows.max() <= 0 and rows.min() > -np.inf:
            return
        bad = ~(rows <= 0)
        if bad.any():
            token, expert = np.argwhere(bad)[0]
            raise UserError(
                f"log-prob of {self._place(first + int(token))} under expert {self.experts[expert]!r} is "
                f"{rows[token, expert]}; expected a number of at most 0"
            )
        impossible = np.isneginf(rows).all(axis=1)
        if impossible.any():
            raise UserError(f"{self._place(first + int(np.argmax(impossible)))} is impossible under every expert")

    def _place(self, token: int) -> str:
        return f"token {token} (domain {self.domains[self.segment_ids[token]]!r})"


def _whole(segment_ids: npt.ArrayLike) -> np.ndarray:
    """Domain numbers as int64, which NumPy's counting takes; it does not take unsigned ones."""
    ids = np.asarray(segment_ids)
    if ids.size and ids.dtype.kind not in "iu":
        raise UserError(f"segment_ids: {ids.dtype} values, expected whole numbers: the domain of each token, from 0")
    far = ids > np.iinfo(np.int64).max if ids.dtype == np.uint64 else np.zeros(0, bool)
    if far.any():
        token = int(np.argmax(far))
        raise UserError(f"segment id of token {token} is {ids.flat[token]}, expected the number of a domain")
    return ids.astype(np.int64)


def _names(kind: str, names: Sequence[str] | None, count: int) -> list[str]:
    """The names of experts or domains, or numbers in their stead."""
    if names is None:
        return [str(i) for i in range(count)]
    if len(names) != count:
        raise UserError(f"{len(names)} names of {kind} ({', '.join(names)}), expected {count}")
    return list(names)


def _domains(segment_ids: np.ndarray, domains: int | Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Names and numbers of tokens of the J domains."""
    largest = int(segment_ids.max(initial=-1))
    count = largest + 1 if domains is None else domains if isinstance(domains, int) else len(domains)
    if largest >= count or segment_ids.min(initial=0) < 0:
        token = int(np.argmax((segment_ids >= count) | (segment_ids < 0)))
        raise UserError(f"segment id of token {token} is {segment_ids[token]}, expected one of {count} domains")
    names = _names("domains", None if domains is None or isinstance(domains, int) else domains, count)
    counts = np.bincount(segment_ids, minlength=count)
    if (counts == 0).any():
        raise UserError(f"domain {names[np.argmin(counts)]!r} has no token")
    return names, counts


def _starts(
    sequence_ids: npt.ArrayLike | None, bounds: npt.ArrayLike | None, segment_ids: np.ndarray
) -> np.ndarray | None:
    """[S] the first token of each sequence."""
    if sequence_ids is not None and bounds is not None:
        raise UserError("sequence_ids and bounds both say which tokens share a prefix; expected one of them")
    if bounds is not None:
        edges = np.asarray(bounds)
        if edges.ndim != 1 or edges[0] != 0 or edges[-1] != len(segment_ids) or (np.diff(edges) <= 0).any():
            raise UserError(f"bounds {edges}: expected ascending positions from 0 to {len(segment_ids)}")
        starts = edges[:-1]
    elif sequence_ids is not None:
        ids = np.asarray(sequence_ids)
        if ids.shape != segment_ids.shape:
            raise UserError(f"sequence_ids {ids.shape}, expected {segment_ids.shape}")
        starts = np.append(0, np.flatnonzero(ids[1:] != ids[:-1]) + 1)
        values, counts = np.unique(ids[starts], return_counts=True)
        if (counts > 1).any():
            raise UserError(f"the tokens of sequence {values[np.argmax(counts)]} do not stand together")
    else:
        return None
    inside = np.ones(len(segment_ids), bool)
    inside[starts] = False
    crossing = inside[1:] & (segment_ids[1:] != segment_ids[:-1])
    if crossing.any():
        token = int(np.argmax(crossing)) + 1
        raise UserError(f"token {token} is of another domain than the token before it in the same sequence")
    return starts
