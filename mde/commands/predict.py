"""`mde predict`: what the chosen regressor says of any mixtures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mde.buckets import write_aside
from mde.errors import UserError, unknown
from mde.optimization import objectives
from mde.regression import swarm
from mde.regression.groups import mixture_groups
from mde.reporting import page as pages
from mde.reporting import prediction_check, tables
from mde.results.accuracy import AccuracyPredictor
from mde.results.predictor import Predictor
from mde.results.proxy_runs import proxy_runs
from mde.study import Study

LEAST = 3  # runs that have ranks to speak of


def predict(
    study: Study,
    mixtures: str,
    output: str,
    losses: str | None = None,
    page: str | None = None,
    incomplete: str = "refuse",
    ignore: Sequence[str] = (),
) -> None:
    """Predicts the losses of mixtures, with their standard deviations where the regressor has them.

    With the measured losses of the same runs it prints how well these are predicted and ranked, by the objective of
    `mde fit` and by evaluation domain. The runs may be of another model size: then levels differ and ranks count. Runs
    of mixtures that the regressor was fitted on are not scored, whatever their seed or size.

    Args:
      study: a study in which a regressor was chosen.
      mixtures: a CSV file: a column `run`, and one per training domain, named as in the study or its source file.
      output: the CSV file to write: one row per run, one column per evaluation domain, called as in the file of losses
        that the study is from, and DOMAIN/std, in the unit of that file. acc/TASK and acc_norm/TASK where end tasks
        were scored.
      losses: a CSV file of what these runs measured: a column `run`, and one per evaluation domain, or some of them.
      page: an HTML file to write: the scores, and predicted against measured losses.
      incomplete: refuse or drop a run that has no row in the file of losses, or a gap there; it is predicted anyway.
      ignore: columns of either file that are no domains, by names or patterns, beside those that `mde fit` was told of.

    Raises:
      UserError: what is wrong with a file; a run that only one of them has, fewer than three runs of new mixtures, an
        unknown domain.
    """
    if page and not losses:
        raise UserError("--page shows predictions beside measured losses: give --losses too")
    ignored = [*study.about.get("ignored", ()), *ignore]
    wanted = swarm.read_mixtures(mixtures, study.domains.training, ignore=ignored)
    measured = (
        _measured(study, swarm.read_swarm(mixtures, losses, (), incomplete, ignored, ["*"]), losses) if losses else None
    )
    predicted, deviations = Predictor(study).with_deviations(wanted.values.to_numpy())
    names = list(study.domains.evaluation)
    columns = study.about["swarm"]["losses"]["columns"] if "swarm" in study.about else {name: name for name in names}
    table = pd.DataFrame(predicted, wanted.values.index, names)
    if deviations is not None:
        table = table.join(pd.DataFrame(deviations, table.index, names).add_suffix("/std"))
        columns |= {f"{name}/std": f"{column}/std" for name, column in columns.items()}
    if (study.root / "fit/acc.joblib").exists():
        accuracies = AccuracyPredictor(study)(wanted.values.to_numpy())
        table = table.assign(**accuracies)
        columns |= {name: name for name in accuracies}
    swarm.write(output, swarm.Table(table, wanted.id_column, columns, study.errors))
    print(f"{tables.predicted_losses(table[names])}\n\nsee {output}")
    if measured is not None:
        choice = study.read_json("fit/choice.json", "fit")
        goal = objectives.weights(choice["objective"], study.domains.evaluation, study.domains.training)
        found = prediction_check.PredictionCheck(
            table.loc[measured.index, names], measured, goal, wanted.values.loc[measured.index]
        )
        print(prediction_check.table(found))
        if page:
            title = f"Mixture study: {study.root.name}"
            write_aside(page, pages.document(title, {prediction_check.TITLE: prediction_check.body(found)}))


def _measured(study: Study, runs: swarm.Swarm, losses: str) -> pd.DataFrame:
    """Measured losses [<= R, <= J] of the runs of new mixtures, in their order."""
    known, found = study.domains.evaluation, runs.losses.values
    for name in found:
        if name not in known:
            raise unknown(f"domain in {losses}", name, known)
    turned = [name for name in found if name in study.errors]
    found = found.assign(**{name: 1 - found[name] for name in turned})
    seen = _fitted_on(study, runs.mixtures.values)
    said = f"{seen.sum()} of {len(found)} runs have mixtures that the regressor was fitted on; they are not scored"
    found = found[~seen]
    if len(found) < LEAST:
        why = f"; {said}" if seen.any() else ""
        raise UserError(f"{losses}: {len(found)} runs of new mixtures, expected at least {LEAST} to be ranked{why}")
    if seen.any():
        print(said)
    return found[[name for name in known if name in found]]


def _fitted_on(study: Study, mixtures: pd.DataFrame) -> np.ndarray:
    """Which of the mixtures [R, K] the regressor was fitted on, [R]."""
    fitted = proxy_runs(study, study.read_json("fit/choice.json", "fit")["objective"]).mixtures
    groups = mixture_groups(np.vstack([fitted, mixtures[list(fitted)]]))
    return np.isin(groups[len(fitted) :], groups[: len(fitted)])
