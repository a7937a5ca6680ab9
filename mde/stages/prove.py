"""`mde prove`: train the recommended mixture and its rivals, and see who wins."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mde import hosts
from mde.errors import check_positive
from mde.reporting import findings, tables
from mde.stages import comparison
from mde.stages.mixtures import RECOMMENDED, mixtures, objective_of, objective_record
from mde.stages.train import train_runs
from mde.study import Study


def prove(
    study: Study,
    seeds: int = 3,
    rivals: Sequence[str | Mapping[str, Any]] | None = None,
    first_seed: int = 1,
    checkpoint_every: int = 500,
) -> None:
    """Trains the recommended mixture and its rivals, each with several data orders, and compares them.

    The seeds are others than the observations', so that the best observed mixture has no luck left from being chosen.
    Runs are named by their mixture: another recommendation is trained anew, and rivals that stay are kept.

    Args:
      study: a study with an optimum.
      seeds: runs of each mixture.
      rivals: names of mixtures (uniform, proportional, proportional^0.5, unimax, own domains, best observed, regmix,
        mixing-law, mde, mixmin, scale, doremi, doge, or DIRECTORY:NAME of another study), or shares by domain under a
        name of your own, such as
        {'human': {'web': .7, 'code': .3}}; those that `mde optimize` compared it with by default.
      first_seed: seed of the first one.
      checkpoint_every: steps between states to resume from.

    Raises:
      UserError: an unknown name or domain, a rival whose method has not been run, runs that were trained another way.
    """
    check_positive(seeds=seeds, checkpoint_every=checkpoint_every)
    training, scoring = study.read_json("training.json", "train"), study.read_json("scoring.json", "score")
    optimum = study.read_json("optimum.json", "optimize")
    others = [name for name in optimum["predictions"] if name != RECOMMENDED] if rivals is None else rivals
    compared = mixtures(study, [RECOMMENDED, *(name for name in others if name != RECOMMENDED)], "rivals")
    predicted = comparison.predictions(study, compared)
    table = comparison.runs(compared, range(first_seed, first_seed + seeds), "proof")
    train_runs(study, training, table, checkpoint_every)
    losses = comparison.scored(study, scoring, table, "proof/")
    study.write_json("proof/objective.json", objective_record(study))
    study.write_table("proof/summary.csv", summary(study, table, losses, predicted))
    if hosts.is_first():
        won = findings.verdict(findings.proof(study))
        print(dataclasses.replace(tables.proof(study), notes=(won,)))
        print(f"\n`mde report --study={study}` shows the rest")


def inputs(study: Study, arguments: Mapping[str, Any]) -> list[Any]:
    """The rivals' shares: a name stands for another mixture when its method has been run again."""
    rivals = arguments["rivals"]
    return [mixtures(study, rivals, "rivals").to_dict("index")] if rivals else []


def summary(study: Study, table: pd.DataFrame, losses: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """A row a mixture: predicted and measured objective, its spread over seeds, its rank.

    Columns: predicted, low and high (its interval), measured, noise (standard deviation over seeds), rank (1 is best)
    and of (how many there are). Nats per token. The observations are not ranked with them: they are single runs of
    another seed, which moves all losses.
    """
    objective = pd.Series(objective_of(study)(losses.to_numpy()), losses.index)
    measured = objective.groupby(table["role"], sort=False).agg(["mean", "std"])
    found = predicted.join(measured.rename(columns={"mean": "measured", "std": "noise"}))
    return found.assign(rank=found["measured"].rank(method="min").astype(int), of=len(found))
