"""Commands that several processes run together, here two on one machine that speak through gloo."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import pandas as pd
import pytest
from commands import ROOT, command
from numpy.testing import assert_array_equal

from mde.results.trained_runs import load_run, model_config
from mde.study import Study

TRAIN = (
    "--gin_file=configs/demo_tiny.gin",
    "--proxy_runs=1",  # seven runs: the last has a row of its own, and a process beside it that trains nothing
    "--steps=24",
    "--seed_steps=12",
    "--checkpoint_every=10",
)


def environment(cache: Path, devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | cached | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(cache: Path, name: str, study: Path, *arguments: str) -> list[subprocess.Popen]:
    """The two processes of a command, a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [f"--coordinator=localhost:{port}", "--processes=2"]
    return [
        subprocess.Popen(
            command(name, f"--study={study}", *arguments, *together, f"--process={i}"),
            cwd=ROOT,
            env=environment(cache, 1),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][-2000:] + said[1][-2000:]


def alone(cache: Path, name: str, study: Path, *arguments: str) -> None:
    """The same command by one process that has two devices."""
    done = subprocess.run(
        command(name, f"--study={study}", *arguments),
        cwd=ROOT,
        env=environment(cache, 2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def wait_for_states(study: Path) -> None:
    """Until both runs of a wave after the seed model have a state to resume from."""
    deadline = time.monotonic() + 300
    while len({path.parents[1] for path in study.glob("runs/expert-*/progress/10")}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def curve(study: Path, run: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (study / "runs" / run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_and_score_as_one_does_even_if_one_of_them_is_killed(killed, prepared, tmp_path):
    """To the bit: a model of the pool is on one device either way, and the seed model's gradient a sum of two parts."""
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", prepared, other], check=True)
    alone(tmp_path / "cache", "train", other, *TRAIN)
    alone(tmp_path / "cache", "score", other, "--tokens_per_domain=512")

    if killed:
        processes = start(tmp_path / "cache", "train", prepared, *TRAIN)
        wait_for_states(prepared)
        processes[1].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=300)
        assert all(process.returncode for process in processes)  # the one that is left does not go on alone
        assert not (prepared / "mixtures.csv").exists()
    finish(start(tmp_path / "cache", "train", prepared, *TRAIN))
    finish(start(tmp_path / "cache", "score", prepared, "--tokens_per_domain=512"))

    runs = ["seed", *pd.read_csv(prepared / "mixtures.csv")["run"]]
    assert len(runs) == 8
    studies = [Study(prepared), Study(other)]
    for run in runs:
        both = [load_run(study, run, model_config(study)) for study in studies]
        jax.tree.map(assert_array_equal, *both)
        assert curve(prepared, run) == curve(other, run)
        assert sorted(path.name for path in (prepared / "runs" / run).iterdir()) == [
            "metrics.jsonl",
            "params",
            "run.json",
        ]
    pd.testing.assert_frame_equal(*(study.losses() for study in studies), check_exact=True)


@pytest.mark.slow
def test_a_request_to_stop_that_one_process_gets_stops_both_with_their_states_saved(prepared, tmp_path):
    processes = start(tmp_path / "cache", "train", prepared, *TRAIN, "--steps=3000", "--checkpoint_every=1000")
    deadline = time.monotonic() + 300
    while not list(prepared.glob("runs/expert-*/progress")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(5)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 130, said[-2000:]
        assert "interrupted; the same command goes on from here" in said
    assert list(prepared.glob("runs/expert-*/progress/[0-9]*/_CHECKPOINT_METADATA"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "--processes needs --coordinator=HOST:PORT"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], "--process=2: expected how many processes"),
        (["--coordinator=localhost:1"], "--processes=None --process=None: expected how many processes there are"),
        (["--coordinator=auto", "--process=1"], "--coordinator=auto finds out about --process itself"),
        (["--coordinator=auto"], "--coordinator=auto: the processes do not find each other"),
    ],
)
def test_processes_that_cannot_find_each_other(flags, message, tmp_path):
    done = subprocess.run(command("train", f"--study={tmp_path}", *flags), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
