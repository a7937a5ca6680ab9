"""`mde evaluate`: what the pool of experts says of any mixture, without training it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.errors import UserError
from mde.evaluation import MixtureLosses, merged_nll
from mde.evaluation.scoring import EvaluationSet
from mde.optimization import simplex
from mde.regression.features import MERGED
from mde.stages.score import evaluation_data, log_probs_of
from mde.stages.train import load_run, model_config
from mde.study import Study

Evaluator = Callable[[np.ndarray], np.ndarray]  # mixtures [C, K] -> losses [C, J], nats per token


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
    for name, evaluator in tqdm(evaluators(study, about).items(), "evaluate", unit="evaluator"):
        losses = evaluator(mixtures.to_numpy())
        columns.update({f"{name}/{domain}": losses[:, j] for j, domain in enumerate(domains.evaluation)})
    study.write_json("evaluators.json", about)
    study.write_table("candidates.csv", table)
    study.write_table("features.csv", pd.DataFrame(columns, pd.Index(mixtures.index, name="mixture")))


def evaluators(study: Study, about: Mapping[str, Any], only: Sequence[str] | None = None) -> Mapping[str, Evaluator]:
    """The evaluators by the name of their feature: `mde[τ]` for each τ, and `merged`.

    Args:
      study: a study with scored experts.
      about: which there are: the content of `evaluators.json`.
      only: names of those that are needed.
    """
    data = evaluation_data(study, study.read_json("scoring.json", "score"))
    experts = [f"expert-{name}" for name in study.domains.training]
    log_probs = np.stack([log_probs_of(study, run) for run in experts], axis=1)
    made: dict[str, Evaluator] = {}
    for tau in about["taus"]:
        name = f"mde[{tau:g}]"
        if only is None or name in only:
            made[name] = MixtureLosses(log_probs, data.segment_ids, tau, data.sequence_ids)
    if about["merged_windows"] and (only is None or MERGED in only):
        made[MERGED] = _merged(study, data.subset(about["merged_windows"]), experts)
    return made


def _merged(study: Study, data: EvaluationSet, experts: Sequence[str]) -> Evaluator:
    config = model_config(study)
    params = [load_run(study, run, config) for run in experts]
    return lambda weights: merged_nll(config, params, data, weights)
