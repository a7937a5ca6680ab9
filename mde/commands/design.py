"""`mde design`: the mixtures of a swarm, for `mde train --mixtures` or any other trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde import buckets
from mde.arguments import FLAT, Changed
from mde.data import epochs
from mde.errors import UserError, check_positive
from mde.optimization import draws
from mde.optimization.constraints import Bounds, Constraints
from mde.regression import power, swarm
from mde.reporting.table import Table
from mde.results.mixtures import Weights, tokens_of
from mde.study import Study

Shape = Annotated[Mapping[str, Any] | None, Changed(Constraints, without=("tokens", "prior", "ratios"))]
SCARCE = 5  # runs with a weight of a domain below which little can be learnt of it


@dataclass(frozen=True)
class Dirichlet:
    """How the mixtures of a swarm are drawn.

    Attributes:
      temperature: power that the prior is raised to: 1 leaves it, .5 lifts small domains, 0 makes all alike.
      strengths: min and max sum of the Dirichlet concentrations, drawn log-uniform for each run; one number for
        a single one. Small ones give corners, large ones mixtures near the prior.
      floor: min weight besides zero; smaller weights become zero, and runs that differ by less are one.
      seed: of the draws.
    """

    temperature: float = 1.0
    strengths: Sequence[float] = (0.1, 5.0)
    floor: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """A difference that runs should find.

    Attributes:
      difference: difference in loss between two mixtures that the runs should find: with a probability of 80%, in a
        two-sided test at 5%.
      noise: standard deviation of one run; by default that of the replicates of the study that --tokens names, as `mde
        fit` found it.
      comparisons: with how many baselines the recommended mixture will be compared, for Holm's correction.
    """

    difference: float | None = None
    noise: float | None = None
    comparisons: int = 1


def design(
    output: str | None = None,
    runs: int = 32,
    tokens: str | Mapping[str, float] | None = None,
    prior: str | Mapping[str, float] = "proportional",
    dirichlet: Annotated[Dirichlet, FLAT] = Dirichlet(),
    constraints: Shape = None,
    detect: Annotated[Difference, FLAT] = Difference(),
) -> None:
    """Draws the mixtures of a swarm around a prior, spread evenly, and writes them as a CSV file.

    With --difference it says how many seeds and proxy runs find such a difference, at a pilot's noise; it needs no
    --output then.

    Mixtures are Dirichlet, as RegMix and Olmix draw them, given that the constraints hold; those of `mde train` itself
    have --prior=uniform and a strength of as many as there are domains. The same flags give the same file, and with
    more runs its rows are the first.

    Args:
      output: the CSV file to write: a column `run`, and one per domain.
      runs: how many mixtures.
      tokens: available tokens per domain, or the directory of a study that has them. Without them the domains are
        those of the prior.
      prior: around which mixtures lie, and their mean: proportional to the tokens, uniform, or weights by domain.
      dirichlet: how mixtures are drawn.
      constraints: what they obey. With groups, mixtures are drawn in two levels: sums of the groups, then weights
        within each.
      detect: a difference, to ask how many runs find it.

    Raises:
      UserError: no domains; neither an output nor a difference; no noise; settings or constraints that make no sense,
        or that too few draws obey.
    """
    if detect.difference is not None:
        print(_needed(detect.difference, detect, tokens, prior))
    elif output is None:
        raise UserError("give --output, the CSV file to write, or --difference, to ask how many runs it takes")
    if output is None:
        return
    check_positive(runs=runs)
    if dirichlet.seed < 0:
        raise UserError(f"seed={dirichlet.seed}, expected zero or more")
    if len(dirichlet.strengths) not in (1, 2):
        raise UserError(f"strengths={list(dirichlet.strengths)}: expected the min and the max, or one number")
    place = buckets.path(output)
    buckets.check(place)
    buckets.check_writable(place.parent)
    if place.is_dir():
        raise UserError(f"{place}: a folder, expected the CSV file to write")
    names, counts = _domains(tokens, prior)
    swarm.check_names(names)
    bounds = Constraints(**(constraints or {}), tokens=counts, prior=prior).on(names)
    centre = bounds.prior_mixture
    assert centre is not None
    for name, weight in zip(names, centre, strict=True):
        if not weight and (least := bounds.min.get(name, 0)) > 0 and name not in bounds.fixed:
            raise UserError(f"domain {name!r}: a min weight of {least:g}, but none in the prior that is drawn around")
    levels = _levels(bounds)
    strengths, prior_K = dirichlet.strengths, draws.temper(centre, dirichlet.temperature, levels)
    law = draws.Law(prior_K, (strengths[0], strengths[-1]), levels, dirichlet.floor)
    mixtures = draws.draw(runs, law, dirichlet.seed, bounds.region, distinct=True)
    table = pd.DataFrame(mixtures, pd.Index([f"run-{i:03d}" for i in range(runs)], name="run"), list(names))
    swarm.write(place, swarm.Table(table, "run", {name: name for name in names}))
    print(_summary(str(place), table, law.prior, bounds))


def _needed(difference: float, detect: Difference, tokens: str | Weights | None, prior: str | Weights) -> str:
    """How many seeds and proxy runs find a difference, in a few lines."""
    noise, comparisons = detect.noise, detect.comparisons
    if noise is None:
        if not isinstance(tokens, str):
            raise UserError("give --noise, the standard deviation of one run, or a study with replicates as --tokens")
        found = Study(tokens).read_json("fit/choice.json", "fit")["noise"]
        if not found:
            raise UserError(f"{tokens}: no two proxy runs have the same mixture, so the noise is unknown: give --noise")
        noise = found["objective"]
    seeds = power.seeds_needed(noise, difference, comparisons)
    baselines = f" against {comparisons} baselines (Holm)" if comparisons > 1 else ""
    lines = [
        f"A difference of {difference:g} at a noise of {noise:.3g} per run, found with a probability of 80% at 5%:",
        f"  validation: {seeds} seeds per mixture, paired by seed{baselines}",
    ]
    if tokens is not None or not isinstance(prior, str):
        names, _ = _domains(tokens, prior)
        runs = power.proxy_runs_needed(noise, difference, len(names) + 1)
        lines.append(
            f"  proxy runs: at least {runs}, for noise alone, with {len(names)} domains and a coefficient for each; "
            "what the regressor gets wrong comes on top"
        )
    else:
        lines.append("  proxy runs: depends on the number of domains; give --tokens or --prior")
    return "\n".join(lines)


def _domains(tokens: str | Weights | None, prior: str | Weights) -> tuple[tuple[str, ...], Weights | None]:
    """Names of the domains, and how many tokens each has where that is known."""
    if isinstance(tokens, str):
        study = Study(tokens)
        buckets.check(study.root)
        return study.domains.training, tokens_of(study)
    if named := tokens or (prior if not isinstance(prior, str) else None):
        return tuple(named), tokens
    raise UserError("of which domains? Give --tokens, numbers by domain or a study's directory, or weights as --prior")


def _levels(bounds: Bounds) -> list[np.ndarray]:
    """By group, the columns of its domains, each of which is in one group only."""
    names = list(bounds.domains)
    owner: dict[str, str] = {}
    for group, about in bounds.groups.items():
        for name in about.domains:
            if name in owner:
                raise UserError(
                    f"domain {name!r} is in the groups {owner[name]!r} and {group!r}; a design draws groups first and "
                    "then what is in each, so a domain may be in one"
                )
            owner[name] = group
    return [np.array(sorted(names.index(name) for name in about.domains)) for about in bounds.groups.values()]


def _summary(file: str, table: pd.DataFrame, prior: np.ndarray, bounds: Bounds) -> Table:
    """What was drawn, by domain, and how it is spread."""
    weights, names = table.to_numpy(), bounds.domains
    used = weights > 0
    columns = {"prior": prior, "min": weights.min(0), "mean": weights.mean(0), "max": weights.max(0)}
    cells = {name: [f"{weight:.2%}" for weight in values] for name, values in columns.items()}
    cells["runs without"] = list(map(str, (~used).sum(axis=0)))
    if bounds.tokens and bounds.budget:
        available = np.array([bounds.tokens[name] for name in names])
        cells["most epochs"] = [f"{n:.3g}" for n in epochs.repeats(weights, available, bounds.budget).max(axis=0)]
    corners = int((used.sum(axis=1) == 1).sum())
    notes = [f"A run has {used.sum(axis=1).mean():.1f} domains on average; {corners} have one only."]
    if len(table) > 1:
        apart = draws.distances(weights)
        notes.append(
            f"A run has {apart.mean():.1%} of its tokens elsewhere than the run most like it, on average; the two most "
            f"alike differ in {apart.min():.1%}."
        )
    scarce = [name for name, n in zip(names, used.sum(axis=0), strict=True) if 0 < n < SCARCE]
    if scarce:
        notes.append(
            f"In fewer than {SCARCE} runs, which says little of them: {', '.join(scarce)}. A lower --temperature or "
            "greater --strengths have them in more."
        )
    frame = pd.DataFrame(cells, pd.Index(list(names), name="domain"))
    return Table(f"{file}: {len(table)} mixtures of {len(names)} domains", frame, tuple(notes))
