"""`mde train`: a seed model, an expert for each domain, and the observations."""

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from mde import buckets
from mde.data import epochs
from mde.errors import UserError, check_positive
from mde.models import config as model_configs
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.optimization import draws, simplex
from mde.regression import swarm
from mde.study import Study, digest
from mde.training import checkpoints, pool
from mde.training.metrics import Watching
from mde.training.placement import MeshShape
from mde.training.runs import check_seed, pending, recorded
from mde.training.step import TrainSettings

SEED_RUN = "seed"
RESERVED = (SEED_RUN, "expert-", "proof-", "iterate-", "scale-")  # how the runs that mde makes are called


def train(
    study: Study,
    preset: str,
    steps: int,
    batch_size: int,
    seq_len: int,
    learning_rate: float,
    seed_steps: int = 0,
    seed_learning_rate: float | None = None,
    observations: int = 24,
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
    """Trains the pool: one expert a domain (one-hot mixtures) and the observations a regressor is fitted on.

    With `--mixture` it trains full models on the mixtures that were found, and no pool: see `mde final --help`.

    Args:
      study: a prepared study.
      preset: name of the model; `mde models` lists them.
      steps: optimizer steps of every expert and observation.
      batch_size: sequences a step.
      seq_len: predicted tokens a sequence.
      learning_rate: peak of the schedule.
      seed_steps: steps of the seed model on the uniform mixture, which all runs continue from; 0 for none.
      seed_learning_rate: its peak; `learning_rate` if None.
      observations: how many mixtures to draw, spread over the simplex; 0 for experts alone. A domain that joined the
        study later has as many more as there are a domain.
      mixtures: a CSV file of observations to train instead: an id column `run`, and one column a training domain.
      concentration: of the Dirichlet distribution that they are drawn from.
      seed: of data orders, fresh parameters and the draws.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well.
      model: fields of the preset to change, such as {'dtype': 'bfloat16', 'remat': 'full'}.
      settings: further settings of the training, such as {'schedule': 'wsd', 'accumulate': 4, 'z_loss': 1e-4}.
      mesh: devices along each axis, such as pool=4,data=2,model=1; one a run if None.
      validate_every: steps between losses on the validation text of every domain, in metrics.jsonl; 0 for never.
      tensorboard: whether each run's directory gets event files (this imports TensorFlow); not in buckets.

    Raises:
      UserError: an unknown preset, mixtures off the simplex, or runs that were trained another way.
    """
    check_positive(checkpoint_every=checkpoint_every, concentration=concentration)
    check_seed(seed)
    if tensorboard and buckets.is_bucket(study.root):
        raise UserError(f"{study}: TensorBoard's event files are written on a disk only; leave out train.tensorboard")
    table = _plan(study, observations, mixtures, concentration, seed)
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


def _seed_shares(names: Sequence[str], known: Mapping[str, Any] | None) -> tuple[float, ...]:
    """The seed model's mixture: equal shares of the domains there were when it was trained, none of later ones."""
    there = (known or {}).get("mixture", {})
    read = [name for name in names if there.get(name)] or names
    return tuple(1 / len(read) if name in read else 0.0 for name in names)


def train_settings(
    steps: int, batch_size: int, seq_len: int, learning_rate: float, more: Mapping[str, Any] | None
) -> TrainSettings:
    """Settings from the arguments of a stage and a mapping of further ones; UserError at an unknown or a double one."""
    given = {"steps": steps, "batch_size": batch_size, "seq_len": seq_len, "learning_rate": learning_rate}
    for name in more or {}:
        if name in given:
            raise UserError(f"settings: {name} has an argument of its own")
    return TrainSettings.from_dict({**given, **(more or {})})


def train_runs(
    study: Study,
    about: Mapping[str, Any],
    table: pd.DataFrame,
    checkpoint_every: int,
    checkpoint_minutes: float | None = None,
    watching: Watching = pool.UNWATCHED,
) -> None:
    """Trains the runs of a table of mixtures, the seed model first; what is done is kept.

    Args:
      study: a prepared study.
      about: what all runs have in common: the content of `training.json`.
      table: [runs] with columns `seed`, one a training domain, and `steps` where runs have lengths of their own.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well.
      watching: what else is measured and shown on the way.

    Raises:
      UserError: a run was trained another way; then nothing is trained.
    """
    names = list(study.domains.training)
    directory = study.root / "runs"
    model = DecoderConfig.from_dict(about["model"])
    settings = TrainSettings.from_dict(about["settings"])
    mesh = MeshShape.parse(about["mesh"]) if about.get("mesh") else None
    stores = {name: study.store(name, "train") for name in names}
    steps = [int(n) for n in table["steps"]] if "steps" in table else [settings.steps] * len(table)
    _warn_of_repeats(
        names,
        table[names].to_numpy(float),
        np.array(steps) * settings.batch_size * settings.seq_len,
        np.array([stores[name].n_tokens for name in names]),
    )
    domains = study.domains.evaluation if watching.validate_every else ()
    validation = {name: study.store(name, "validation") for name in domains}
    runs = [
        pool.Run(str(name), tuple(map(float, row[names])), int(row["seed"]), length)
        for (name, row), length in zip(table.iterrows(), steps, strict=True)
    ]
    train_pool = functools.partial(
        pool.train_pool,
        directory=directory,
        checkpoint_every=checkpoint_every,
        checkpoint_minutes=checkpoint_minutes,
        watching=watching,
    )
    if about["seed_settings"] is None:
        train_pool(runs, pool.Recipe(model, settings, stores, None, {}, validation), mesh=mesh)
        return
    first = study.whole.root / "runs"
    known = recorded(first / SEED_RUN)
    shares = _seed_shares(names, known)
    uniform = pool.Run(SEED_RUN, shares, about["seed"])
    fresh = pool.Recipe(model, TrainSettings.from_dict(about["seed_settings"]), stores, None, {}, validation)
    origin = {"seed_model": digest(known or fresh.record(uniform))}
    recipe = pool.Recipe(model, settings, stores, lambda: load_run(study.whole, SEED_RUN, model), origin, validation)
    pending([uniform], fresh, first)
    pending(runs, recipe, directory)  # refuse before the seed model is paid for
    train_pool([uniform], fresh, directory=first, mesh=mesh and mesh.alone(model, fresh.settings.sequences))
    train_pool(runs, recipe, mesh=mesh)


def model_config(study: Study) -> DecoderConfig:
    """The architecture of the study's runs."""
    return DecoderConfig.from_dict(study.read_json("training.json", "train")["model"])


def load_run(study: Study, name: str, config: DecoderConfig) -> decoder.Params:
    """The parameters of a trained run."""
    like = jax.eval_shape(lambda: decoder.init(config, 0))
    return checkpoints.load_params(study.root / "runs" / name / "params", like)


def _warn_of_repeats(names: list[str], weights_MxK: np.ndarray, budget_M: np.ndarray, tokens_K: np.ndarray) -> None:
    """Says which domains' text some run reads more often than is known to do no harm."""
    most_K = epochs.repeats(weights_MxK, tokens_K, budget_M).max(axis=0)
    if line := epochs.warning(names, most_K):
        print(f"warning: in a run of up to {budget_M.max():,} tokens {line}", file=sys.stderr)


def _plan(study: Study, observations: int, mixtures: str | None, concentration: float, seed: int) -> pd.DataFrame:
    """The table of runs: experts, then observations."""
    names = study.domains.training
    experts = pd.DataFrame(simplex.corners(len(names)), [f"expert-{name}" for name in names], names)
    observed = _read_mixtures(mixtures, names) if mixtures else _drawn(study, observations, concentration, seed)
    table = pd.concat([experts, observed])
    table.index.name = "run"
    table.insert(0, "role", ["expert"] * len(experts) + ["observation"] * len(observed))
    table.insert(1, "seed", seed)
    return table


def _drawn(study: Study, observations: int, concentration: float, seed: int) -> pd.DataFrame:
    """Observations over the domains that the study began with, and for each that joined it as many as a domain has.

    Those of a domain that joined are spread over it and all domains before it; the earlier ones stay as they are.
    """
    names = list(study.domains.training)
    joined = [name for part in study.joined for name in part if name in names]
    begun = [name for name in names if name not in joined]
    tables = [pd.DataFrame(columns=names, dtype=float)]
    for count in range(len(begun), len(names) + 1) if observations else ():
        known, newest = [*begun, *joined][:count], f"{joined[count - len(begun) - 1]}-" if count > len(begun) else ""
        rows = observations if count == len(begun) else -(-observations // len(begun))
        law = draws.Law(np.ones(count), (concentration, concentration))
        drawn = draws.draw(rows, law, seed + count - len(begun))
        labels = [f"observation-{newest}{i:02d}" for i in range(rows)]
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
