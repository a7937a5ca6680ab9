"""`mde final`, which is `mde train --mixture=…`: full models on the mixtures that were found, and how they compare."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pandas as pd

from mde import hosts
from mde.arguments import FLAT
from mde.errors import UserError, check_positive
from mde.models.config import DecoderConfig
from mde.reporting import final as report
from mde.results import comparison
from mde.results.mixtures import RECOMMENDED, mixtures
from mde.results.training_options import LengthlessChanges, ModelChanges, Running, changed
from mde.study import Study, digest
from mde.training.settings import TrainSettings

HALF = "half"  # how the names of runs of half the length end


@dataclasses.dataclass(frozen=True)
class Runs:
    """Which runs each mixture has.

    Attributes:
      seeds: runs of each mixture.
      first_seed: seed of the first run: of data orders and fresh parameters.
      from_seed_model: whether runs continue from the study's seed model, whose architecture they then have, rather than
        start afresh.
      half: whether each mixture is trained for half of the steps too, with the first seed: this tells how many tokens
        it would need to be as good as the one that others are compared with.
      tokens_per_domain: whole documents of each evaluation domain are scored until they have this many tokens; as many
        as of the study's own runs by default.
    """

    seeds: int = 1
    first_seed: int = 1
    from_seed_model: bool = False
    half: bool = False
    tokens_per_domain: int | None = None


def final(
    study: Study,
    steps: int,
    mixture: Sequence[str | Mapping[str, Any]] = (RECOMMENDED,),
    preset: str | None = None,
    training: LengthlessChanges = None,
    model: ModelChanges = None,
    runs: Annotated[Runs, FLAT] = Runs(),
    running: Annotated[Running, FLAT] = Running(),
) -> None:
    """Trains full models on named mixtures, scores them on all evaluation domains and end tasks, and compares them.

    They are left in a folder of their own, STUDY/final/PRESET-STEPS-…, which `mde export` and `mde eval` take as a
    study. The same command goes on after a kill; more mixtures or seeds train what is new, and the table is of those
    that the last command has named.

    Args:
      study: a study with scored runs.
      steps: optimizer steps.
      mixture: names of mixtures (recommended, uniform, proportional, unimax, best observed, regmix, mixing-law, mde,
        mixmin, scale, doremi, doge, or DIRECTORY:NAME of another study), weights by domain (`web=.7,code=.3`), or these
        under a name of your own (`human=web:.7,code:.3`). The first one, or the recommended, is what others are
        compared with.
      preset: name of the model, as `mde models` lists them; that of the study by default.
      training: settings that differ from the study's. The learning rate is by default that of the study's runs from
        fresh parameters (of its seed model, if it has one), times its models' width over these models'.
      model: fields of the preset to change.
      runs: which runs each mixture has.
      running: how they are carried out.

    Raises:
      UserError: an unknown name or domain, a mixture whose method has not been run, a seed model of another
        architecture, settings that make no sense.
    """
    check_positive(seeds=runs.seeds, steps=steps)
    about = comparison.training(study, preset, model, runs.from_seed_model)
    about["settings"] = dataclasses.asdict(changed(about["settings"], training, steps=steps))
    about["mesh"] = running.mesh
    scoring = {**study.read_json("scoring.json", "score"), "batch_size": None}
    if runs.tokens_per_domain is not None:
        check_positive(tokens_per_domain=runs.tokens_per_domain)
        scoring["tokens_per_domain"] = runs.tokens_per_domain
    compared = mixtures(study, mixture, "mixture")
    table = _runs(compared, range(runs.first_seed, runs.first_seed + runs.seeds), steps, runs.half)
    what = [about[key] for key in ("model", "settings", "seed_settings")]
    part = study.part(f"{report.FOLDER}/{about['preset']}-{steps}-{digest(what)[:6]}")
    if hosts.is_first():
        print(_announcement(about, len(table), part), flush=True)
    comparison.train_and_compare(part, about, scoring, table, compared, running)
    if hosts.is_first():
        print(report.text(part))


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
