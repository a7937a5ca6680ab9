"""The models that continue from one seed model: each trained once, scored once, and merged with any others.

    DIRECTORY/runs/seed/      the seed model
    DIRECTORY/runs/UNIT/      the model of a base unit: params (Orbax), run.json, metrics.jsonl
    DIRECTORY/runs/seq-…/     that of several units (SEQ), named by which and how often
    DIRECTORY/scores/         log-probs of the evaluation tokens under each

The records beside the checkpoints, `run.json`, are the registry: they name the seed model, the schedule and the data of
every run. A record names only the units that a run reads, so units that are added later change none.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from etils import epath
from tqdm import tqdm

from mde.ablation.unions import Copies, run_name
from mde.errors import UserError
from mde.evaluation import MergedLosses
from mde.evaluation.scores import Columns, Scores
from mde.evaluation.scoring import EvaluationSet, Scorer
from mde.models import decoder
from mde.study import digest
from mde.training import checkpoints, pool, runs
from mde.training.placement import MeshShape
from mde.training.runs import Recipe, Run, pending

SEED_RUN = "seed"


class Text(NamedTuple):
    """What models are evaluated on.

    Attributes:
      data: the text.
      names: by domain, what names its text and how it is cut: scores are kept by it.
    """

    data: EvaluationSet
    names: Mapping[str, str]


class Family:
    """The models below one directory.

    Args:
      directory: where they are kept.
      recipe: of the units' models; `settings.steps` are those of one unit, and `start` is set here.
      seed_recipe: of the seed model; None if all begin with the same fresh parameters.
      seed: of fresh parameters and data orders.
    """

    def __init__(self, directory: epath.Path, recipe: Recipe, seed_recipe: Recipe | None, seed: int):
        self.directory, self.seed = directory, seed
        self._seed_recipe = seed_recipe
        origin: dict[str, Any] = {"seed_model": None}
        if seed_recipe:
            origin = {"seed_model": digest(seed_recipe.record(self._seed_run))}
        start = functools.partial(self.params, SEED_RUN) if seed_recipe else None
        self.recipe = dataclasses.replace(recipe, start=start, origin=origin)

    @property
    def _seed_run(self) -> Run:
        assert self._seed_recipe
        count = len(self._seed_recipe.stores)
        return Run(SEED_RUN, (1 / count,) * count, self.seed)

    def run(self, copies: Copies) -> Run:
        """The run that is trained on these copies of units: as many times a unit's steps as there are copies."""
        total = sum(copies.values())
        weights = tuple(copies.get(name, 0.0) / total for name in self.recipe.stores)
        return Run(run_name(copies), weights, self.seed, round(total * self.recipe.settings.steps))

    def missing(self, wanted: Iterable[Copies]) -> list[Run]:
        """The runs that are not trained yet, each once.

        Raises:
          UserError: one of them, or the seed model, was trained another way.
        """
        if self._seed_recipe:
            pending([self._seed_run], self._seed_recipe, self.directory / "runs")
        named = {run.name: run for run in map(self.run, wanted)}
        return pending(list(named.values()), self.recipe, self.directory / "runs")

    def train(self, wanted: Iterable[Copies], checkpoint_every: int, mesh: MeshShape | None = None) -> list[Run]:
        """Trains what is missing, the seed model first; returns the runs that were not there."""
        waiting = self.missing(wanted)
        settings = {"directory": self.directory / "runs", "checkpoint_every": checkpoint_every}
        if self._seed_recipe and waiting:
            alone = mesh and mesh.alone(self.recipe.model, self._seed_recipe.settings.sequences)
            pool.train_pool([self._seed_run], self._seed_recipe, mesh=alone, **settings)
        pool.train_pool(waiting, self.recipe, mesh=mesh, **settings)
        return waiting

    def record(self, run: str) -> dict[str, Any]:
        """What a run was trained on, from which seed model and by which schedule."""
        path = self.directory / "runs" / run / "run.json"
        if not path.exists():
            raise UserError(f"{path}: this run is not trained yet; run `mde ablate` first")
        return json.loads(path.read_text())

    def registry(self) -> pd.DataFrame:
        """Every run that is trained: the seed model it continues from, its steps and tokens, and its units' weights."""
        rows = {}
        for path in sorted((self.directory / "runs").glob("*/run.json")):
            record = json.loads(path.read_text())
            training, mixture = record["training"], record["mixture"]
            rows[path.parent.name] = {
                "seed_model": record.get("seed_model"),
                "steps": training["steps"],
                "tokens": training["steps"] * training["batch_size"] * training["seq_len"],
                "units": " ".join(f"{name}:{weight:.4g}" for name, weight in mixture.items()),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")

    def params(self, run: str) -> decoder.Params:
        """The parameters of a run; those that all begin with, where there is no seed model."""
        if run == SEED_RUN and not self._seed_recipe:
            return jax.tree.map(np.asarray, decoder.init(self.recipe.model, self.seed))
        like = jax.eval_shape(lambda: decoder.init(self.recipe.model, 0))
        return checkpoints.load_params(self.directory / "runs" / run / "params", like)

    def merged(self, names: Sequence[str], data: EvaluationSet) -> MergedLosses:
        """Losses of any averages of these runs around the seed model, for which the weights may leave something.

        Raises:
          UserError: runs that cannot be merged; see `check_mergeable`.
        """
        check_mergeable({name: self.record(name) for name in names}, self.directory)
        experts = (self.params(name) for name in names)
        return MergedLosses(self.recipe.model, experts, data, base=self.params(SEED_RUN), names=names)

    def score(self, names: Sequence[str], text: Text) -> pd.DataFrame:
        """Losses [runs, J] in nats per token of runs, or of the seed model; scores that are there are kept."""
        data = text.data
        scores, of = Scores(self.directory / "scores"), self._identities(names, text)
        found = {name: [scores.find(name, domain, of[name][domain]) for domain in data.domains] for name in names}
        missing = [name for name, row in found.items() if None in row]
        if missing:
            scorer = Scorer(self.recipe.model, data)
            total = int(data.token_counts.sum()) * len(missing)
            with tqdm(total=total, desc="score", unit="tok", unit_scale=True) as bar:
                for name in missing:
                    for j, log_probs in scorer(self.params(name), advance=bar.update):
                        domain = data.domains[j]
                        found[name][j] = scores.write(name, domain, of[name][domain], log_probs)
        losses = {name: [score.loss for score in row if score] for name, row in found.items()}
        return pd.DataFrame.from_dict(losses, orient="index", columns=list(data.domains)).rename_axis("run")

    def log_probs(self, names: Sequence[str], text: Text) -> Columns:
        """Log-probs in nats of the T evaluation tokens under runs that were scored, [T, runs]."""
        of = self._identities(names, text)
        wanted = [[of[name][domain] for domain in text.data.domains] for name in names]
        return Scores(self.directory / "scores").columns(names, text.data.domains, wanted)

    def _identities(self, names: Sequence[str], text: Text) -> dict[str, dict[str, str]]:
        """By run and domain, a name for what there is to score: the run's record and the text."""
        fresh = {"model": runs.on_record(self.recipe.model), "seed": self.seed}
        records = {n: fresh if n == SEED_RUN and not self._seed_recipe else self.record(n) for n in names}
        return {name: {d: digest([records[name], of]) for d, of in text.names.items()} for name in names}


def check_mergeable(records: Mapping[str, Mapping[str, Any]], directory: epath.PathLike) -> None:
    """Raises UserError where the average of these runs would stand for nothing, with the first reason.

    Averages of parameters mean something only near a common start: one architecture, one seed model (or the same fresh
    parameters), one schedule a unit.

    Args:
      records: of the runs, by name.
      directory: where they are, for the message.
    """
    (first, wanted), *others = ((name, _comparable(record)) for name, record in records.items())
    for name, found in others:
        for what, value in wanted.items():
            if found[what] != value:
                raise UserError(
                    f"{directory}: {name!r} and {first!r} cannot be merged: trained with different {what} "
                    f"({found[what]}, {value}); delete the one that is wrong and run `mde ablate` again"
                )


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What runs that are merged must have in common; a run on several units has as many times a unit's steps."""
    schedule = {name: value for name, value in record["training"].items() if name != "steps"}
    return {
        "architectures": {k: v for k, v in record["model"].items() if k not in runs.NOT_ARCHITECTURE},
        "seed models": record["seed_model"] or f"none, fresh parameters of seed {record['seed']}",
        "schedules": {
            "steps of a unit": round(record["training"]["steps"] * min(record["mixture"].values())),
            **schedule,
        },
    }
