"""`mde score`: what a kill leaves, and what a score is tied to."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT

from mde.commands.score import score
from mde.errors import UserError
from mde.evaluation import scores as storage
from mde.results.evaluators import evaluators
from mde.results.scored_text import log_probs_of
from mde.study import Study

ARGUMENTS = {"tokens_per_domain": 2048}  # as in configs/demo_tiny.gin

# Scores a study and kills itself, the hard way, in the middle of writing the fourth domain.
KILLED = """
import os, signal, sys
from mde.evaluation import scores
from mde.commands.score import score
from mde.study import Study
opened = scores.open_array
def kill_at_the_fourth(path, *args):
    kill_at_the_fourth.count += 1
    array = opened(path, *args)
    if kill_at_the_fourth.count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return array
kill_at_the_fourth.count = 0
scores.open_array = kill_at_the_fourth
score(Study(sys.argv[1]), tokens_per_domain=2048)
"""


@pytest.fixture
def written(monkeypatch):
    """The (run, domain) pairs whose scores were written."""
    pairs = []
    write = storage.Scores.write

    def record(self, run, domain, *args):
        pairs.append((run, domain))
        return write(self, run, domain, *args)

    monkeypatch.setattr(storage.Scores, "write", record)
    return pairs


def test_a_kill_loses_one_domain_of_one_run(study, written):
    """And then the losses are those of a run that was never killed."""
    expected = (study / "losses.csv").read_bytes()
    shutil.rmtree(study / "scores")
    (study / "losses.csv").unlink()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(study)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    whole = {path.parent for path in (study / "scores").rglob("score.json")}
    assert len(whole) == 3
    assert len(list((study / "scores").glob("*/*"))) == 4  # the fourth has an array and no record
    score(Study(study), **ARGUMENTS)
    (first, domains), runs = _order(study)
    assert written == [(first, d) for d in domains[3:]] + [(run, d) for run in runs[1:] for d in domains]
    assert (study / "losses.csv").read_bytes() == expected


def _order(study: Path) -> tuple[tuple[str, list[str]], list[str]]:
    opened = Study(study)
    runs = list(opened.mixtures().index)
    return (runs[0], list(opened.domains.evaluation)), runs


def test_scores_that_are_there_are_kept(study, written):
    score(Study(study), **ARGUMENTS)
    assert written == []
    score(Study(study), tokens_per_domain=2048, batch_size=3)  # how it is computed is not what it is
    assert written == []


def test_a_run_that_is_another_one_is_scored_again(study, written):
    record = study / "runs" / "expert-wiki" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": 77}))
    with pytest.raises(UserError, match="expert-wiki/python: no score of this run on this text; run `mde score`"):
        log_probs_of(Study(study), ARGUMENTS, ["expert-wiki"])
    score(Study(study), **ARGUMENTS)
    assert written == [("expert-wiki", domain) for domain in Study(study).domains.evaluation]


def test_other_text_is_scored_anew(study, written):
    score(Study(study), tokens_per_domain=512)
    runs, domains = Study(study).mixtures().index, Study(study).domains.evaluation
    assert len(written) == len(runs) * len(domains)
    tokens = Study(study).read_table("evaluation.csv", "score")["tokens"]
    with pytest.raises(UserError, match="no score of this run on this text"):
        log_probs_of(Study(study), ARGUMENTS, [runs[0]])
    columns = log_probs_of(Study(study), {"tokens_per_domain": 512}, list(runs))
    assert columns.shape == (tokens.sum(), len(runs))


def test_losses_are_the_means_of_what_is_kept(finished):
    study = Study(finished[0])
    losses = study.losses()
    tokens = study.read_table("evaluation.csv", "score")["tokens"]
    columns = log_probs_of(study, study.read_json("scoring.json", "score"), list(losses.index))
    stops = np.cumsum(tokens[losses.columns])
    for domain, stop in stops.items():
        means = -columns[stop - tokens[domain] : stop].mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(means, losses[domain], rtol=1e-15)


def test_a_model_that_gives_no_number_is_named(study):
    import jax

    from mde.results import scored_text as stage

    shutil.rmtree(study / "scores" / "expert-bible")
    load = stage.load_run

    def damaged(study, run, config):
        return jax.tree.map(lambda x: x * np.float32(np.nan), load(study, run, config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "load_run", damaged)
        with pytest.raises(
            UserError, match="run 'expert-bible', domain 'python': the log-prob of scored token 0 is nan"
        ):
            score(Study(study), **ARGUMENTS)


@pytest.mark.parametrize(
    ("field", "what"), [("model", "architecture than expert-python"), ("data", "text or tokens than the study's")]
)
def test_experts_of_another_kind_are_not_merged(study, field, what):
    opened = Study(study)
    record = study / "runs" / "expert-wiki" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {field: "another"}))
    score(opened, **ARGUMENTS)
    with pytest.raises(UserError, match=f"expert-wiki: trained with another {what}"):
        evaluators(opened, opened.read_json("evaluators.json", "evaluate"))


def test_progress_is_in_tokens_a_second(study, capsys):
    shutil.rmtree(study / "scores" / "expert-bible")
    score(Study(study), **ARGUMENTS)
    bar = capsys.readouterr().err
    assert "tok/s" in bar
    counts = pd.read_csv(study / "evaluation.csv")["tokens"]
    assert f"{counts.sum() / 1000:.1f}k/" in bar
