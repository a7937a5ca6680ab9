"""Sweeps on local processes: expansion, names, what is skipped, failures, and the table."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swarm_sweep import ROOT, events, wait_for, write_sweep

from launch import expansion, sweep, worker
from mde import cli
from mde.errors import UserError
from mde.study import Study

GRID = "sweep.last = 'fit'\nsweep.grid = {'fit.seed': [0, 1], 'fit.train_mixtures': [8, 16]}"


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a sweep into `tmp_path/out`; returns its exit status and what it printed."""

    def start(body: str, *flags: str) -> tuple[int, str]:
        file = write_sweep(tmp_path, body)
        with pytest.raises(SystemExit) as status:
            sweep.main([f"--sweep={file}", f"--root={tmp_path / 'out'}", *flags])
        printed = capsys.readouterr()
        return status.value.code, printed.out + printed.err

    return start


def test_points_are_run_once_and_gathered(run, tmp_path):
    status, said = run("sweep.last = 'optimize'\noptimize.refits = 3\nsweep.grid = {'fit.seed': [0, 1]}")
    assert status == 0
    assert "2 of 2 points are done" in said
    out = tmp_path / "out"
    table = pd.read_parquet(out / "results.parquet")
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "results.csv", index_col="point"), check_dtype=False)
    assert list(table["fit.seed"]) == [0, 1]
    assert set(table["status"]) == {"done"}
    for name, row in table.iterrows():
        optimum = Study(out / name).read_json("optimum.json", "optimize")
        assert row["predicted"] == optimum["predictions"]["recommended"]["objective"]
        assert row["weight/code"] == optimum["weights"]["code"]
        assert row["seconds/fit"] == Study(out / name).read_json("stages/fit.json", "fit")["seconds"]
    # Both points fitted the same proxy runs, which count once.
    pooled = pd.read_csv(out / "mixtures.csv", index_col="run")
    assert list(pooled.index) == [f"{table.index[0]}/r{i}" for i in range(24)]
    cli.main(["fit", f"--study={out}/all", f"--mixtures={out}/mixtures.csv", f"--losses={out}/losses.csv"])

    status, said = run("sweep.last = 'optimize'\noptimize.refits = 3\nsweep.grid = {'fit.seed': [0, 1, 2]}")
    assert status == 0
    assert "3 points, 2 of them done before" in said
    for noted in events(out).values():
        assert [note["event"] for note in noted] == ["started", "done"]


def test_a_point_that_fails_is_named_and_tried_again(run, tmp_path):
    # 24 proxy runs cannot train on 24: the fit refuses it, which no check of types could have foreseen.
    body = "sweep.last = 'fit'\nsweep.grid = {'fit.train_mixtures': [8, 24]}"
    status, said = run(body)
    assert status == 1
    assert "train-mixtures-24" in said
    assert "failed: launch.worker: error: " in said
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert list(table["status"]) == ["done", "unfinished"]
    assert np.isnan(table["mse"].iloc[1])
    assert run(body)[0] == 1
    assert sorted(len(noted) for noted in events(tmp_path / "out").values()) == [2, 2]


def test_a_dry_run_writes_nothing(run, tmp_path):
    status, said = run(GRID, "--dry_run")
    assert status == 0
    assert "fit.seed = 1, fit.train_mixtures = 16" in said
    assert "4 points, 0 of them done; each runs fit" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("sweep.grid = {'fit.repeat': [1]}", ["'repeat'", "did you mean 'repeats'"]),
        ("sweep.grid = {'fti.repeats': [1]}", ["'fti.repeats'", "did you mean 'fit.repeats'"]),
        ("sweep.grid = {'repeats': [1]}", ["'repeats'", "known are"]),
        ("sweep.grid = {'fit.repeats': ['many']}", ["fit.repeats = 'many'", "expected a whole number"]),
        ("sweep.grid = {'train.steps': [1]}", ["'train.steps'", "run only fit"]),
        ("sweep.grid = {'fit.repeats': []}", ["'fit.repeats'", "at least one value"]),
        ("sweep.grid = {'fit.repeats': 3}", ["at least one value, got 3"]),
        ("", ["the sweep is empty"]),
        ("sweep.grid = {}\nsweep.points = []", ["the sweep is empty"]),
        ("sweep.grid = {'fit.repeats': [3, 3]}", ["two points are called 'repeats-3-"]),
        ("sweep.grid = {'fit.regressors': [['ridge'], ('ridge',)]}", ["two points are called"]),
        ("sweep.points = [{'fit.seed': 1}]\nsweep.grid = {'fit.seed': [2]}", ["'fit.seed' is in sweep.grid and in"]),
        ("sweep.points = ['fit.seed']", ["expected mappings", "'fit.seed'"]),
        ("sweep.points = 3", ["a list of mappings"]),
        ("sweep.grids = {}", ["'grids'", "did you mean 'grid'"]),
        ("sweeps.grid = {}", ["'sweeps'", "did you mean 'sweep'"]),
        ("sweep.first = 'fti'\nsweep.grid = {'fit.seed': [2]}", ["'fti'", "did you mean 'fit'"]),
        ("sweep.last = 'train'\nsweep.grid = {'fit.seed': [2]}", ["comes after"]),
        ("fit.mixtures = None\nsweep.grid = {'fit.seed': [2]}", ["bind sweep.study"]),
        ("fit.mixtures = None\nsweep.study = 'x'\nsweep.grid = {'fit.seed': [2]}", ["'x': 'fit' needs 'evaluate'"]),
        ("sweep.study = 'x'\nsweep.grid = {'fit.seed': [2]}", ["could start from"]),
    ],
)
def test_bad_sweeps(run, tmp_path, body, expected):
    status, said = run(f"sweep.last = 'fit'\n{body}")
    assert status == 2
    assert len(said.splitlines()) == 1
    for text in expected:
        assert text in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--root=gs://bucket/sweep", "a directory that all workers see"),
        ("--cpus=0", "cpus=0"),
        ("--workers=0", "workers=0"),
        ("--backend=ray", "no Ray cluster at 'nowhere'"),
        ("--gin_bindings=fit.sede = 1", "did you mean 'seed'"),
    ],
)
def test_bad_flags(run, flag, expected):
    status, said = run(GRID, flag, "--address=nowhere")
    assert status == 2
    assert expected in said


KEYS = st.sampled_from(["fit.seed", "fit.repeats", "fit.objective", "train.preset", "train.mixtures"])
VALUES = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.none())


# The first text takes a second where Hypothesis has no tables of characters yet.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_names_are_stable_safe_and_short(own):
    name = expansion.name_of(own)
    assert name == expansion.name_of(dict(reversed(own.items())))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    assert not name.startswith((".", "-"))
    assert len(name) <= expansion.LONGEST_NAME


@patient
@given(st.dictionaries(KEYS, VALUES, min_size=1), st.dictionaries(KEYS, VALUES, min_size=1))
def test_names_differ_where_bindings_do(one, other):
    assert (expansion.name_of(one) == expansion.name_of(other)) == (one == other)


def test_a_name_does_not_change():
    """Studies on disk are found by it: whoever changes the rule loses them."""
    assert (
        expansion.name_of({"train.steps": 20, "train.learning_rate": 3e-3}) == "learning-rate-0.003-steps-20-a3d20fae"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.gin")), ids=lambda path: path.stem)
def test_shipped_sweeps_expand(path):
    points = expansion.read(str(path))
    assert len(points) > 1
    assert all(point.given["fit"]["objective"] for point in points)


def test_a_killed_point_is_resumed_and_a_running_one_left_alone(tmp_path, monkeypatch):
    """The process ends with its standard input; a second one waits until the first has gone."""
    file = write_sweep(tmp_path, "sweep.last = 'fit'\nfit.repeats = 100000\nsweep.grid = {'fit.seed': [0]}")
    (slow,) = expansion.read(str(file))
    directory = tmp_path / slow.name
    worker.write(slow, directory)
    command = [sys.executable, "-m", "launch.worker", str(directory), "--tied"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for((directory / "attempts.jsonl").exists)
    monkeypatch.setattr(worker, "PATIENCE", 1)
    with pytest.raises(UserError, match="another process is at work"):
        worker.run(directory, "here")
    process.stdin.close()
    assert process.wait(10) == 1

    (quick,) = expansion.read(str(file), ["fit.repeats = 2"])
    assert quick.name == slow.name  # the base is no part of the name
    worker.write(quick, directory)
    worker.run(directory, "here")
    assert [note["event"] for note in events(tmp_path)[quick.name]] == ["started", "started", "done"]
    assert worker.is_done(directory, quick.digest)
    assert not worker.is_done(directory, slow.digest)


def test_points_start_from_a_study(tmp_path):
    """They take over what the earlier stages left, and nothing that they do reaches it."""
    base = Study(tmp_path / "base")
    for name in ("prepare", "train", "fit"):
        base.write_json(f"stages/{name}.json", {"digest": name})
    for name in ("study.json", "tokens/a/store.json", "runs/r/params", "corpus/text", "fit/choice.json"):
        base.write_json(name, name)
    for name in worker.OWN:  # the study may be a point of another sweep
        base.write_json(name, "the base's")
    target = tmp_path / "point"
    worker.start_from(tmp_path / "base", target, "score")
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert found == ["runs/r/params", "stages/prepare.json", "stages/train.json", "study.json", "tokens/a/store.json"]
    Study(target).write_json("runs/r/params", "changed")
    assert json.loads((tmp_path / "base/runs/r/params").read_text()) == "runs/r/params"
    with pytest.raises(UserError, match="'evaluate' needs 'score', which is not done there"):
        worker.start_from(tmp_path / "base", target, "evaluate")


def test_points_do_not_take_over_what_tools_made_of_another_training(tmp_path):
    """The page would show it, and `validate` and `final` would find baselines in it."""
    base = Study(tmp_path / "base")
    of_runs = ("scale.json", "scale/runs.csv", "reweighting/doremi.json", "ablation/units.csv", "evals/seed-1.json")
    of_mixtures = ("final/demo-9-abcdef/summary.csv",)
    for name in ("stages/prepare.json", "stages/score.json", "stages/evaluate.json", *of_runs, *of_mixtures):
        base.write_json(name, name)
    for first, kept in (("train", ()), ("evaluate", of_runs), ("fit", of_runs)):
        worker.start_from(base.root, tmp_path / first, first)
        there = {name for name in (*of_runs, *of_mixtures) if (tmp_path / first / name).exists()}
        assert there == set(kept), first


def test_interrupted_sweeps_say_how_to_go_on(tmp_path):
    file = write_sweep(tmp_path, "sweep.last = 'fit'\nfit.repeats = 100000\nsweep.grid = {'fit.seed': [0, 1]}")
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={file}", f"--root={tmp_path / 'out'}", "--workers=1"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are told to ignore it
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    wait_for(lambda: events(tmp_path / "out"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "the same command goes on from here" in process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert len(events(tmp_path / "out")) == 1
