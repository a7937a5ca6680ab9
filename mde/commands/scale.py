"""`mde scale`: the best mixture at small budgets, carried to a large one (AutoScale, arXiv 2407.20177)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated

import pandas as pd

from mde.arguments import FLAT
from mde.errors import UserError, check_positive, unknown
from mde.regression import swarm
from mde.reporting import scaling as report
from mde.results.mixtures import mixture, tokens_of
from mde.results.training_options import LengthlessChanges
from mde.scaling import from_experts as scale_mde
from mde.scaling import runs as scale_runs
from mde.scaling import validation as scale_validation
from mde.scaling.answer import Terms, answer
from mde.scaling.autoscale import ROUNDING
from mde.study import Study

UNITS = ("tokens", "steps")
VALIDATION_SEEDS = 1000  # the validation's seeds begin this far from those of the fits, which must not keep their luck


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The runs at small budgets, and those at the target.

    Attributes:
      budgets: tokens of the base runs, increasing.
      unit: of `budgets` and `target`: tokens or (optimizer) steps; of files it is tokens.
      base: the mixture that quantities are multiplied in: uniform, proportional, recommended, or weights by domain.
      factor: by which a domain's tokens are divided and multiplied.
      seeds: runs of each kind; two or more say how large the noise of a run is.
      mde_mixtures: mixtures to train at each budget beside one expert per domain, for the optima of mixtures of data
        experts, which are then compared; 0 for none.
      validation_seeds: runs at the target of the predicted mixture and each of its baselines (the optima at the largest
        and the smallest budget as they are, uniform and proportional); 0 for none.
    """

    budgets: Sequence[float] = ()
    unit: str = "tokens"
    base: str | Mapping[str, float] = "uniform"
    factor: float = 3.0
    seeds: int = 1
    mde_mixtures: int = 0
    validation_seeds: int = 0

    def __post_init__(self) -> None:
        check_positive(seeds=self.seeds)
        for what in ("validation_seeds", "mde_mixtures"):
            if getattr(self, what) < 0:
                raise UserError(f"{what}={getattr(self, what)}, expected how many, or 0 for none")
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS)


@dataclasses.dataclass(frozen=True)
class Files:
    """Runs or optima of somebody else.

    Attributes:
      quantities: a CSV file of somebody else's runs: columns run, budget (tokens of its base run), seed (where runs
        are repeated), and the tokens of each domain.
      losses: a CSV file of their losses: a column run, and one per evaluation domain.
      optima: a CSV file of best quantities: a column run, and the tokens of each domain; one row per budget.
    """

    quantities: str | None = None
    losses: str | None = None
    optima: str | None = None

    def check(self, ladder: Ladder) -> None:
        """Raises UserError where files and budgets, or files of two kinds, are given."""
        files = dataclasses.asdict(self)
        if (self.optima and (self.quantities or self.losses)) or (any(files.values()) and ladder.budgets):
            given = [name for name, value in {**files, "budgets": ladder.budgets}.items() if value]
            raise UserError(
                f"{' and '.join(given)} are given: expected budgets to train at, or files of runs, or of optima"
            )
        if any(files.values()) and ladder.unit != "tokens":
            raise UserError(f"unit={ladder.unit!r}: files of runs and optima are in tokens, and so is their target")


def scale(
    study: Study,
    ladder: Annotated[Ladder, FLAT] = Ladder(),
    terms: Annotated[Terms, FLAT] = Terms(),
    files: Annotated[Files, FLAT] = Files(),
    training: LengthlessChanges = None,
    from_seed_model: bool = False,
    checkpoint_every: int = 500,
) -> None:
    """Finds the best mixture at small budgets from runs with more and less of each domain, and where it moves.

    At each budget a base run is trained, and for each domain one run with its tokens divided and one with them
    multiplied, all else equal. Power laws through these losses give the optimum at the budget; the optima lie on a
    line in the logarithms of the quantities, which leads to the one at the target. Runs and optima of somebody else
    can be given as CSV files instead. Stopped at any time, the same command goes on.

    Args:
      study: a study with scored runs (their model, training and evaluation text are used); or a new one for files.
      ladder: the runs at small budgets, and those at the target.
      terms: what is asked of them.
      files: of somebody else's runs or optima, instead of runs.
      training: settings that differ from the study's, such as --learning_rate=4e-3.
      from_seed_model: whether runs continue from the study's seed model, rather than start afresh.
      checkpoint_every: steps between states to resume from.
    """
    check_positive(checkpoint_every=checkpoint_every)
    files.check(ladder)
    if files.optima:
        table = swarm.read_numbers(files.optima).values
        names = [str(name) for name in table]
        study.write_json("scale.json", {"domains": names, "ddo": terms.carried(names, table.to_numpy())})
    elif files.quantities or files.losses:
        if not (files.quantities and files.losses):
            raise UserError("runs from elsewhere are two files: give both --quantities and --losses")
        runs, observed = scale_runs.read_runs(files.quantities, files.losses)
        names = [str(name) for name in runs if name not in scale_runs.ABOUT]
        found = answer(study, terms, names, runs, observed)
        _write(study, runs, observed)
        study.write_json("scale.json", found)
    else:
        own = scale_runs.Training(study, training, from_seed_model, checkpoint_every)
        _train(study, terms, own, ladder)
    print(report.text(study))


def _write(study: Study, runs: pd.DataFrame, observed: pd.DataFrame) -> None:
    study.write_table("scale/runs.csv", runs)
    study.write_table("scale/losses.csv", observed)


def _train(
    study: Study,
    terms: Terms,
    own: scale_runs.Training,
    ladder: Ladder,
) -> None:
    """Plans all runs and checks them, trains and scores them, and writes what they say."""
    names = list(study.domains.training)
    orders = range(terms.seed, terms.seed + ladder.seeds)
    validation_orders = range(terms.seed + VALIDATION_SEEDS, terms.seed + VALIDATION_SEEDS + ladder.validation_seeds)
    steps, target = own.steps(ladder.budgets, terms.target, ladder.unit)
    if ladder.validation_seeds and not target:
        raise UserError("validation_seeds: one budget leads to no target to train at, give two or more")
    tokens = {**(tokens_of(study) or {}), **(terms.tokens or {})}
    terms = dataclasses.replace(terms, tokens=tokens, target=target * own.per_step if target else None)
    upper = terms.upper(names)
    goal = terms.goal(study.domains.evaluation, names)
    weights = mixture(study, ladder.base, "base")
    runs = scale_runs.plan(names, weights, steps, ladder.factor, orders, own.per_step)
    if ladder.mde_mixtures:
        runs = pd.concat([runs, scale_mde.plan(names, steps, ladder.mde_mixtures, terms.seed, own.per_step)])
    baselines = {name: mixture(study, name, "validation") for name in ("uniform", "proportional")}
    validation = functools.partial(
        scale_validation.plan, names, steps=target or 0, seeds=validation_orders, per_step=own.per_step
    )
    for planned in (runs, *([validation(baselines)] if ladder.validation_seeds else [])):
        scale_runs.check_epochs(planned, tokens, terms.max_epochs)
    if terms.target and terms.target > upper.sum() * (1 + ROUNDING):
        raise UserError(
            f"target of {terms.target:,} tokens: all domains together have {upper.sum():,.0f} in "
            f"{terms.max_epochs:g} epochs; take a smaller one, or allow more with max_epochs"
        )
    observed = own.losses(runs)
    _write(study, runs, observed)
    found = answer(study, terms, names, runs, observed)
    if ladder.mde_mixtures:
        least = dict(zip(names, weights * (1 / ladder.factor if terms.floor is None else terms.floor), strict=True))
        found["mde"] = terms.carried(names, scale_mde.optima(study, runs, observed, goal, least, upper, terms.seed))
    study.write_json("scale.json", found)
    if ladder.validation_seeds:
        candidates = scale_validation.candidates(names, found["ddo"])
        if ladder.mde_mixtures:
            candidates["predicted by MDE"] = scale_runs.weights_of(names, found["mde"]["tokens"])
        kept, left_out = scale_validation.affordable(candidates, validation, tokens, terms.max_epochs)
        for label, reason in left_out.items():
            print(f"validation: {label} is left out: {reason}", flush=True)
        scale_validation.validate(study, own, validation(kept | baselines), goal)
        study.write_json("scale.json", {**found, "validation": ladder.validation_seeds, "left_out": left_out})
