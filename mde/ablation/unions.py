"""Unions of units: drawn or given, and the weights of the models that stand for them. Sees numbers only.

A union is a row of copies [N]: how often each unit's text is in it, 0 for not at all, more than 1 where it is
up-sampled. A partition is what a union has of one domain.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from etils import epath

from mde.errors import UserError, unknown
from mde.study import digest

Copies = dict[str, float]  # by unit; those that are left out have none


def draw(
    domains: Sequence[str], count: int, smallest: int, largest: int, seed: int = 0, drawn: Sequence[Sequence[str]] = ()
) -> list[tuple[str, ...]]:
    """Sets of domains, all different, spread evenly over the sizes.

    Args:
      domains: to draw from.
      count: how many sets there shall be, those of `drawn` included.
      smallest: domains in a set, at least.
      largest: at most.
      seed: of the order in which they are drawn.
      drawn: sets that are there already and are kept.

    Raises:
      UserError: sizes that are none, or more sets than there are.
    """
    if not 1 <= smallest <= largest <= len(domains):
        raise UserError(
            f"unions of {smallest} to {largest} domains: expected sizes from 1 to {len(domains)}, the number of sources"
        )
    rng = np.random.default_rng([seed, len(drawn)])
    found = [tuple(names) for names in drawn]
    known = set(map(frozenset, found))
    left = {size: math.comb(len(domains), size) for size in range(smallest, largest + 1)}
    taken = dict.fromkeys(left, 0)
    for members in known:
        if len(members) in left and members <= set(domains):
            left[len(members)] -= 1
            taken[len(members)] += 1
    while len(found) < count:
        sizes = [size for size in left if left[size]]
        if not sizes:
            raise UserError(f"{count} unions of {smallest} to {largest} domains: there are only {len(found)} of them")
        size = min(sizes, key=lambda size: taken[size])
        names = tuple(domains[i] for i in sorted(rng.choice(len(domains), size, replace=False)))
        if frozenset(names) not in known:
            known.add(frozenset(names))
            found.append(names)
            left[size] -= 1
            taken[size] += 1
    return found


def of_domains(domains: Sequence[str], units: Mapping[str, str], upsampled: bool = False) -> Copies:
    """The union of all units of these domains.

    Args:
      domains: whose units.
      units: domain of each unit.
      upsampled: whether each domain is repeated up to the size of the largest, so that all have equal weights.
    """
    sizes = {name: sum(domain == name for domain in units.values()) for name in domains}
    most = max(sizes.values())
    return {unit: most / sizes[name] if upsampled else 1.0 for unit, name in units.items() if name in sizes}


def read(path: epath.PathLike, units: Mapping[str, str]) -> dict[str, Copies]:
    """Unions of a user's CSV file: a column `union` that names them, and one a unit or a domain (all of its units).

    Raises:
      UserError: no such file; a column that is neither; a unit that is named twice; copies that are no finite numbers,
        zero or more; a union without any, one that is there twice.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a CSV file of unions, with columns union and units or domains")
    table = pd.read_csv(io.BytesIO(path.read_bytes()), dtype={"union": str})
    if "union" not in table:
        raise UserError(f"{path}: no column 'union', which names the unions")
    table = table.set_index("union")
    members = {column: [u for u, domain in units.items() if column in (u, domain)] for column in map(str, table)}
    for column, named in members.items():
        if not named:
            raise unknown(f"unit or domain in {path}", column, {*units, *units.values()})
    doubled = [unit for unit in units if sum(unit in named for named in members.values()) > 1]
    if doubled:
        raise UserError(f"{path}: unit {doubled[0]!r} has a column of its own and is in that of its domain as well")
    found: dict[str, Copies] = {}
    for name, row in table.iterrows():
        if not isinstance(name, str):
            raise UserError(f"{path}: a row has no name in column 'union'")
        if name in found:
            raise UserError(f"{path}: union {name!r} is there twice")
        found[name] = _copies(f"{path}: union {name!r}", row, members)
    return found


def _copies(where: str, row: pd.Series, members: Mapping[str, Sequence[str]]) -> Copies:
    numbers = dict(zip(members, pd.to_numeric(row, errors="coerce"), strict=True))
    for (column, value), given in zip(numbers.items(), row, strict=True):
        if not (np.isfinite(value) and value >= 0):
            raise UserError(f"{where}: {column} is '{given}', expected copies: a number, zero or more")
    copies = {unit: float(numbers[c]) for c, named in members.items() for unit in named if numbers[c] > 0}
    if not copies:
        raise UserError(f"{where}: no unit is in it")
    return copies


def partitions(union: Copies, units: Mapping[str, str]) -> dict[str, Copies]:
    """By domain, what a union has of it, with one copy of the unit that it has least of."""
    found: dict[str, Copies] = {}
    for unit, copies in union.items():
        found.setdefault(units[unit], {})[unit] = copies
    return {domain: {u: c / min(part.values()) for u, c in part.items()} for domain, part in found.items()}


def weights(union: Copies, units: Mapping[str, str]) -> Copies:
    """By domain, the share of the union's text that is of it."""
    found: Copies = {}
    for unit, copies in union.items():
        found[units[unit]] = found.get(units[unit], 0.0) + copies
    return {domain: copies / sum(union.values()) for domain, copies in found.items()}


def overlap(unions: Mapping[str, Copies], units: Mapping[str, str]) -> pd.DataFrame:
    """How much text unions have in common, [U, U] by name on both sides: the covariance of what it does to them.

    A unit does what it shares with the others of its source, and something of its own, equal parts on average over the
    unions. What it does counts by its share of the text.
    """
    own = pd.DataFrame.from_dict(dict(unions), orient="index").reindex(columns=list(units)).fillna(0.0)
    own = own.div(own.sum(axis=1), axis=0)
    source = own.T.groupby([units[str(name)] for name in own]).sum().T
    parts = [each @ each.T / np.mean((each**2).sum(axis=1)) for each in (own, source)]
    return parts[0] + parts[1]


def run_name(copies: Copies) -> str:
    """What the run that is trained on these copies is called: a unit's own name, or one that their list makes."""
    if list(copies.values()) == [1]:
        return next(iter(copies))
    return f"seq-{digest(sorted(copies.items()))}"


def merges(union: Copies, units: Mapping[str, str]) -> dict[str, Copies]:
    """By proxy, the weights of the runs whose average stands for the model trained on a union (arXiv 2410.15661).

    `merged` averages the models of its partitions, each with the same weight; `merged-weighted` weighs them by their
    weights of the text; `micro-merged` averages the models of its base units.
    """
    parts = {domain: run_name(copies) for domain, copies in partitions(union, units).items()}
    total = sum(union.values())
    return {
        "merged": dict.fromkeys(parts.values(), 1 / len(parts)),
        "merged-weighted": {parts[domain]: share for domain, share in weights(union, units).items()},
        "micro-merged": {unit: copies / total for unit, copies in union.items()},
    }


def costs(unions: Mapping[str, Copies], units: Mapping[str, str], unit_tokens: int, seed_tokens: int) -> pd.DataFrame:
    """What is trained for a study of merges, and what training every union would take: columns runs and tokens.

    Args:
      unions: that are trained to compare with.
      units: domain of each unit.
      unit_tokens: that the model of a unit is trained on.
      seed_tokens: that the seed model is trained on.
    """
    parts = [part for union in unions.values() for part in partitions(union, units).values()]
    named: dict[str, dict[str, Copies]] = {
        "units": {unit: {unit: 1.0} for unit in units},
        "partitions": {run_name(copies): copies for copies in parts},
        "unions": {run_name(copies): copies for copies in unions.values()},
    }
    rows, seen = {"seed model": (int(seed_tokens > 0), seed_tokens)}, set[str]()
    for what, runs in named.items():
        new = {name: copies for name, copies in runs.items() if name not in seen}
        seen |= set(new)
        rows[what] = (len(new), round(unit_tokens * sum(sum(copies.values()) for copies in new.values())))
    for what, members in (("every union of sources", len(set(units.values()))), ("every subset of units", len(units))):
        rows[what] = (2**members - 1, 2 ** (members - 1) * len(units) * unit_tokens)  # half of them have a given unit
    return pd.DataFrame.from_dict(rows, orient="index", columns=["runs", "tokens"]).rename_axis("what")
