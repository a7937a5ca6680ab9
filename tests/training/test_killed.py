"""A pool that is killed ends, started again, with the parameters it would have had."""

import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from etils import epath
from helpers import random_documents, write_store
from killed_pool import MODEL, RUNS
from numpy.testing import assert_array_equal

from mde.models import decoder
from mde.training import checkpoints

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the pool in a directory; compiled programs are kept between starts."""
    root = tmp_path_factory.mktemp("killed")
    for seed, name in enumerate(("one", "other")):
        write_store(root / "stores" / name, random_documents(100, seed))

    def begin(runs):
        command = [sys.executable, Path(__file__).parent / "killed_pool.py", root / "stores", runs, root / "cache"]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return begin


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    process = start(runs)
    process.stdout.readline()
    ready = time.monotonic()
    finish(process)
    return parameters(runs), ready - begun, time.monotonic() - ready


def parameters(runs):
    like = decoder.init(MODEL, 0)
    return [checkpoints.load_params(epath.Path(runs) / run.name / "params", like) for run in RUNS]


def wait_for_a_write(process, runs):
    """Until a state is being written: Orbax calls what it has not finished by this name."""
    while process.poll() is None and not list(runs.glob("*/progress/*orbax-checkpoint-tmp*")):
        time.sleep(0.001)


def test_a_pool_killed_while_it_writes_a_state_ends_with_the_same_parameters(start, undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_a_write(process, tmp_path)
    process.kill()
    process.wait()
    assert not (tmp_path / "a" / "run.json").exists()
    finish(start(tmp_path))
    jax.tree.map(assert_array_equal, parameters(tmp_path), undisturbed[0])


@pytest.mark.slow
def test_a_pool_killed_at_twenty_random_moments_ends_with_the_same_parameters(start, undisturbed, tmp_path):
    expected, _, training = undisturbed
    rng = random.Random(0)
    killed = 0
    while killed < 20:
        process = start(tmp_path)
        process.stdout.readline()
        if rng.random() < 0.3:
            wait_for_a_write(process, tmp_path)
        time.sleep(rng.uniform(0, training / 2))
        if process.poll() is not None:  # finished before it could be killed: begin again
            jax.tree.map(assert_array_equal, parameters(tmp_path), expected)
            for run in RUNS:
                epath.Path(tmp_path / run.name).rmtree()
            continue
        process.kill()
        process.wait()
        killed += 1
    finish(start(tmp_path))
    jax.tree.map(assert_array_equal, parameters(tmp_path), expected)
