"""`mde reweight` as a user runs it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import ROOT, command

from mde import cli
from mde.commands.reweight import average
from mde.errors import UserError
from mde.results.mixtures import mixture
from mde.study import Study

SMALL = ("--steps=5", "--seeds=2", "--batch_size=6", "--seq_len=16")
TOKENS = 5 * 6 * 16 * 2


@pytest.fixture
def reweight(monkeypatch, capsys):
    """Runs the command in this process; what it printed."""

    def run(study: Path, *arguments: str) -> str:
        cli.main(["reweight", f"--study={study}", *arguments])
        return capsys.readouterr().out

    monkeypatch.chdir(ROOT)
    return run


def left(study: Path) -> dict[str, bytes | int]:
    """What the command leaves: tables and results as bytes, runs as the time that they were finished."""
    home = study / "reweighting"
    files = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    return files | {path.parent.name: path.stat().st_mtime_ns for path in home.glob("runs/*/run.json")}


def test_both_methods_find_mixtures_that_have_a_name_and_nothing_is_trained_twice(reweight, study):
    printed = reweight(study, *SMALL)
    opened = Study(study)
    names = list(opened.domains.training)
    for method, tokens, score in (("doremi", 2 * TOKENS, "excess"), ("doge", TOKENS, "alignment")):
        found = opened.read_json(f"reweighting/{method}.json", "reweight")
        assert sorted(found) == ["seeds", "settings", "tokens", "weights"]
        assert found["tokens"] == tokens
        table = opened.read_table(f"reweighting/{method}.csv", "reweight")
        assert list(table) == ["round", "step", *names, *(f"{score}/{name}" for name in names)]
        assert list(table["step"]) == [1, 2, 3, 4, 5] * 2
        means = table.groupby(level=0)[names].mean()
        np.testing.assert_allclose([list(found["seeds"][seed].values()) for seed in ("0", "1")], means, atol=1e-7)
        np.testing.assert_allclose(list(found["weights"].values()), means.mean(), atol=1e-7)
        assert sum(found["weights"].values()) == pytest.approx(1, abs=1e-12)
        assert not np.allclose(means.loc["0"], means.loc["1"], atol=1e-5)
        np.testing.assert_array_equal(mixture(opened, method, "test"), mixture(opened, found["weights"], "test"))
    assert found["settings"]["training"]["seq_len"] == 16
    assert found["settings"]["from_seed_model"]
    weights = opened.read_table("reweighting/weights.csv", "reweight")
    assert list(weights) == ["doremi", "doge"]
    assert "Mixtures found by online re-weighting" in printed
    assert "2 seeds" in printed

    before = left(study)
    assert len([name for name in before if name[-1] in "01"]) == 6  # references and two proxies of two seeds
    assert reweight(study, *SMALL) == printed
    assert left(study) == before
    reweight(study, *SMALL, "--method=doge", "--mu=0.01", "--target=wiki")  # other constants are other runs
    after = left(study)
    assert len(after) == len(before) + 2
    assert after["doremi.json"] == before["doremi.json"]
    assert json.loads(after["doge.json"])["weights"]["wiki"] == 0


def test_the_mixture_is_the_mean_over_the_steps_in_float64():
    weights = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]], np.float32)
    np.testing.assert_allclose(average(weights), [0.3, 0.4, 0.3], rtol=1e-7)
    many = np.tile(np.array([[1 / 3, 2 / 3]], np.float32), (100_000, 1))
    np.testing.assert_allclose(average(many), [1 / 3, 2 / 3], rtol=1e-7)  # a float32 sum would be off by 1e-4


def test_a_mixture_that_is_not_found_yet_says_how_to_find_it(prepared):
    for name in ("doremi", "doge"):
        with pytest.raises(UserError, match=rf"run `mde reweight --method={name} --study=.*` first"):
            mixture(Study(prepared), name, "test")
    with pytest.raises(UserError, match="unknown mixture in test 'dorem': did you mean 'doremi'"):
        mixture(Study(prepared), "dorem", "test")


@pytest.fixture
def trained(tmp_path):
    """What the command reads of a study before it opens its tokens."""
    study = Study(tmp_path / "study")
    stores = {f"{name}/train": {"tokens": 1000, "digest": ""} for name in ("web", "code", "books")}
    domains = {"training_domains": ["web", "code", "books"], "evaluation_domains": ["web", "code", "books", "news"]}
    study.write_json("study.json", {"format": 3, **domains, "stores": stores})
    settings = {"steps": 7, "batch_size": 10, "seq_len": 10, "learning_rate": 1e-3}
    study.write_json("training.json", {"settings": settings, "seed_settings": None, "model": {}, "seed": 0})
    return study


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method=doremy"], "unknown method 'doremy': did you mean 'doremi'"),
        (["--method=[]"], "no method: expected doremi or doge"),
        (["--eta=0"], "eta=0 must be positive"),
        (["--smoothing=1.5"], "smoothing=1.5, expected a share from 0 up to 1"),
        (["--mu=-1"], "mu=-1 must be positive"),
        (["--seeds=0"], "seeds=0 must be positive"),
        (["--steps=0"], "steps=0 must be positive"),
        (["--reference=uniforn"], "unknown mixture in reference 'uniforn': did you mean 'uniform'"),
        (["--reference=doge"], "run `mde reweight --method=doge"),
        (["--batch_size=2"], "batch_size=2 is smaller than the number of domains, 3"),
        (["--batch_sise=2"], "unknown flag '--batch_sise': did you mean '--batch_size'"),
        (["--accumulate=2"], "accumulate=2: weights change with the whole batch"),
        (["--target=news"], "target 'news' has no training text; expected one of web, code, books"),
        (["--target=boks"], "unknown target 'boks': did you mean 'books'"),
        (["--from_seed_model=true"], "has no seed model to continue from"),
    ],
)
def test_what_is_refused_before_anything_is_trained(arguments, expected, trained, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["reweight", f"--study={trained}", *arguments])
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (trained.root / "reweighting").exists()


def test_studies_without_runs_or_without_text_are_refused(tmp_path, trained, capsys):
    (trained.root / "training.json").unlink()
    pd.DataFrame({"a": [0.5, 1], "b": [0.5, 0]}, pd.Index(["r", "s"], name="run")).to_csv(tmp_path / "mixtures.csv")
    swarm = Study(tmp_path / "swarm")
    swarm.write_json("study.json", {"format": 3, "training_domains": ["a"], "evaluation_domains": ["a"], "swarm": {}})
    for study, expected in ((trained, "run `mde train"), (swarm, "it has no training text to re-weight")):
        with pytest.raises(SystemExit):
            cli.main(["reweight", f"--study={study}"])
        assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_each_round_of_doremi_has_references_of_the_mixture_before(reweight, study):
    reweight(study, *SMALL, "--method=doremi", "--rounds=2", "--eta=5", "--reference=proportional")
    table = Study(study).read_table("reweighting/doremi.csv", "reweight")
    names = list(Study(study).domains.training)
    assert sorted(table["round"].unique()) == [1, 2]
    records = [json.loads(p.read_text()) for p in study.glob("reweighting/runs/reference-*/run.json")]
    found = [list(record["mixture"].values()) for record in records if record["seed"] == 1001]
    first = table[(table["round"] == 1) & (table.index == "1")][names].mean()
    expected = [mixture(Study(study), "proportional", "test"), first / first.sum()]
    np.testing.assert_allclose(sorted(found), sorted(map(list, expected)), atol=1e-9)
    assert Study(study).read_json("reweighting/doremi.json", "reweight")["tokens"] == 4 * TOKENS


@pytest.mark.slow
def test_a_command_killed_while_it_writes_a_state_ends_with_the_same_weights(reweight, study, tmp_path):
    line = command("reweight", f"--study={study}", *SMALL, "--steps=30", "--checkpoint_every=10")
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    for method in ("doremi", "doge"):
        process = subprocess.Popen([*line, f"--method={method}"], **quiet)
        while not list(study.glob(f"reweighting/runs/{method}-*/progress/*orbax-checkpoint-tmp*")):
            assert process.poll() is None
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (study / "reweighting" / f"{method}.json").exists()
        assert subprocess.run([*line, f"--method={method}"], cwd=ROOT, capture_output=True).returncode == 0
    resumed = left(study)
    (study / "reweighting").rename(tmp_path / "aside")
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    undisturbed = left(study)
    for name in ("doremi.csv", "doge.csv", "doremi.json", "doge.json", "weights.csv"):
        assert resumed[name] == undisturbed[name], name
