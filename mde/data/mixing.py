"""What a run sees: batches as a pure function of (mixture, seed, step), with proportions that are honest.

Grain shuffles, batches and prefetches; here is the one thing it leaves to us, the choice of the domain of every
sequence. It is exact integer arithmetic on the mixture as given: after any number of sequences each domain has been
seen its due number of times, off by less than the number of domains, and a domain of weight 0 never.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import grain
import numpy as np

from mde.data.tokens import TokenStore
from mde.errors import UserError


class ProportionalSelection:
    """Maps sequence n of a mixture to (domain, how many of that domain came before), in O(K) and without state.

    Of the first n sequences the heaviest domain takes its share of n rounded up, the next its share of the rest, and
    so on. Whom sequence n belongs to is the domain whose count rises between n and n + 1.
    (A Grain selection map, which asks for no more than these two methods.)
    """

    def __init__(self, weights: np.ndarray):
        fractions = [Fraction(float(w)) for w in weights]
        scale = math.lcm(*(f.denominator for f in fractions))
        counts = [int(f * scale) for f in fractions]
        self._order = sorted((k for k, c in enumerate(counts) if c), key=lambda k: (-counts[k], k))
        self._counts = [counts[k] for k in self._order]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        here, after, total = index, index + 1, sum(self._counts)
        for k, count in zip(self._order, self._counts, strict=True):
            rest_here, rest_after = (n * (total - count) // total for n in (here, after))
            if rest_here == rest_after:
                return k, here - rest_here
            here, after, total = rest_here, rest_after, total - count
        raise AssertionError("the last domain takes all that is left")


@dataclasses.dataclass(frozen=True)
class _Windows:
    """The windows of a store as a Grain source."""

    store: TokenStore
    length: int

    def __len__(self) -> int:
        return self.store.windows(self.length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = self.store.window(index, self.length)
        return {"tokens": window.tokens, "segments": window.segments}


def check(stores: Mapping[str, TokenStore], weights: np.ndarray, seq_len: int) -> None:
    """Raises UserError where a domain with a positive weight has not a single sequence."""
    for (name, store), weight in zip(stores.items(), weights, strict=True):
        if weight > 0 and not store.windows(seq_len):
            raise UserError(
                f"domain {name!r} is empty: {store.n_tokens} tokens in {store.directory}, "
                f"one sequence needs {seq_len + 1}"
            )


def batches(
    stores: Mapping[str, TokenStore], weights: np.ndarray, *, seed: int, batch_size: int, seq_len: int
) -> grain.MapDataset:
    """The batches of one run: `batches(...)[step]` is a pure function of its arguments and the step.

    Every domain is read in an order of its own that depends on the seed alone, shuffled anew each epoch. Two runs with
    the same seed and different mixtures therefore read the same sequences of a domain, only more or fewer of them.

    Args:
      stores: token store of each domain, in the order of `weights`.
      weights: [K] mixture weights, non-negative, summing to 1.
      seed: of the shuffling.
      batch_size: sequences per step.
      seq_len: predicted tokens per sequence.

    Returns:
      An endless Grain data set of {"tokens", "segments"}, both [batch_size, seq_len + 1] int32.

    Raises:
      UserError: a domain with a positive weight has not a single sequence.
    """
    check(stores, weights, seq_len)
    # A domain without a sequence has no weight: nothing is ever taken from its stand-in.
    sources: list[Any] = [_Windows(store, seq_len) if store.windows(seq_len) else [{}] for store in stores.values()]
    parents = [grain.MapDataset.source(source).seed(seed).shuffle().repeat() for source in sources]
    mixed = grain.MapDataset.select_from_datasets(parents, ProportionalSelection(np.asarray(weights)))
    return mixed.batch(batch_size)


def grouped(batch: Mapping[str, np.ndarray], weights: np.ndarray, first: int, multiple: int) -> dict[str, np.ndarray]:
    """A batch with a place for each domain: where one has fewer sequences than another, padding stands.

    Args:
      batch: arrays [B, L + 1], the sequences `first` to `first` + B of the mixture.
      weights: [K] of the mixture.
      first: how many sequences came before.
      multiple: the number of places of a domain is a multiple of this.

    Returns:
      Arrays [N, K, L + 1], zero where nothing is; N is the same for all batches of a uniform mixture.
    """
    selection = ProportionalSelection(weights)
    sequences = next(iter(batch.values()))
    B, K = len(sequences), len(weights)
    domains_B = np.array([selection[first + b][0] for b in range(B)])
    places_B = np.array([np.sum(domains_B[:b] == domains_B[b]) for b in range(B)])
    N = -(-max(int(places_B.max()) + 1, -(-B // K)) // multiple) * multiple
    placed = {name: np.zeros((N, K, values.shape[1]), values.dtype) for name, values in batch.items()}
    for name, values in batch.items():
        placed[name][places_B, domains_B] = values
    return placed


def iterate(dataset: grain.MapDataset, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches start, …, stop − 1, read ahead by a few threads."""
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    return iter(dataset[start:stop].to_iter_dataset(read))
