"""Base units: a domain cut into disjoint ranges of documents with the same number of tokens.

The first documents of every domain are set aside for the seed model; units follow one after the other, so those that
come later leave the earlier ones as they are. (Modular training and merging, arXiv 2410.15661.)
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mde.data.tokens import TokenStore
from mde.errors import UserError, check_positive


class Unit(NamedTuple):
    """A part of a domain: views of the domain's store, in which no token is copied."""

    domain: str
    store: TokenStore


def set_aside(store: TokenStore, seed_share: float) -> TokenStore:
    """The first documents of a domain, which the seed model is trained on and no unit has."""
    return store.documents(0, _first(store, seed_share))


def cut(domain: str, store: TokenStore, units: int, tokens: int, seed_share: float) -> dict[str, Unit]:
    """The units of a domain by name: DOMAIN-0, DOMAIN-1, …

    Args:
      domain: its name.
      store: its training tokens.
      units: how many to cut.
      tokens: of each unit at least; the documents are whole, so the last one may go beyond.
      seed_share: of the domain's tokens, set aside for the seed model.

    Raises:
      UserError: a domain that is too small for its units.
    """
    check_positive(units=units, tokens=tokens)
    ranges = _ranges(store, tokens, seed_share)
    if len(ranges) < units:
        raise UserError(
            f"domain {domain!r}: {store.n_tokens:,} tokens are enough for {len(ranges)} units of {tokens:,} beside the "
            f"seed model's share of {seed_share:g}, not for {units}; ask for fewer units or steps, or a smaller share"
        )
    return {f"{domain}-{i}": Unit(domain, store.documents(*part)) for i, part in enumerate(ranges[:units])}


def capacity(store: TokenStore, tokens: int, seed_share: float) -> int:
    """How many units a domain has text for."""
    return len(_ranges(store, tokens, seed_share))


def apportion(tokens: Mapping[str, int], capacities: Mapping[str, int], units: int) -> dict[str, int]:
    """Weights units out among domains: one each, then each to the domain that has most tokens for a unit of its own.

    (The divisor method of D'Hondt: with more units in all, no domain gets fewer.)

    Args:
      tokens: of each domain.
      capacities: units that each has text for.
      units: in all.

    Raises:
      UserError: fewer units than domains, or more than there is text for.
    """
    if units < len(tokens):
        raise UserError(f"units={units}: expected at least one for each of {', '.join(tokens)}")
    if units > sum(capacities.values()) or not all(capacities.values()):
        room = ", ".join(f"{name} {count}" for name, count in capacities.items())
        raise UserError(f"units={units}: there is text for {room}; ask for fewer units or steps, or other sources")
    counts = dict.fromkeys(tokens, 1)
    for _ in range(units - len(tokens)):
        open_to = [name for name in tokens if counts[name] < capacities[name]]
        counts[max(open_to, key=lambda name: tokens[name] / (counts[name] + 1))] += 1
    return counts


def _first(store: TokenStore, seed_share: float) -> int:
    """The first document that is not set aside."""
    if not 0 < seed_share < 1:
        raise UserError(f"seed_share={seed_share!r} must lie between 0 and 1")
    return int(np.searchsorted(store.bounds, seed_share * store.n_tokens))


def _ranges(store: TokenStore, tokens: int, seed_share: float) -> list[tuple[int, int]]:
    """Documents [first, stop) of every unit that a store has text for."""
    first, found = _first(store, seed_share), []
    while first < store.n_documents:
        stop = int(np.searchsorted(store.bounds, store.bounds[first] + tokens))
        if stop > store.n_documents:
            break
        found.append((first, stop))
        first = stop
    return found
