"""`mde score`: log-probabilities of the evaluation tokens under every run, and the losses they add up to."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from mde.evaluation.scoring import EvaluationSet, Scorer, evaluation_set
from mde.stages.train import load_run, model_config
from mde.study import Study, digest
from mde.training.pool import pool_mesh


def score(study: Study, tokens_per_domain: int = 8192, batch_size: int = 16) -> None:
    """Scores the seed model, the experts and the observations.

    Args:
      study: a study with trained runs.
      tokens_per_domain: whole documents of each evaluation domain are taken until they have this many tokens.
      batch_size: windows scored at a time.
    """
    study.write_json("scoring.json", {"tokens_per_domain": tokens_per_domain, "batch_size": batch_size})
    study.write_table("losses.csv", score_runs(study, list(study.mixtures().index)))


def score_runs(study: Study, runs: Sequence[str]) -> pd.DataFrame:
    """Losses [runs, J] in nats per token, as `scoring.json` says; log-probs that are there already are kept."""
    about = study.read_json("scoring.json", "score")
    data = evaluation_data(study)
    done = {run: digest([_trained(study, run), about]) for run in runs}
    missing = [run for run in runs if _scored(study, run, done[run]) is None]
    if missing:
        mesh = pool_mesh(len(runs))
        scorer = Scorer(model_config(study), data, mesh, about["batch_size"])
        with tqdm(total=len(missing), desc="score", unit="run") as bar:
            for i in range(0, len(missing), mesh.size):
                wave = missing[i : i + mesh.size]
                for run, log_probs in zip(wave, scorer([load_run(study, run) for run in wave]), strict=True):
                    study.write_arrays(f"scores/{run}.npz", log_probs=log_probs, of=np.asarray(done[run]))
                    bar.update()
    losses = {run: data.losses(log_probs_of(study, run)) for run in runs}
    table = pd.DataFrame.from_dict(losses, orient="index", columns=list(data.domains))
    table.index.name = "run"
    return table


def evaluation_data(study: Study) -> EvaluationSet:
    """The text that the study's runs are scored on."""
    stores = {name: study.store(name, "validation") for name in study.domains.evaluation}
    seq_len = study.read_json("training.json", "train")["settings"]["seq_len"]
    return evaluation_set(stores, study.read_json("scoring.json", "score")["tokens_per_domain"], seq_len)


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
