"""Runs of a study: trained from a table of mixtures, and their parameters loaded again."""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from mde.data import epochs
from mde.models import decoder
from mde.models.config import DecoderConfig
from mde.results.training_options import Running
from mde.study import Study, digest
from mde.training import checkpoints, pool
from mde.training.placement import MeshShape
from mde.training.runs import pending, recorded
from mde.training.settings import TrainSettings

SEED_RUN = "seed"


RESERVED = (SEED_RUN, "expert-", "validation-", "iterate-", "scale-")  # how the runs that mde makes are called


def _seed_weights(names: Sequence[str], known: Mapping[str, Any] | None) -> tuple[float, ...]:
    """The seed model's mixture: equal weights of the domains there were when it was trained, none of later ones."""
    there = (known or {}).get("mixture", {})
    read = [name for name in names if there.get(name)] or names
    return tuple(1 / len(read) if name in read else 0.0 for name in names)


def train_runs(
    study: Study,
    about: Mapping[str, Any],
    table: pd.DataFrame,
    running: Running,
) -> None:
    """Trains the runs of a table of mixtures, the seed model first; what is done is kept.

    Args:
      study: a prepared study.
      about: what all runs have in common: the content of `training.json`.
      table: [runs] with columns `seed`, one per training domain, and `steps` where runs have lengths of their own.
      running: how they are carried out; the mesh is that of `about`.

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
    domains = study.domains.evaluation if running.validate_every else ()
    validation = {name: study.store(name, "validation") for name in domains}
    runs = [
        pool.Run(str(name), tuple(map(float, row[names])), int(row["seed"]), length)
        for (name, row), length in zip(table.iterrows(), steps, strict=True)
    ]
    train_pool = functools.partial(
        pool.train_pool,
        directory=directory,
        checkpoint_every=running.checkpoint_every,
        checkpoint_minutes=running.checkpoint_minutes,
        watching=running.watching,
    )
    if about["seed_settings"] is None:
        train_pool(runs, pool.Recipe(model, settings, stores, None, {}, validation), mesh=mesh)
        return
    first = study.whole.root / "runs"
    known = recorded(first / SEED_RUN)
    weights = _seed_weights(names, known)
    uniform = pool.Run(SEED_RUN, weights, about["seed"])
    fresh = pool.Recipe(model, TrainSettings.from_dict(about["seed_settings"]), stores, None, {}, validation)
    origin = {"seed_model": digest(known or fresh.record(uniform))}
    recipe = pool.Recipe(model, settings, stores, lambda: load_run(study.whole, SEED_RUN, model), origin, validation)
    pending([uniform], fresh, first)
    pending(runs, recipe, directory)  # refuse before the seed model is paid for
    train_pool([uniform], fresh, directory=first, mesh=mesh and mesh.alone(model, fresh.settings.sequences))
    train_pool(runs, recipe, mesh=mesh)


def _warn_of_repeats(names: list[str], weights_MxK: np.ndarray, budget_M: np.ndarray, tokens_K: np.ndarray) -> None:
    """Says which domains' text some run reads more often than is known to do no harm."""
    most_K = epochs.repeats(weights_MxK, tokens_K, budget_M).max(axis=0)
    if line := epochs.warning(names, most_K):
        print(f"warning: in a run of up to {budget_M.max():,} tokens {line}", file=sys.stderr)


def model_config(study: Study) -> DecoderConfig:
    """The architecture of the study's runs."""
    return DecoderConfig.from_dict(study.read_json("training.json", "train")["model"])


def load_run(study: Study, name: str, config: DecoderConfig) -> decoder.Params:
    """The parameters of a trained run."""
    like = jax.eval_shape(lambda: decoder.init(config, 0))
    return checkpoints.load_params(study.root / "runs" / name / "params", like)
