"""`mde train`: a seed model, an expert for each domain, and the proxy runs."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mde import buckets
from mde.errors import UserError, check_positive
from mde.models import config as model_configs
from mde.optimization import draws, simplex
from mde.regression import swarm
from mde.results.trained_runs import RESERVED, train_runs, train_settings
from mde.study import Study
from mde.training.metrics import Watching
from mde.training.runs import check_seed


def train(
    study: Study,
    preset: str,
    steps: int,
    batch_size: int,
    seq_len: int,
    learning_rate: float,
    seed_steps: int = 0,
    seed_learning_rate: float | None = None,
    proxy_runs: int = 24,
    mixtures: str | None = None,
    concentration: float = 1.0,
    seed: int = 0,
    checkpoint_every: int = 500,
    checkpoint_minutes: float | None = None,
    model: Mapping[str, str | float | bool] | None = None,
    settings: Mapping[str, str | float | bool] | None = None,
    mesh: str | None = None,
    validate_every: int = 0,
    tensorboard: bool = False,
) -> None:
    """Trains the pool: one expert per domain (one-hot mixtures) and the proxy runs a regressor is fitted on.

    With `--mixture` it trains full models on the mixtures that were found, and no pool: see `mde final --help`.

    Args:
      study: a prepared study.
      preset: name of the model; `mde models` lists them.
      steps: optimizer steps of every expert and proxy run.
      batch_size: sequences per step.
      seq_len: predicted tokens per sequence.
      learning_rate: peak of the schedule.
      seed_steps: steps of the seed model on the uniform mixture, which all runs continue from; 0 for none.
      seed_learning_rate: its peak; `learning_rate` if None.
      proxy_runs: how many mixtures to draw, spread over the simplex; 0 for experts alone. A domain that joined the
        study later has as many more as there are per domain.
      mixtures: a CSV file of proxy runs to train instead: an id column `run`, and one column per training domain.
      concentration: of the Dirichlet distribution that they are drawn from.
      seed: of data orders, fresh parameters and the draws.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well.
      model: fields of the preset to change, such as {'dtype': 'bfloat16', 'remat': 'full'}.
      settings: further settings of the training, such as {'schedule': 'wsd', 'accumulate': 4, 'z_loss': 1e-4}.
      mesh: devices along each axis, such as pool=4,data=2,model=1; one per run if None.
      validate_every: steps between losses on the validation text of every domain, in metrics.jsonl; 0 for never.
      tensorboard: whether each run's directory gets event files (this imports TensorFlow); not in buckets.

    Raises:
      UserError: an unknown preset, mixtures off the simplex, or runs that were trained another way.
    """
    check_positive(checkpoint_every=checkpoint_every, concentration=concentration)
    check_seed(seed)
    if tensorboard and buckets.is_bucket(study.root):
        raise UserError(f"{study}: TensorBoard's event files are written on a disk only; leave out train.tensorboard")
    table = _plan(study, proxy_runs, mixtures, concentration, seed)
    about: dict[str, Any] = {
        "preset": preset,
        "model": dataclasses.asdict(model_configs.preset(preset, study.about["vocab_size"], **(model or {}))),
        "settings": dataclasses.asdict(train_settings(steps, batch_size, seq_len, learning_rate, settings)),
        "seed_settings": None,
        "seed": seed,
        "mesh": mesh,
    }
    if seed_steps:
        rate = seed_learning_rate or learning_rate
        about["seed_settings"] = {**about["settings"], "steps": seed_steps, "learning_rate": rate}
    train_runs(study, about, table, checkpoint_every, checkpoint_minutes, Watching(validate_every, tensorboard))
    study.write_json("training.json", about)
    study.write_table("mixtures.csv", table)


def _plan(study: Study, proxy_runs: int, mixtures: str | None, concentration: float, seed: int) -> pd.DataFrame:
    """The table of runs: experts, then proxy runs."""
    names = study.domains.training
    experts = pd.DataFrame(simplex.corners(len(names)), [f"expert-{name}" for name in names], names)
    observed = _read_mixtures(mixtures, names) if mixtures else _drawn(study, proxy_runs, concentration, seed)
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
    table = swarm.read_mixtures(path, names, tolerance=1e-6, where="train.mixtures").values
    for run in table.index:
        if not re.fullmatch(r"\w[\w.-]*", run) or run.startswith(RESERVED):
            raise UserError(
                f"{path}: run {run!r}: expected letters, digits, '_', '-' and '.', "
                f"and a name that does not start with {' or '.join(RESERVED)}"
            )
    return table[list(names)]
