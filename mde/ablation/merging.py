"""What stands for a model trained on a union: averages of parameters, and mixtures of token probabilities.

SEQ is trained on the union. Its proxies are averages of the models of partitions or base units (`unions.merges`), and
the mixture of the units' token probabilities (MDE, arXiv 2502.15950), for each τ. Shapes: U unions, n units, C subsets.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.ablation import subsets
from mde.ablation.correlations import SEQ
from mde.ablation.family import SEED_RUN, Family, Text
from mde.ablation.subsets import Losses
from mde.ablation.unions import Copies, merges, partitions, run_name
from mde.evaluation import MergedLosses, MixtureLosses

MERGED = "merged"


def runs_needed(unions: Mapping[str, Copies], units: Mapping[str, str]) -> list[Copies]:
    """What is trained for a study: every unit, the partitions that occur in the unions, and the unions."""
    parts = [part for union in unions.values() for part in partitions(union, units).values()]
    return [{unit: 1.0} for unit in units] + parts + list(unions.values())


def losses(
    family: Family,
    unions: Mapping[str, Copies],
    units: Mapping[str, str],
    text: Text,
    taus: Sequence[float],
) -> pd.DataFrame:
    """Losses of the model trained on each union and of its proxies.

    Args:
      family: the models, trained.
      unions: copies of units, by name.
      units: domain of each unit.
      text: what is evaluated on.
      taus: exponents of the prefix posterior; 0 is MDE.

    Returns:
      Indexed by union, nats per token: columns model and one an evaluation domain.

    Raises:
      UserError: models that cannot be merged.
    """
    rows = family.score([run_name(copies) for copies in unions.values()], text)
    tables = {SEQ: rows.to_numpy()}
    averages = {name: merges(copies, units) for name, copies in unions.items()}
    used = list(dict.fromkeys(run for row in averages.values() for proxy in row.values() for run in proxy))
    merged = family.merged(used, text.data)
    for proxy in next(iter(averages.values())):
        tables[proxy] = _shown(merged, _weights([row[proxy] for row in averages.values()], used), proxy)
    names = list(units)
    mixture = _mixture(family, names, text)
    weights = _weights([averages[name]["micro-merged"] for name in unions], names)
    tables |= {f"mde[{tau:g}]": mixture(weights, tau) for tau in taus}
    columns = list(text.data.domains)
    index = pd.Index(list(unions), name="union")
    return pd.concat([pd.DataFrame(table, index, columns).assign(model=name) for name, table in tables.items()])


def evaluators(
    family: Family,
    units: Sequence[str],
    text: Text,
    taus: Sequence[float],
    merged_windows: int,
) -> Iterator[tuple[str, Losses]]:
    """By name, functions from subsets [C, n] of the units to losses [C, J]: `merged`, and `mde[τ]` for each τ.

    Members of a subset count alike; the empty one is the seed model. Merged models are run on the first
    `merged_windows` windows of each domain, mixtures are evaluated on all of the text.
    """
    merged = family.merged(units, text.data.subset(merged_windows))
    yield MERGED, lambda rows: _shown(merged, subsets.averages(rows), "subsets")
    mixture = _mixture(family, [*units, SEED_RUN], text)
    for tau in taus:
        yield f"mde[{tau:g}]", functools.partial(_mixture_of_subsets, mixture, tau)


def _mixture_of_subsets(mixture: MixtureLosses, tau: float, rows: np.ndarray) -> np.ndarray:
    return mixture(np.column_stack([subsets.averages(rows), ~rows.any(axis=1)]), tau)


def _mixture(family: Family, names: Sequence[str], text: Text) -> MixtureLosses:
    """Losses of mixtures of these models, which are scored if they are not yet."""
    family.score(names, text)
    log_probs = family.log_probs(names, text)
    data = text.data
    return MixtureLosses(log_probs, data.segment_ids, data.sequence_ids, domains=data.domains, experts=names)


def _weights(rows: Sequence[Copies], columns: Sequence[str]) -> np.ndarray:
    return np.array([[row.get(name, 0.0) for name in columns] for row in rows])


def _shown(merged: MergedLosses, weights: np.ndarray, what: str) -> np.ndarray:
    """Losses of merged models, with a progress bar."""
    with tqdm(total=len(weights), desc=what, unit="model", leave=False) as bar:
        return merged(weights, bar.update)
