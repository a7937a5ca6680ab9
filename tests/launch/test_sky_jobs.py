"""A sweep as SkyPilot's managed jobs, against a `sky` that keeps a queue and runs them here, and a bucket."""

import io
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from etils import epath
from swarm_sweep import ROOT, wait_for, write_sweep

from launch import sky_jobs, sweep, worker
from mde.study import Study

MACHINE = "--machine=launch/machines/cpu.py"
GRID = "sweep.last = 'fit'\nsweep.grid = {'fit.seed': [0, 1]}"


@pytest.fixture(autouse=True)
def _there(standins, monkeypatch):
    """Relative paths are those of the repository; stand-ins are all that is on the PATH."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def swarm(bucket, tmp_path):
    """Writes a sweep over a swarm that is in the bucket; returns the file."""

    def write(body: str) -> str:
        write_sweep(tmp_path, "sweep.grid = {'fit.seed': [0]}")
        for name in ("m.csv", "l.csv"):
            epath.Path(bucket, name).write_bytes((tmp_path / name).read_bytes())
        file = tmp_path / "sweep.gin"
        base = [f"fit.mixtures = '{bucket}/m.csv'", f"fit.losses = '{bucket}/l.csv'", "fit.regressors = ['ridge']"]
        file.write_text("\n".join([*base, "fit.repeats = 3", "sweep.first = 'fit'", body]) + "\n")
        return str(file)

    return write


@pytest.fixture
def run(swarm, bucket, capsys):
    """Runs a sweep into the bucket; returns its exit status and what it printed."""

    def start(body: str, *flags: str) -> tuple[int, str]:
        given = [f"--sweep={swarm(body)}", f"--root={bucket}/out", "--backend=skypilot", MACHINE, "--poll=0.2"]
        with pytest.raises(SystemExit) as status:
            sweep.main([*given, *flags])
        printed = capsys.readouterr()
        return status.value.code, printed.out + printed.err

    return start


def events(root: str) -> dict[str, list[str]]:
    """By point, what it noted of its attempts."""
    points = [path.name for path in epath.Path(root).iterdir() if (path / "attempts.jsonl").exists()]
    lines = {name: epath.Path(root, name, "attempts.jsonl").read_text().splitlines() for name in points}
    return {name: [json.loads(line)["event"] for line in noted] for name, noted in lines.items()}


def launches(standins) -> list[str]:
    return [call[call.index("--name") + 1] for call in standins.calls() if call[:3] == ["sky", "jobs", "launch"]]


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False])
def test_each_point_is_done_once_though_the_sweep_is_killed(swarm, bucket, standins, capsys, quick):
    points = 4 if quick else 16
    standins.scenario(preempt=[2], hold=[points - 1], quick=quick)
    file, root = swarm(f"sweep.last = 'fit'\nsweep.grid = {{'fit.seed': {list(range(points))}}}"), f"{bucket}/out"
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={file}", f"--root={root}", "--backend=skypilot"]
    command += [MACHINE, "--poll=0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: len(launches(standins)) >= points - 1, seconds=180)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    before = list(itertools.takewhile(lambda line: "PENDING already" not in line, process.stdout))
    standins.scenario(preempt=[2], quick=quick)
    said = "".join([*before, process.communicate(timeout=300)[0]])
    assert process.returncode == 0, said
    assert f"{points} of {points} points are done" in said
    assert len(launches(standins)) == len(set(launches(standins))) == points
    noted = events(root)
    assert len(noted) == points
    assert sorted(noted.values()) == [["started", "done"]] * (points - 1) + [["started", "started", "done"]]
    table = pd.read_parquet(io.BytesIO(epath.Path(root, "results.parquet").read_bytes()))
    assert sorted(table["fit.seed"]) == list(range(points))
    assert set(table["status"]) == {"done"}
    if not quick:
        assert table["mse"].notna().all()
        pooled = pd.read_csv(io.BytesIO(epath.Path(root, "mixtures.csv").read_bytes()), index_col="run")
        assert len(pooled) == 24

    with pytest.raises(SystemExit) as status:
        sweep.main(command[3:])
    assert status.value.code == 0
    assert f"{points} points, {points} of them done before" in capsys.readouterr().out
    assert len(launches(standins)) == points


@pytest.mark.slow
def test_a_point_that_fails_is_named_with_its_logs_and_tried_again(run, standins):
    body = "sweep.last = 'fit'\nsweep.grid = {'fit.train_mixtures': [8, 24]}"
    standins.scenario(end={"1": ["FAILED_NO_RESOURCE", "Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally."]})
    status, said = run(body)
    assert status == 1
    assert "FAILED_NO_RESOURCE: Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally. (see `sky jobs logs" in said
    assert "--controller 1`)" in said
    # 24 proxy runs cannot train on 24: the fit refuses it, which nothing could have foreseen.
    assert "launch.worker: error: " in said
    assert "(see `sky jobs logs 2`)" in said
    status, said = run(body)
    assert status == 1
    assert "1 of 2 points are done" in said
    assert len(launches(standins)) == 4


def test_gathering_asks_no_sky(run, swarm, bucket, standins, capsys):
    standins.scenario(quick=True)
    assert run(GRID)[0] == 0
    calls = len(standins.calls())
    given = [f"--sweep={swarm(GRID)}", f"--root={bucket}/out", "--backend=skypilot", "--gather"]
    with pytest.raises(SystemExit) as status:
        sweep.main(given)
    assert status.value.code == 0
    assert "2 of 2 points are done" in capsys.readouterr().out
    assert len(standins.calls()) == calls


def test_a_submission_that_is_refused(run, standins):
    refusal = "sky.exceptions.ResourcesUnavailableError: \x1b[1mQuota exceeded\x1b[0m"
    standins.scenario(refuse=refusal, refuse_from=2, quick=True)
    status, said = run(GRID)
    assert status == 2
    assert "was refused: sky.exceptions.ResourcesUnavailableError: Quota exceeded (1 points were submitted" in said
    standins.scenario(quick=True)
    status, said = run(GRID)
    assert status == 0, said
    assert len(set(launches(standins))) == 2


def test_a_queue_that_does_not_answer(run, standins):
    standins.scenario(no_answer=3, quick=True)
    assert run(GRID)[0] == 0
    standins.scenario(no_answer=99)
    status, said = run("sweep.last = 'fit'\nsweep.grid = {'fit.seed': [0, 1, 2]}")
    assert status == 2
    assert "cannot see SkyPilot's queue: requests.exceptions.ConnectionError" in said.splitlines()[-1]


def test_what_was_being_submitted_is_waited_for(run, bucket, standins, monkeypatch):
    """A mark without a job may belong to one that is on its way into the queue, until it is too old for that."""
    monkeypatch.setattr(sky_jobs, "SETTLING", 3)
    standins.scenario(quick=True)
    listed = run(GRID, "--dry_run")[1].splitlines()
    name = next(line for line in listed if line.startswith(f"{bucket}/out/"))
    name = name.split(": ")[0]
    Study(name).write_json(sky_jobs.MARK, {"time": time.time(), "before": None})
    status, said = run(GRID)
    assert status == 0, said
    assert "submitted a moment ago" in said


def test_a_dry_run_prints_every_command_and_reaches_for_nothing(run, bucket, standins):
    status, said = run(GRID, "--dry_run")
    assert status == 0
    assert standins.calls() == []
    assert not epath.Path(bucket, "out").exists()
    printed = [shlex.split(line[2:]) for line in said.splitlines() if line.startswith("$ ")]
    standins.scenario(quick=True)
    assert run(GRID)[0] == 0
    made = standins.calls()
    once = [call for i, call in enumerate(made) if call not in made[:i]]
    assert [call[:-1] for call in printed] == [call[:-1] for call in once]
    assert 'launch.worker "$MDE_POINT"' in said


def test_no_binding_is_a_command(run, standins, tmp_path):
    text = "'; touch pwned; '\" $(touch pwned) `touch pwned` & touch pwned; ${HOME}"
    status, said = run(f"sweep.last = 'fit'\nsweep.grid = {{'fit.objective': [{text!r}]}}")
    assert status == 1
    assert "unknown objective" in said
    assert not list(tmp_path.rglob("pwned"))
    assert not (ROOT / "pwned").exists()


def test_secrets_go_by_name(run, standins, monkeypatch):
    monkeypatch.setenv("TOKEN", "very secret")
    standins.scenario(quick=True)
    status, said = run(GRID, "--secret=TOKEN")
    assert status == 0
    assert "very secret" not in said + str(standins.calls())
    assert all("TOKEN" in call for call in standins.calls() if call[2] == "launch")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--root=studies/sweep"], "expected a place that all machines reach, such as gs://"),
        (["--root=gcs://bucket/sweep"], "did you mean 'gs://'"),
        (["--machine=launch/machines/v4.py"], "did you mean 'launch/machines/v4_8.py'"),
        (["--machine=launch/machines/v5e_16.py"], "a point is run by one host and the machine has 4"),
        (["--machine=launch/machines/v4_8.py", "--set=runtime="], "needs the machine's runtime"),
        (["--secret=NOWHERE"], "--secret=NOWHERE: expected"),
        (["--poll=0"], "poll=0.0 must be positive"),
        (["--gin_bindings=fit.sede = 1"], "did you mean 'seed'"),
        (["--gin_bindings=fit.mixtures = '/etc/hostname'"], "'/etc/hostname' is on this machine alone"),
        (
            ["--gin_bindings=fit.mixtures = None", "--gin_bindings=sweep.study = 'studies/x'"],
            "expected a study in a bucket",
        ),
    ],
)
def test_bad_input_costs_nothing(run, bucket, standins, flags, expected):
    status, said = run(GRID, *flags)
    assert status == 2
    assert expected in said
    assert len(said.splitlines()) == 1
    assert standins.calls() == []
    assert not epath.Path(bucket, "out").exists()


def test_a_model_that_does_not_fit(bucket, standins, capsys):
    given = [f"--sweep={ROOT}/configs/sweeps/presets.gin", f"--root={bucket}/out", "--backend=skypilot", MACHINE]
    with pytest.raises(SystemExit) as status:
        sweep.main([*given, "--gin_bindings=sweep.points = [{'train.preset': '1b'}]", "--set=chips_per_host=1"])
    assert status.value.code == 2
    assert "preset '1b' does not fit on cpu" in capsys.readouterr().err
    assert standins.calls() == []


def test_no_sky_and_no_credentials(run, bucket, standins):
    standins.scenario(clouds={})
    status, said = run(GRID)
    assert status == 2
    assert "SkyPilot has access to no cloud: log in to one; `sky check` says what is missing" in said
    (standins.programs / "sky").unlink()
    status, said = run(GRID)
    assert status == 2
    assert said.splitlines()[-1] == "launch.sweep: error: sky is not installed: it is not on the PATH"
    assert not epath.Path(bucket, "out").exists()


def test_a_point_starts_from_a_study_in_a_bucket(bucket):
    """What the stages before left is copied, and nothing that the point does reaches it."""
    base = Study(f"{bucket}/base")
    for name in ("stages/prepare.json", "stages/train.json", "study.json", "tokens/a/store.json", "fit/choice.json"):
        base.write_json(name, name)
    target = epath.Path(bucket, "point")
    worker.start_from(base.root, target, "score")
    assert json.loads((target / "tokens/a/store.json").read_text()) == "tokens/a/store.json"
    assert (target / "stages/train.json").exists()
    assert not (target / "fit").exists()
