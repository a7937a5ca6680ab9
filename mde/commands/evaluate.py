"""`mde evaluate`: what the pool of experts says of any mixture, without training it."""

from collections.abc import Sequence

import pandas as pd

from mde.errors import UserError
from mde.optimization import simplex
from mde.results.accuracy import answers
from mde.results.evaluators import evaluators
from mde.results.scored_text import choice_tasks
from mde.study import Study


def evaluate(
    study: Study,
    taus: Sequence[float] = (0.0, 0.01, 0.1, 1.0),
    candidates: int = 1024,
    merged_windows: int = 2,
    seed: int = 0,
) -> None:
    """Evaluates the runs' mixtures and many candidates: mixtures of experts for each τ, and merged models.

    Args:
      study: a study with scored experts.
      taus: exponents of the prefix posterior; 0 is MDE.
      candidates: mixtures spread over the simplex that are evaluated beside the runs'.
      merged_windows: windows of each domain that merged models are run on; 0 for no merged losses.
      seed: of the candidates.
    """
    if merged_windows < 0 or not taus:
        raise UserError(f"merged_windows={merged_windows} and taus={taus!r}: expected 0 or more, and at least one τ")
    about = {"taus": list(taus), "merged_windows": merged_windows}
    domains = study.domains
    runs = study.mixtures()[list(domains.training)]
    drawn = simplex.space_filling(candidates, len(domains.training), seed + 1)
    names = pd.Index([f"candidate-{i:04d}" for i in range(candidates)], name="mixture")
    table = pd.DataFrame(drawn, names, domains.training)
    mixtures = pd.concat([runs, table])
    columns = {}
    for name, losses in evaluators(study, about)(mixtures.to_numpy()).items():
        columns.update({f"{name}/{domain}": losses[:, j] for j, domain in enumerate(domains.evaluation)})
    said = answers(study, mixtures) if choice_tasks(study) else None
    study.write_json("evaluators.json", about)
    study.write_table("candidates.csv", table)
    study.write_table("features.csv", pd.DataFrame(columns, pd.Index(mixtures.index, name="mixture")))
    if said is not None:
        study.write_table("answers.csv", said)
