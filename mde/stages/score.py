"""`mde score`: log-probabilities of the evaluation tokens under every run, and the losses they add up to."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde import hosts
from mde.errors import check_positive
from mde.evaluation.scores import Columns, Scores
from mde.evaluation.scoring import EvaluationSet, Scorer, evaluation_set
from mde.stages.train import load_run, model_config
from mde.study import Study, digest


def score(study: Study, tokens_per_domain: int = 8192, batch_size: int | None = None) -> None:
    """Scores the experts and the observations; stopped at any time, it goes on with the domain that it was at.

    Args:
      study: a study with trained runs.
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      batch_size: windows that a device takes at a time; by default as many as keep it busy.
    """
    check_positive(tokens_per_domain=tokens_per_domain)
    if batch_size is not None:
        check_positive(batch_size=batch_size)
    about = {"tokens_per_domain": tokens_per_domain, "batch_size": batch_size}
    losses = score_runs(study, about, list(study.mixtures().index))
    data = evaluation_data(study, about)
    text = pd.DataFrame({"tokens": data.token_counts, "bytes": data.bytes.astype(int)}, data.domains)
    study.write_json("scoring.json", about)
    study.write_table("evaluation.csv", text.rename_axis("domain"))
    study.write_table("losses.csv", losses)


def score_runs(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> pd.DataFrame:
    """Losses [runs, J] in nats per token, scored as `about` says; scores that are there already are kept.

    Where several processes do this together, each takes its share of the runs.
    """
    scores, of = _scores(study), _identities(study, about, runs)
    missing = {}
    for run in runs:
        if names := [domain for domain, name in of[run].items() if scores.find(run, domain, name) is None]:
            missing[run] = names
    data = evaluation_data(study, about)
    hosts.wait("all have seen what is scored")
    mine = {run: missing[run] for run in list(missing)[hosts.index() :: hosts.count()]}
    for run, domain, log_probs in _score(study, about, data, mine):
        scores.write(run, domain, of[run][domain], log_probs)
    hosts.wait("all have scored their share")
    losses = {run: [scores.read(run, domain, name).loss for domain, name in of[run].items()] for run in runs}
    table = pd.DataFrame.from_dict(losses, orient="index", columns=list(data.domains))
    table.index.name = "run"
    return table


def _score(
    study: Study, about: Mapping[str, Any], data: EvaluationSet, missing: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Runs, domains and log-probs [T_j] of what is missing; a run's parameters are read while another is scored."""
    if not missing:
        return
    config = model_config(study)
    scorer = Scorer(config, data, about["batch_size"])
    counts = dict(zip(data.domains, map(int, data.token_counts), strict=True))
    total = sum(counts[domain] for names in missing.values() for domain in names)
    with (
        tqdm(total=total, desc="score", unit="tok", unit_scale=True, disable=not hosts.is_first()) as bar,
        ThreadPoolExecutor(1) as ahead,
    ):
        loading = (ahead.submit(load_run, study, run, config) for run in missing)
        loaded = next(loading)
        for run, names in missing.items():
            params, loaded = loaded.result(), next(loading, loaded)
            bar.set_postfix(run=run, refresh=False)
            for j, log_probs in scorer(params, [data.domains.index(name) for name in names], bar.update):
                yield run, data.domains[j], log_probs


def evaluation_data(study: Study, about: Mapping[str, Any]) -> EvaluationSet:
    """The text that the study's runs are scored on; `about` is the content of `scoring.json`."""
    stores = {name: study.store(name, "validation") for name in study.domains.evaluation}
    return evaluation_set(stores, about["tokens_per_domain"], _seq_len(study), model_config(study).masked)


def log_probs_of(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> Columns:
    """Log-probs in nats of the T evaluation tokens, a column for each run, [T, K] float32: read as it is sliced.

    Raises:
      UserError: a run that was not scored on this text.
    """
    of = _identities(study, about, runs)
    return _scores(study).columns(runs, study.domains.evaluation, [list(of[run].values()) for run in runs])


def _scores(study: Study) -> Scores:
    return Scores(study.root / "scores")


def _identities(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> dict[str, dict[str, str]]:
    """By run and domain, a name for what there is to score: the run's record, and the text and how it is cut."""
    cut = [about["tokens_per_domain"], _seq_len(study)]
    stores = study.about["stores"]
    texts = {name: [stores[f"{name}/validation"]["digest"], *cut] for name in study.domains.evaluation}
    records = {run: study.read_json(f"runs/{run}/run.json", "train") for run in runs}
    return {run: {name: digest([record, text]) for name, text in texts.items()} for run, record in records.items()}


def _seq_len(study: Study) -> int:
    return study.read_json("training.json", "train")["settings"]["seq_len"]
