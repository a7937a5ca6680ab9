"""`mde final`, which is `mde train --mixture=…`: full models on the mixtures that were found, and how they compare."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mde import hosts
from mde.errors import UserError, check_positive
from mde.models.config import DecoderConfig
from mde.reporting import final as report
from mde.results import comparison
from mde.results.mixtures import RECOMMENDED, mixtures
from mde.study import Study, digest
from mde.training.metrics import Watching
from mde.training.step import TrainSettings

HALF = "half"  # how the names of runs of half the length end
OWN = ("steps", "batch_size", "seq_len", "learning_rate")  # settings that have arguments of their own


def final(
    study: Study,
    steps: int,
    mixture: Sequence[str | Mapping[str, Any]] = (RECOMMENDED,),
    preset: str | None = None,
    seeds: int = 1,
    batch_size: int | None = None,
    seq_len: int | None = None,
    learning_rate: float | None = None,
    from_seed_model: bool = False,
    half: bool = False,
    first_seed: int = 1,
    tokens_per_domain: int | None = None,
    model: Mapping[str, str | float | bool] | None = None,
    settings: Mapping[str, str | float | bool] | None = None,
    mesh: str | None = None,
    checkpoint_every: int = 500,
    checkpoint_minutes: float | None = None,
    validate_every: int = 0,
    tensorboard: bool = False,
) -> None:
    """Trains full models on named mixtures, scores them on all evaluation domains and end tasks, and compares them.

    They are left in a folder of their own, STUDY/final/PRESET-STEPS-…, which `mde export` and `mde eval` take as a
    study. The same command goes on after a kill; more mixtures or seeds train what is new, and the table is of those
    that the last command has named.

    Args:
      study: a study with scored runs.
      steps: optimizer steps.
      mixture: names of mixtures (recommended, uniform, proportional, unimax, best observed, regmix, mixing-law, mde,
        mixmin, scale, doremi, doge, or DIRECTORY:NAME of another study), shares by domain, or these under a name of
        your own, such as {'human': {'web': .7, 'code': .3}}. The first one, or the recommended, is what others are
        compared with.
      preset: name of the model, as `mde models` lists them; that of the study by default.
      seeds: runs of each mixture.
      batch_size: sequences per step; those of the study by default.
      seq_len: predicted tokens per sequence; those of the study by default.
      learning_rate: peak of the schedule; by default that of the study's runs from fresh parameters (of its seed model,
        if it has one), times its models' width over these models'.
      from_seed_model: whether runs continue from the study's seed model, whose architecture they then have, rather than
        start afresh.
      half: whether each mixture is trained for half of the steps too, with the first seed: this tells how many tokens
        it would need to be as good as the one that others are compared with.
      first_seed: seed of the first run: of data orders and fresh parameters.
      tokens_per_domain: whole documents of each evaluation domain are scored until they have this many tokens; as many
        as of the study's own runs by default.
      model: fields of the preset to change, such as {'dtype': 'bfloat16', 'remat': 'full'}.
      settings: further settings of the training that differ from the study's, such as {'warmup_steps': 500}.
      mesh: devices along each axis, such as pool=4,data=2,model=1; one per run if None.
      checkpoint_every: steps between states to resume from.
      checkpoint_minutes: minutes after which a state is saved as well.
      validate_every: steps between losses on the validation text of every domain, in metrics.jsonl; 0 for never.
      tensorboard: whether each run's directory gets event files (this imports TensorFlow).

    Raises:
      UserError: an unknown name or domain, a mixture whose method has not been run, a seed model of another
        architecture, settings that make no sense.
    """
    check_positive(seeds=seeds, steps=steps, checkpoint_every=checkpoint_every)
    about = comparison.training(study, preset, model, from_seed_model)
    given = {"steps": steps, "batch_size": batch_size, "seq_len": seq_len, "learning_rate": learning_rate}
    about["settings"] = dataclasses.asdict(_settings(about["settings"], given, settings))
    about["mesh"] = mesh
    scoring = {**study.read_json("scoring.json", "score"), "batch_size": None}
    if tokens_per_domain is not None:
        check_positive(tokens_per_domain=tokens_per_domain)
        scoring["tokens_per_domain"] = tokens_per_domain
    compared = mixtures(study, mixture, "mixture")
    table = _runs(compared, range(first_seed, first_seed + seeds), steps, half)
    what = [about[key] for key in ("model", "settings", "seed_settings")]
    part = study.part(f"{report.FOLDER}/{about['preset']}-{steps}-{digest(what)[:6]}")
    if hosts.is_first():
        print(_announcement(about, len(table), part), flush=True)
    watching = Watching(validate_every, tensorboard)
    comparison.train_and_compare(part, about, scoring, table, compared, checkpoint_every, checkpoint_minutes, watching)
    if hosts.is_first():
        print(report.text(part))


def _settings(
    theirs: Mapping[str, Any], given: Mapping[str, float | None], more: Mapping[str, Any] | None
) -> TrainSettings:
    """The study's settings with those that are given."""
    for name in more or {}:
        if name in OWN:
            raise UserError(f"settings: {name} has an argument of its own")
    own = {name: value for name, value in given.items() if value is not None}
    return TrainSettings.from_dict({**theirs, **(more or {}), **own})


def _runs(compared: pd.DataFrame, seeds: Sequence[int], steps: int, half: bool) -> pd.DataFrame:
    """The table of runs, with their steps; those of half the length have the first seed."""
    table = comparison.runs(compared, seeds, "final", steps)
    if not half:
        return table
    if steps < 2:
        raise UserError(f"steps={steps} cannot be halved")
    halves = table[table["seed"] == seeds[0]].assign(steps=steps // 2)
    halves.index = pd.Index([f"{run}-{HALF}" for run in halves.index], name="run")
    return pd.concat([table, halves])


def _announcement(about: Mapping[str, Any], runs: int, part: Study) -> str:
    """What is going to be trained, in a line."""
    model, settings = DecoderConfig.from_dict(about["model"]), TrainSettings.from_dict(about["settings"])
    start = "the seed model" if about["seed_settings"] else "fresh parameters"
    return (
        f"{runs} full models, {about['preset']}: {model.parameters:,} parameters, {settings.steps:,} steps of "
        f"{settings.batch_size} × {settings.seq_len} tokens from {start}, learning rate {settings.learning_rate:.3g}; "
        f"in {part.root}"
    )
