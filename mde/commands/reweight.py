"""`mde reweight`: mixtures that are found while a proxy model is trained, by DoReMi and by DoGE."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde.arguments import FLAT
from mde.errors import UserError, check_positive, unknown
from mde.models.config import DecoderConfig
from mde.reporting import reweighting as report
from mde.results.mixtures import REWEIGHTED, mixture
from mde.results.trained_runs import SEED_RUN, load_run
from mde.results.training_options import Changes, TrainingChanges, changed
from mde.study import Study, digest
from mde.training.placement import MeshShape
from mde.training.pool import train_pool
from mde.training.reweighting import DoGE, DoReMi
from mde.training.runs import Recipe, Run

REFERENCE_SEEDS = 1000  # references read their text in another order than the proxies that are compared with them


@dataclasses.dataclass(frozen=True)
class Minimax:
    """DoReMi's constants.

    Attributes:
      reference: the mixture that DoReMi's reference models are trained on: uniform, proportional, recommended, doge,
        or weights by domain.
      eta: DoReMi's step size.
      smoothing: DoReMi's part of uniform weights in those of each step.
      rounds: of DoReMi, each with references trained on the mixture of the one before.
    """

    reference: str | Mapping[str, float] = "uniform"
    eta: float = 1.0
    smoothing: float = 1e-3
    rounds: int = 1

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """DoGE's constants.

    Attributes:
      mu: DoGE's coefficient of the Bregman divergence; large values keep the weights where they are.
      target: a training domain that DoGE's mixture of the other ones is to serve; all of them if None.
    """

    mu: float = 0.05
    target: str | None = None


@dataclasses.dataclass(frozen=True)
class Proxies:
    """The proxies that mixtures are found with.

    Attributes:
      seeds: proxies of each method, trained side by side.
      seed: of the first proxy's data order and fresh parameters.
      from_seed_model: whether proxies and references continue from the study's seed model; as its runs did if None.
      checkpoint_every: steps between states to resume from.
    """

    seeds: int = 1
    seed: int = 0
    from_seed_model: bool | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        check_positive(seeds=self.seeds, checkpoint_every=self.checkpoint_every)

    @property
    def orders(self) -> list[int]:
        """The seeds."""
        return list(range(self.seed, self.seed + self.seeds))


def reweight(
    study: Study,
    method: Sequence[str] = REWEIGHTED,
    minimax: Annotated[Minimax, FLAT] = Minimax(),
    alignment: Annotated[Alignment, FLAT] = Alignment(),
    training: TrainingChanges = None,
    proxies: Annotated[Proxies, FLAT] = Proxies(),
) -> None:
    """Finds a mixture by training a proxy whose domains are re-weighted at every step: DoReMi, DoGE.

    The proxy reads all domains equally often and has the study's model and training; the mixture is the mean of the
    weights over the steps, and then over the seeds. Other commands know it by the name of the method. Runs with the
    same arguments are trained once; stopped at any time, the same command goes on.

    Args:
      study: a study whose runs are trained.
      method: doremi, doge or both.
      minimax: DoReMi's constants.
      alignment: DoGE's constants.
      training: settings of proxies and references that differ from the study's, such as --learning_rate=4e-3.
      proxies: how many, and how they are trained.

    Raises:
      UserError: an unknown method, mixture or domain; a constant that makes no sense; a study without training text;
        a batch with fewer sequences than there are domains.
    """
    for name in method:
        if name not in REWEIGHTED:
            raise unknown("method", name, REWEIGHTED)
    if not method:
        raise UserError(f"no method: expected {' or '.join(REWEIGHTED)}")
    if study.is_swarm:
        raise UserError(f"study {study} holds proxy runs from elsewhere: it has no training text to re-weight")
    domains = study.domains.training
    if (target := alignment.target) in set(study.domains.evaluation) - set(domains):
        raise UserError(f"target {target!r} has no training text; expected one of {', '.join(domains)}")
    doremi, doge = DoReMi(domains, minimax.eta, minimax.smoothing), DoGE(domains, alignment.mu, target)
    start = mixture(study, minimax.reference, "reference")
    trained = _Proxies(study, training, proxies)
    if "doremi" in method:
        found = _rounds(trained, doremi, start, minimax.rounds)
        given = {"reference": dict(zip(domains, start.tolist(), strict=True)), "rounds": minimax.rounds}
        _write(study, doremi, found, 2 * minimax.rounds * trained.tokens, trained.about | given)
    if "doge" in method:
        _write(study, doge, [trained.train(doge)], trained.tokens, trained.about)
    print(report.text(study))


class _Proxies:
    """Trains proxies, and their references, a seed each.

    Attributes:
      seeds: of the proxies.
      settings: of their training.
      tokens: that the proxies of all seeds are trained on.
      about: what they have in common, for the record.
    """

    def __init__(self, study: Study, training: Changes, proxies: Proxies):
        about = study.read_json("training.json", "train")
        self.settings = changed(about["settings"], training)
        self.seeds, self.tokens = proxies.orders, self.settings.tokens * proxies.seeds
        self._study, self._every = study, proxies.checkpoint_every
        self._names = study.domains.training
        self._check()
        seeded = about["seed_settings"] is not None if proxies.from_seed_model is None else proxies.from_seed_model
        if seeded and about["seed_settings"] is None:
            raise UserError(f"study {study} has no seed model to continue from")
        model = DecoderConfig.from_dict(about["model"])
        stores = {name: study.store(name, "train") for name in self._names}
        origin = {"data": digest({name: store.digest for name, store in stores.items()})}
        if seeded:
            origin["seed_model"] = digest(study.read_json(f"runs/{SEED_RUN}/run.json", "train"))
        start = functools.partial(load_run, study, SEED_RUN, model) if seeded else None
        self._mesh = MeshShape.parse(about["mesh"]) if about.get("mesh") else None
        self._plain = Recipe(model, self.settings, stores, start, origin)
        self.about = {"training": dataclasses.asdict(self.settings), "from_seed_model": seeded}

    def _check(self) -> None:
        """Raises UserError where a batch cannot be re-weighted."""
        if self.settings.batch_size < len(self._names):
            raise UserError(
                f"batch_size={self.settings.batch_size} is smaller than the number of domains, {len(self._names)}: "
                f"each needs a sequence in every batch, expected --batch_size={len(self._names)} or more"
            )
        if self.settings.accumulate > 1:
            raise UserError(
                f"accumulate={self.settings.accumulate}: weights change with the whole batch, expected --accumulate=1"
            )

    def train(self, method: DoReMi | DoGE, references: Mapping[int, str] | None = None) -> dict[int, pd.DataFrame]:
        """Proxies of a method; by seed, weights and scores [steps, 2 K] as the method calls them.

        Args:
          method: DoReMi or DoGE.
          references: by seed, the run that the proxy is compared with.
        """
        uniform = [1 / len(self._names)] * len(self._names)
        recipe = dataclasses.replace(self._plain, method=method)
        names = {}
        for seed in self.seeds:
            record = [recipe.record(Run("", tuple(uniform), seed)), references and references[seed]]
            names[seed] = f"{method.name}-{digest(record)[:8]}-{seed}"
        compared = {names[seed]: references[seed] for seed in self.seeds} if references else {}
        self._train(dataclasses.replace(recipe, references=compared), names, dict.fromkeys(self.seeds, uniform))
        return {seed: self._trajectory(name, method) for seed, name in names.items()}

    def references(self, mixtures: Mapping[int, np.ndarray]) -> dict[int, str]:
        """Trains a reference a seed on the seed's mixture; their names."""
        names = {}
        for seed, weights in mixtures.items():
            record = self._plain.record(Run("", tuple(map(float, weights)), seed + REFERENCE_SEEDS))
            names[seed] = f"reference-{digest(record)[:8]}-{seed}"
        self._train(self._plain, names, mixtures, REFERENCE_SEEDS)
        return names

    def _train(
        self, recipe: Recipe, names: Mapping[int, str], mixtures: Mapping[int, Any], seeds_from: int = 0
    ) -> None:
        """All seeds as one pool."""
        runs = [Run(names[seed], tuple(map(float, mixtures[seed])), seed + seeds_from) for seed in self.seeds]
        train_pool(runs, recipe, self._study.root / report.HOME / "runs", self._every, mesh=self._mesh)

    def _trajectory(self, name: str, method: DoReMi | DoGE) -> pd.DataFrame:
        path = self._study.root / report.HOME / "runs" / name / "metrics.jsonl"
        lines = pd.DataFrame(map(json.loads, path.read_text().splitlines())).set_index("step")
        return lines[list(method.metrics)].rename(columns=lambda name: name.removeprefix("weight/"))


def _rounds(proxies: _Proxies, method: DoReMi, start: np.ndarray, rounds: int) -> list[dict[int, pd.DataFrame]]:
    """Trajectories by round and seed; each seed goes its own way."""
    mixtures, found = dict.fromkeys(proxies.seeds, start), []
    for _ in range(rounds):
        found.append(proxies.train(method, proxies.references(mixtures)))
        mixtures = {seed: average(table[list(method.domains)].to_numpy()) for seed, table in found[-1].items()}
    return found


def average(weights: np.ndarray) -> np.ndarray:
    """The mixture [K] that weights [steps, K] come to: their mean over the steps (algorithm 1 of both papers)."""
    mean = weights.mean(axis=0, dtype=np.float64)
    return mean / mean.sum()  # weights in float32 sum to 1 within 1e-7


def _write(
    study: Study,
    method: DoReMi | DoGE,
    rounds: Sequence[Mapping[int, pd.DataFrame]],
    tokens: int,
    about: Mapping[str, Any],
) -> None:
    """Leaves a method's trajectories, its mixture, and the table of the mixtures of all methods."""
    names = list(method.domains)
    tables = {(number, seed): table for number, each in enumerate(rounds, 1) for seed, table in each.items()}
    trajectory = pd.concat(tables, names=["round", "seed"]).reset_index(["round", "step"])
    study.write_table(f"{report.HOME}/{method.name}.csv", trajectory)
    seeds = {seed: average(table[names].to_numpy()) for seed, table in rounds[-1].items()}
    weights = np.mean(list(seeds.values()), axis=0)
    by_domain = lambda values: dict(zip(names, values.tolist(), strict=True))  # noqa: E731
    found = {
        "weights": by_domain(weights),
        "seeds": {str(seed): by_domain(values) for seed, values in seeds.items()},
        "settings": {**method.record()["reweighting"], **about},
        "tokens": tokens,
    }
    study.write_json(f"{report.HOME}/{method.name}.json", found)
    mixtures = {name: result["weights"] for name, result in report.results(study).items()}
    study.write_table(report.WEIGHTS, pd.DataFrame(mixtures).rename_axis("domain").loc[names])
