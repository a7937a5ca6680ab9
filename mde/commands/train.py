"""`mde train`: a seed model, an expert for each domain, and the proxy runs."""

import dataclasses
import re
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde import buckets
from mde.arguments import FLAT
from mde.errors import UserError, check_positive
from mde.models import config as model_configs
from mde.optimization import draws, simplex
from mde.regression import swarm as swarm_files
from mde.results.trained_runs import RESERVED, train_runs
from mde.results.training_options import ModelChanges, Running
from mde.study import Study
from mde.training.runs import check_seed
from mde.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class SeedModel:
    """The model that all runs continue from.

    Attributes:
      seed_steps: steps of the seed model on the uniform mixture, which all runs continue from; 0 for none.
      seed_learning_rate: its peak; `learning_rate` if None.
    """

    seed_steps: int = 0
    seed_learning_rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Swarm:
    """The proxy runs.

    Attributes:
      proxy_runs: how many mixtures to draw, spread over the simplex; 0 for experts alone. A domain that joined the
        study later has as many more as there are per domain.
      mixtures: a CSV file of proxy runs to train instead: an id column `run`, and one column per training domain.
      concentration: of the Dirichlet distribution that they are drawn from.
    """

    proxy_runs: int = 24
    mixtures: str | None = None
    concentration: float = 1.0


def train(
    study: Study,
    preset: str,
    training: Annotated[TrainSettings, FLAT],
    seed_model: Annotated[SeedModel, FLAT] = SeedModel(),
    swarm: Annotated[Swarm, FLAT] = Swarm(),
    model: ModelChanges = None,
    running: Annotated[Running, FLAT] = Running(),
    seed: int = 0,
) -> None:
    """Trains the pool: one expert per domain (one-hot mixtures) and the proxy runs a regressor is fitted on.

    With `--mixture` it trains full models on the mixtures that were found, and no pool: see `mde final --help`.

    Args:
      study: a prepared study.
      preset: name of the model; `mde models` lists them.
      training: of every expert and proxy run.
      seed_model: that all runs continue from.
      swarm: the proxy runs.
      model: fields of the preset to change.
      running: how runs are carried out.
      seed: of data orders, fresh parameters and the draws.

    Raises:
      UserError: an unknown preset, mixtures off the simplex, or runs that were trained another way.
    """
    check_positive(concentration=swarm.concentration)
    check_seed(seed)
    if running.tensorboard and buckets.is_bucket(study.root):
        raise UserError(f"{study}: TensorBoard's event files are written on a disk only; leave out train.tensorboard")
    table = _plan(study, swarm, seed)
    about: dict[str, Any] = {
        "preset": preset,
        "model": dataclasses.asdict(model_configs.preset(preset, study.about["vocab_size"], **(model or {}))),
        "settings": dataclasses.asdict(training),
        "seed_settings": None,
        "seed": seed,
        "mesh": running.mesh,
    }
    if seed_model.seed_steps:
        rate = seed_model.seed_learning_rate or training.learning_rate
        about["seed_settings"] = {**about["settings"], "steps": seed_model.seed_steps, "learning_rate": rate}
    train_runs(study, about, table, running)
    study.write_json("training.json", about)
    study.write_table("mixtures.csv", table)


def _plan(study: Study, swarm: Swarm, seed: int) -> pd.DataFrame:
    """The table of runs: experts, then proxy runs."""
    names = study.domains.training
    experts = pd.DataFrame(simplex.corners(len(names)), [f"expert-{name}" for name in names], names)
    observed = (
        _read_mixtures(swarm.mixtures, names)
        if swarm.mixtures
        else _drawn(study, swarm.proxy_runs, swarm.concentration, seed)
    )
    table = pd.concat([experts, observed])
    table.index.name = "run"
    table.insert(0, "role", ["expert"] * len(experts) + ["proxy"] * len(observed))
    table.insert(1, "seed", seed)
    return table


def _drawn(study: Study, proxy_runs: int, concentration: float, seed: int) -> pd.DataFrame:
    """Proxy runs over the domains that the study began with, and for each that joined it as many as a domain has.

    Those of a domain that joined are spread over it and all domains before it; the earlier ones stay as they are.
    """
    names = list(study.domains.training)
    joined = [name for part in study.joined for name in part if name in names]
    begun = [name for name in names if name not in joined]
    tables = [pd.DataFrame(columns=names, dtype=float)]
    for count in range(len(begun), len(names) + 1) if proxy_runs else ():
        known, newest = [*begun, *joined][:count], f"{joined[count - len(begun) - 1]}-" if count > len(begun) else ""
        rows = proxy_runs if count == len(begun) else -(-proxy_runs // len(begun))
        law = draws.Law(np.ones(count), (concentration, concentration))
        drawn = draws.draw(rows, law, seed + count - len(begun))
        labels = [f"proxy-{newest}{i:02d}" for i in range(rows)]
        tables.append(pd.DataFrame(drawn, labels, known).reindex(columns=names, fill_value=0.0))
    return pd.concat(tables)


def _read_mixtures(path: str, names: tuple[str, ...]) -> pd.DataFrame:
    """The mixtures of a user's CSV file by run, its columns in the study's order; sums are exact, or a mistake."""
    table = swarm_files.read_mixtures(path, names, tolerance=1e-6, where="train.mixtures").values
    for run in table.index:
        if not re.fullmatch(r"\w[\w.-]*", run) or run.startswith(RESERVED):
            raise UserError(
                f"{path}: run {run!r}: expected letters, digits, '_', '-' and '.', "
                f"and a name that does not start with {' or '.join(RESERVED)}"
            )
    return table[list(names)]
