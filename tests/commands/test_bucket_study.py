"""A study and its corpus in a bucket: the same stages, the same numbers, whatever is killed on the way."""

import io
import json
import os
import signal
import subprocess

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, command
from etils import epath
from numpy.testing import assert_array_equal
from prose import text

from mde import buckets, cli
from mde.commands import pipeline
from mde.commands import prepare as preparing
from mde.data import tokens
from mde.errors import UserError
from mde.evaluation.scores import Scores
from mde.models import decoder
from mde.models.config import preset
from mde.study import Study
from mde.training import checkpoints

SMALL = """
include 'configs/demo_tiny.gin'
prepare.evaluation_domains = {}
prepare.vocab_size = 400
train.batch_size = 4
train.seq_len = 32
train.seed_steps = 60
train.steps = 20
train.checkpoint_every = 10
train.proxy_runs = 8
score.tokens_per_domain = 512
evaluate.candidates = 16
fit.repeats = 3
fit.train_mixtures = 5
optimize.refits = 3
optimize.candidates = 64
"""


def run(stage, study, file):
    cli.main([stage, f"--study={study}", f"--gin_file={file}"])


def kill_when_it_saves(stage, study, file):
    """Starts a stage, and kills it when it has saved a state to resume from."""
    begun = [*command(stage), f"--study={study}", f"--gin_file={file}"]
    process = subprocess.Popen(begun, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(study.root.glob("runs/*/progress/[0-9]*/commit_success.txt")):
        assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_study_in_a_bucket_is_that_on_a_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    corpus = epath.Path(bucket, "text")
    for name in ("web", "code"):
        for part in range(3):
            lines = [json.dumps({"text": text((name, part, i), 80)}) for i in range(50)]
            (corpus / name / f"{part}.jsonl").write_text("\n".join(lines))
    domains = {"web": f"{bucket}/text/web/*.jsonl", "code": f"{bucket}/text/code/"}
    file = tmp_path / "small.gin"
    file.write_text(f"{SMALL}\nprepare.training_domains = {domains!r}\n")
    disk, there = Study(tmp_path / "study"), Study(f"{bucket}/study")
    kill_when_it_saves_at = "train"
    for stage in ("prepare", "train", "score", "evaluate", "fit", "optimize", "validate", "report"):
        if stage == kill_when_it_saves_at:
            kill_when_it_saves(stage, there, file)
        for study in (disk, there):
            run(stage, study, file)
    for name in (
        "mixtures.csv",
        "losses.csv",
        "features.csv",
        "corpus.csv",
        "fit/regressors.csv",
        "validation/summary.csv",
    ):
        if (disk.root / name).exists():
            assert (there.root / name).read_bytes() == (disk.root / name).read_bytes(), name
    assert there.read_json("optimum.json", "optimize") == disk.read_json("optimum.json", "optimize")
    assert "</html>" in (there.root / "report.html").read_text()
    assert not list(there.root.glob("runs/*/progress/*"))
    # done, and known to be done
    assert not preparing._scratch(there).exists()
    before = (there.root / "stages/score.json").read_text()
    run("score", there, file)
    assert (there.root / "stages/score.json").read_text() == before


def test_stores_scores_and_checkpoints(bucket):
    root = epath.Path(bucket)
    documents = [(np.arange(1, 5 + i, dtype=np.int32), 20) for i in range(7)]
    tokens.write(root / "store", documents, "one")
    again = tokens.write(root / "store", documents[:3], "other")
    assert (again.digest, again.n_documents) == ("other", 3)
    assert_array_equal(again.read(0, 5).tokens, [0, 1, 2, 3, 4])
    (root / "store" / "store.json").unlink()
    with pytest.raises(UserError, match="no readable token store here"):
        tokens.TokenStore(root / "store")

    scores = Scores(root / "scores")
    for values in ([-1.0, -2.0, -3.0], [-4.0]):
        written = scores.write("run", "web", "it", np.array(values, np.float32))
        assert scores.find("run", "web", "it") == written
    assert_array_equal(scores.columns(["run"], ["web"], [["it"]])[:], [[-4.0]])

    params = decoder.init(preset("tiny", 64), 0)
    checkpoints.begin_progress(root / "run" / "progress", {"a": 1})
    with checkpoints.Progress(root / "run" / "progress") as progress:
        for step in (1, 2, 3):
            progress.save(step, params)
    with checkpoints.Progress(root / "run" / "progress") as progress:
        assert progress.steps() == {2, 3}
        assert progress.restore(3, params) is not None
    checkpoints.save_params(root / "run" / "params", params)
    checkpoints.save_params(root / "run" / "params", params)
    found = checkpoints.load_params(root / "run" / "params", params)
    assert_array_equal(found["embed"]["embedding"], params["embed"]["embedding"])


def test_a_swarm_in_a_bucket(bucket):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 24)
    index = pd.Index([f"r{i}" for i in range(24)], name="run")
    for name, table in (("m", weights), ("l", 3 - np.sqrt(weights))):
        frame = pd.DataFrame(table, index, ["web", "code", "books"])
        epath.Path(bucket, f"{name}.csv").write_text(frame.to_csv())
    given = [f"--study={bucket}/swarm", f"--mixtures={bucket}/m.csv", f"--losses={bucket}/l.csv"]
    cli.main(["fit", *given, "--regressors=ridge", "--repeats=2"])
    found = epath.Path(bucket, "swarm/fit/choice.json").read_text()
    assert json.loads(found)["regressor"] == "ridge"
    assert pd.read_csv(io.BytesIO(epath.Path(bucket, "swarm/losses.csv").read_bytes())).shape == (24, 4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", "--study=gcs://bucket/x"], "did you mean 'gs://'"),
        (["fit", "--study=s3://bucket/x"], "a study is on a disk or in gs://; corpora may be in s3:// as well"),
        (["fit", "--study=x", "--mixtures=gcs://bucket/m.csv"], "did you mean 'gs://'"),
        (["prepare", "--study=x", "--domain=a=http://x/a", "--domain=b=http://x/b"], "unknown kind of bucket"),
        (["prepare", "--study=x", "--domain=a=gs://BUCKET/a", "--domain=b=gs://BUCKET/b"], "no file matches 'gs://"),
    ],
)
def test_bad_places(bucket, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        cli.main([argument.replace("BUCKET", bucket.removeprefix("gs://")) for argument in arguments])
    said = capsys.readouterr().err
    assert status.value.code == 2
    assert expected in said
    assert len(said.splitlines()) == 1


def test_event_files_are_for_disks(bucket):
    with pytest.raises(UserError, match="TensorBoard's event files are written on a disk only"):
        pipeline.call(
            "train",
            Study(bucket),
            preset="tiny",
            steps=1,
            batch_size=1,
            seq_len=8,
            learning_rate=1e-3,
            tensorboard=True,
        )


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need s3fs: pip install 'mde\[s3\]'"):
        buckets.check("s3://bucket/text")
    monkeypatch.undo()

    def refused(self):
        raise OSError("Anonymous caller does not have storage.objects.get access\nto the bucket")

    monkeypatch.setattr(type(epath.Path("gs://bucket")), "exists", refused)
    with pytest.raises(UserError, match=r"gs://bucket/x: cannot be reached \(Anonymous caller .* access\); .*gcloud"):
        buckets.check("gs://bucket/x")
