"""What the pool of experts says of any mixture, without training it: mixtures of experts, and merged models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mde.errors import UserError
from mde.evaluation import MergedLosses, MixtureLosses
from mde.evaluation.scores import Columns
from mde.evaluation.scoring import EvaluationSet
from mde.regression.features import MERGED
from mde.results.scored_text import evaluation_data, log_probs_of
from mde.results.trained_runs import load_run, model_config
from mde.study import Study
from mde.training.runs import as_written_now

Evaluators = Callable[[np.ndarray], dict[str, np.ndarray]]  # mixtures [C, K] -> losses [C, J] by feature


def evaluators(study: Study, about: Mapping[str, Any] | None = None, only: Sequence[str] | None = None) -> Evaluators:
    """A function from mixtures to losses in nats per token by feature: `mde[τ]` for each τ, and `merged`.

    Args:
      study: a study with scored experts.
      about: which features there are: the content of `evaluators.json`, which is read if None.
      only: names of those that are needed.
    """
    about = about or study.read_json("evaluators.json", "evaluate")
    data, log_probs, experts = _experts(study)
    wanted = lambda name: only is None or name in only  # noqa: E731
    taus = {f"mde[{tau:g}]": tau for tau in about["taus"] if wanted(f"mde[{tau:g}]")}
    if taus:
        mde = MixtureLosses(log_probs, data.segment_ids, data.sequence_ids, domains=data.domains, experts=experts)
    if about["merged_windows"] and wanted(MERGED):
        merged = _merged(study, data.subset(about["merged_windows"]), experts)
    else:
        merged = None

    def losses_of(mixtures: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if taus:
            found.update(zip(taus, mde(mixtures, np.array(list(taus.values()))[:, None]), strict=True))
        if merged is not None:
            found[MERGED] = merged(mixtures)
        return found

    return losses_of


def _experts(study: Study) -> tuple[EvaluationSet, Columns, list[str]]:
    """The evaluation text, the experts' log-probs [T, K] of it, and the experts' names."""
    scored = study.read_json("scoring.json", "score")
    experts = [f"expert-{name}" for name in study.domains.training]
    return evaluation_data(study, scored), log_probs_of(study, scored, experts), experts


def _merged(study: Study, data: EvaluationSet, experts: Sequence[str]) -> Callable[[np.ndarray], np.ndarray]:
    records = {run: study.read_json(f"runs/{run}/run.json", "train") for run in experts}
    digests = {name: study.about["stores"][f"{name}/train"]["digest"] for name in study.domains.training}
    for run, record in records.items():
        told = ""
        if record["model"] != records[experts[0]]["model"]:
            told = f"architecture than {experts[0]} ({record['model']}, {records[experts[0]]['model']})"
        read = as_written_now(record, digests).get("data", {})  # of an imported run nothing is said
        if not isinstance(read, dict) or any(digests.get(name) != of for name, of in read.items()):
            told = f"text or tokens than the study's ({read})"
        if told:
            raise UserError(
                f"{study.root}/runs/{run}: trained with another {told}; merged experts need one model and one tokenizer"
            )
    config = model_config(study)
    losses = MergedLosses(config, (load_run(study, run, config) for run in experts), data, names=experts)

    def evaluator(weights: np.ndarray) -> np.ndarray:
        with tqdm(total=len(weights), desc="merged", unit="model", leave=False) as bar:
            return losses(weights, bar.update)

    return evaluator
