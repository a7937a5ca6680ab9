"""Scored text: log-probs that are read and checked a chunk at a time, and what they say for each exponent τ."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mde.errors import UserError
from mde.evaluation._tiers import Term, TermBuilder

_CHUNK = 1 << 19  # log-probs that are in float64 at a time

Terms = tuple[Term, ...]  # a sum and, for τ between 0 and 1, one that is taken from it


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
        k = len(self.experts)
        builders = [[TermBuilder(len(self.domains), devices) for _ in range(2 if 0 < tau < 1 else 1)] for tau in taus]
        carry = np.zeros(k) if carry is None else carry
        for first, stored in self.chunks(start, stop):
            rows = np.asarray(stored, np.float64)
            domains = self.segment_ids[first : first + len(rows)]
            self._check(rows, first)
            if max(taus) > 0:
                before, carry, ends = self._prefixes(rows, first, carry)
            for tau, (builder, *prefix) in zip(taus, builders, strict=True):
                if tau == 0:
                    builder.add(rows, domains)
                elif tau == 1:
                    builder.add((before + rows)[ends], domains[ends])
                else:
                    builder.add(tau * before + rows, domains)
                    prefix[0].add(tau * before, domains)
        return [tuple(builder.finish() for builder in of_tau) for of_tau in builders], carry

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

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """[n, K] the log-probs of the tokens of ascending numbers [n]."""
        parts = []
        for first, rows in self.chunks():
            here = slice(*np.searchsorted(numbers, [first, first + len(rows)]))
            parts.append(rows[numbers[here] - first])
        return np.concatenate(parts)

    def check(self, experts: np.ndarray) -> None:
        """Raises UserError at the first log-prob that is none, and at a token that none of `experts` can produce."""
        for first, rows in self.chunks():
            self._check(rows, first, experts)

    def _check(self, rows: np.ndarray, first: int, experts: np.ndarray | None = None) -> None:
        if rows.max() <= 0 and rows.min() > -np.inf:
            return
        bad = ~(rows <= 0)
        if bad.any():
            token, expert = np.argwhere(bad)[0]
            raise UserError(
                f"log-prob of {self._place(first + int(token))} under expert {self.experts[expert]!r} is "
                f"{rows[token, expert]}; expected a number of at most 0"
            )
        allowed = rows if experts is None else rows[:, experts]
        impossible = np.isneginf(allowed).all(axis=1)
        if impossible.any():
            which = "every expert" if allowed.shape == rows.shape else "every expert that is allowed"
            raise UserError(f"{self._place(first + int(np.argmax(impossible)))} is impossible under {which}")

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
