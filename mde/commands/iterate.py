"""`mde iterate`: rounds of Bayesian optimisation. Each proposes mixtures, trains them, and learns from their losses."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pandas as pd

from mde.arguments import FLAT
from mde.errors import UserError, check_positive
from mde.optimization import acquisition, objectives
from mde.optimization.acquisition import Design, Proposal
from mde.optimization.constraints import Constraints
from mde.optimization.objectives import Objective
from mde.optimization.region import Region
from mde.regression import estimators
from mde.regression import features as feature_sets
from mde.results import search_setup as problem
from mde.results.mixtures import tokens_of
from mde.results.predictor import evaluated
from mde.study import Study

ROUNDS = "rounds.csv"
ROUNDED = 1e-4  # how far a weight of a run from elsewhere may be from what was planned


@dataclasses.dataclass(frozen=True)
class Proposals:
    """What to train next, and when to stop.

    Attributes:
      batch: mixtures trained in each round.
      regressor: of the objective; one with a standard deviation.
      features: what it sees, such as "sqrt"; by default "mde[0]+log" where MDE was evaluated and "sqrt" otherwise.
      threshold: expected improvement, in units of the noise, below which it stops.
    """

    batch: int = 4
    regressor: str = "gp"
    features: str | None = None
    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_positive(batch=self.batch)
        if not self.threshold >= 0:
            raise UserError(f"threshold={self.threshold!r}, expected zero or more")


def iterate(
    study: Study,
    rounds: int = 4,
    objective: str | Mapping[str, float] | None = None,
    proposals: Annotated[Proposals, FLAT] = Proposals(),
    constraints: Constraints = Constraints(),
    checkpoint_every: int = 500,
    seed: int = 0,
) -> None:
    """Trains the mixtures with the highest expected improvement, a batch per round, and adds them to the proxy runs.

    Stops after `rounds`, or when the next run promises less than `threshold` times the noise of a run. Can be killed at
    any time: the same command goes on in the middle of a round; with more `rounds` it goes on after the last. A study
    of proxy runs from elsewhere is given its next batch as a table, to be trained where they came from; once
    `mde fit` has read the rows of a batch, the next one is planned.

    Args:
      study: a study with scored proxy runs and evaluated features.
      rounds: how many, those done before included.
      objective: that of `mde fit` by default, and avg-all before it; avg-sp, avg-et, avg-all, avg-families,
        worst-sp, worst-et, worst-all, or weights by evaluation domain, family or pattern.
      proposals: what to train next, and when to stop.
      constraints: what the mixtures must obey.
      checkpoint_every: steps between states to resume from.
      seed: of the search for what to train.
    """
    check_positive(rounds=rounds, checkpoint_every=checkpoint_every)
    batch, threshold = proposals.batch, proposals.threshold
    bounds = constraints.on(study.domains.training, tokens_of(study))
    goal = objectives.make(
        problem.objective_or_chosen(study, objective), study.domains.evaluation, study.domains.training
    )
    model = estimators.make(proposals.regressor)
    design = _design(study, goal, proposals.features)
    terms = {
        "objective": problem.objective_or_chosen(study, objective),
        "regressor": proposals.regressor,
        "features": proposals.features,
        "batch": batch,
        "seed": seed,
        **{name: value for name, value in dataclasses.asdict(bounds).items() if name not in ("domains", "kl_penalty")},
    }
    for number in range(1, rounds + 1):
        plan = f"iterate/round-{number:02d}.csv"
        if not (study.root / plan).exists():
            proposal = _propose(study, goal, model, design, bounds.region, batch, seed + number)
            _report(study, goal, number, proposal)
            if proposal.settled(threshold):
                print(f"stopped before round {number}: a run promises less than {threshold:g} of its noise")
                return
            study.write_json(_terms(plan), terms)
            study.write_table(plan, _planned(study, number, proposal.mixtures))
        table = study.mixtures(plan, "iterate")
        if _not_trained(study, table):
            _check_terms(study, plan, terms)
        if not study.is_swarm:
            _train(study, table, checkpoint_every)
        elif missing := _not_trained(study, table):
            print(f"train the mixtures of {study.root / plan}, then `mde fit` again with their rows")
            print(f"not there yet: {', '.join(missing)}")
            return
    _report(study, goal, rounds + 1, _propose(study, goal, model, design, bounds.region, 1, seed + rounds + 1))
    print(f"{rounds} rounds are done; `mde fit --study={study}` and `mde optimize` know all runs")


def _terms(plan: str) -> str:
    """Where the arguments that a round was planned with are kept."""
    return plan.replace(".csv", ".json")


def _check_terms(study: Study, plan: str, terms: Mapping[str, Any]) -> None:
    """Refuses to go on with a round that was planned with other arguments; somebody may be training it."""
    if not (study.root / _terms(plan)).exists():  # planned before they were kept
        return
    before, now = study.read_json(_terms(plan), "iterate"), json.loads(json.dumps(terms))
    for name, value in now.items():
        if before[name] != value:
            raise UserError(
                f"{study.root / plan} was planned with {name}={before[name]!r}, not {value!r}, and is not trained yet: "
                "give the arguments of before, or delete this file to plan anew"
            )


def _design(study: Study, goal: Objective, features: str | None) -> Design:
    """Features of mixtures; evaluated losses come as their objective, which is what is modelled."""
    there = [] if study.is_swarm else list(study.features())
    features = features or ("mde[0]+log" if "mde[0]" in there else "sqrt")
    if feature_sets.OWN in map(str.strip, features.split("+")):
        raise UserError(f"iterate.features = {features!r}: the objective has no own domain; expected others than 'own'")
    losses_of = evaluated(study, features)

    def design(mixtures: np.ndarray) -> np.ndarray:
        objectives = {name: goal(losses)[:, None] for name, losses in losses_of(mixtures).items()}
        return feature_sets.assemble(features, mixtures, objectives)

    return design


def _propose(study: Study, goal: Objective, model: Any, design: Design, region: Region, n: int, seed: int) -> Proposal:
    known = _observed(study)
    mixtures = known[list(study.domains.training)].to_numpy()
    observed = goal(study.losses(runs=known.index).to_numpy())
    return acquisition.propose(model, design, mixtures, observed, region, n, seed)


def _observed(study: Study) -> pd.DataFrame:
    runs = study.mixtures()
    return runs[runs["role"] == "proxy"]


def _planned(study: Study, number: int, mixtures: np.ndarray) -> pd.DataFrame:
    """The runs of a round; they share the proxy runs' seed, and so most of their noise."""
    rows = pd.Index([f"iterate-{number}-{i}" for i in range(len(mixtures))], name="run")
    table = pd.DataFrame(mixtures, rows, list(study.domains.training))
    table.insert(0, "role", "proxy")
    table.insert(1, "seed", int(_observed(study)["seed"].iloc[0]))
    return table


def _not_trained(study: Study, table: pd.DataFrame) -> list[str]:
    """The runs of a round that somebody else has yet to train: neither their name nor their mixture is observed."""
    known = study.mixtures()
    names = list(study.domains.training)
    far_RO = np.abs(table[names].to_numpy()[:, None] - known[names].to_numpy()).max(axis=2)
    return list(table.index[~table.index.isin(known.index) & (far_RO > ROUNDED).all(axis=1)])


def _train(study: Study, table: pd.DataFrame, checkpoint_every: int) -> None:
    """Trains and scores a round's runs and adds them to the study's tables, `mixtures.csv` last: it says what is there.

    What was fitted on fewer proxy runs is not done any more.
    """
    if table.index.isin(study.mixtures().index).all():
        return
    from mde.results.accuracy import answers
    from mde.results.evaluators import evaluators
    from mde.results.scored_text import score_choices, score_runs
    from mde.results.trained_runs import train_runs
    from mde.results.training_options import Running

    train_runs(study, study.read_json("training.json", "train"), table, Running(checkpoint_every=checkpoint_every))
    scoring = study.read_json("scoring.json", "score")
    losses = score_runs(study, scoring, list(table.index))
    accuracies = score_choices(study, scoring, list(table.index))
    mixtures = table[list(study.domains.training)].to_numpy()
    columns = {
        f"{name}/{domain}": values
        for name, found in evaluators(study)(mixtures).items()
        for domain, values in zip(study.domains.evaluation, found.T, strict=True)
    }
    _add(study, "features.csv", pd.DataFrame(columns, table.index), "evaluate")
    if accuracies is not None:
        _add(study, "answers.csv", answers(study, table[list(study.domains.training)]), "evaluate")
        _add(study, "accuracies.csv", accuracies, "score")
    _add(study, "losses.csv", losses, "score")
    (study.root / "stages/fit.json").unlink(missing_ok=True)
    _add(study, "mixtures.csv", table, "train")


def _add(study: Study, name: str, rows: pd.DataFrame, made_by: str) -> None:
    table = study.read_table(name, made_by)
    new = rows.loc[~rows.index.isin(table.index), list(table.columns)]
    longer = pd.concat([table, new])
    longer.index.name = table.index.name
    study.write_table(name, longer)


def _report(study: Study, goal: Objective, number: int, proposal: Proposal) -> None:
    """A row of `rounds.csv` for what is known before a round, and a line on the terminal.

    Columns: round, runs (proxy runs so far), improvement (expected of the next run), noise (of a run), objective (of
    the best trained mixture, as the regressor believes) and its weights. In the study's unit.
    """
    row: dict[str, Any] = {
        "runs": len(_observed(study)),
        "improvement": proposal.improvement,
        "noise": proposal.noise,
        "objective": proposal.objective,
        **dict(zip(study.domains.training, proposal.believed, strict=True)),
    }
    table = pd.DataFrame(row, pd.Index([number], name="round"))
    if (study.root / ROUNDS).exists():
        before = study.read_table(ROUNDS, "iterate")
        before.index = before.index.astype(int)
        before = before.reindex(columns=table.columns, fill_value=0.0)  # of domains that joined since
        table = pd.concat([before[before.index < number], table])
        table.index.name = "round"
    study.write_table(ROUNDS, table)
    unit = study.unit_of(goal.counted(study.domains.evaluation))
    print(
        f"round {number}: {row['runs']} runs, best {proposal.objective:.4f} {unit}; the next promises "
        f"{proposal.improvement:.2g}, noise {proposal.noise:.2g}",
        flush=True,
    )
