"""`mde score`: log-probabilities of the evaluation tokens under every run, and the losses they add up to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.errors import check_positive
from mde.evaluation.scoring import EvaluationSet, Scorer, evaluation_set
from mde.stages.train import load_run, model_config
from mde.study import Study, digest
from mde.training.pool import pool_mesh


def score(study: Study, tokens_per_domain: int = 8192, batch_size: int = 16) -> None:
    """Scores the experts and the observations.

    Args:
      study: a study with trained runs.
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      batch_size: windows scored at a time.
    """
    check_positive(tokens_per_domain=tokens_per_domain, batch_size=batch_size)
    about = {"tokens_per_domain": tokens_per_domain, "batch_size": batch_size}
    losses = score_runs(study, about, list(study.mixtures().index))
    data = evaluation_data(study, about)
    text = pd.DataFrame({"tokens": data.token_counts, "bytes": data.bytes.astype(int)}, data.domains)
    study.write_json("scoring.json", about)
    study.write_table("evaluation.csv", text.rename_axis("domain"))
    study.write_table("losses.csv", losses)


def score_runs(study: Study, about: Mapping[str, Any], runs: Sequence[str]) -> pd.DataFrame:
    """Losses [runs, J] in nats per token, scored as `about` says; log-probs that are there already are kept."""
    data = evaluation_data(study, about)
    config = model_config(study)
    done = {run: digest([_trained(study, run), about]) for run in runs}
    missing = [run for run in runs if _scored(study, run, done[run]) is None]
    if missing:
        mesh = pool_mesh(len(runs))
        scorer = Scorer(config, data, mesh, about["batch_size"])
        with tqdm(total=len(missing), desc="score", unit="run") as bar:
            for i in range(0, len(missing), mesh.size):
                wave = missing[i : i + mesh.size]
                for run, log_probs in zip(wave, scorer([load_run(study, run, config) for run in wave]), strict=True):
                    study.write_arrays(f"scores/{run}.npz", log_probs=log_probs, of=np.asarray(done[run]))
                    bar.update()
    losses = {run: data.losses(log_probs_of(study, run)) for run in runs}
    table = pd.DataFrame.from_dict(losses, orient="index", columns=list(data.domains))
    table.index.name = "run"
    return table


def evaluation_data(study: Study, about: Mapping[str, Any]) -> EvaluationSet:
    """The text that the study's runs are scored on; `about` is the content of `scoring.json`."""
    stores = {name: study.store(name, "validation") for name in study.domains.evaluation}
    seq_len = study.read_json("training.json", "train")["settings"]["seq_len"]
    return evaluation_set(stores, about["tokens_per_domain"], seq_len)


def log_probs_of(study: Study, run: str) -> np.ndarray:
    """Log-probs in nats of the T evaluation tokens under a run that was scored, [T] float32."""
    return study.read_arrays(f"scores/{run}.npz", "score")["log_probs"]


def _scored(study: Study, run: str, wanted: str) -> np.ndarray | None:
    """The log-probs of a run if they are those wanted."""
    if not (study.root / f"scores/{run}.npz").exists():
        return None
    arrays = study.read_arrays(f"scores/{run}.npz", "score")
    return arrays["log_probs"] if str(arrays["of"]) == wanted else None


def _trained(study: Study, run: str) -> dict:
    return study.read_json(f"runs/{run}/run.json", "train")
