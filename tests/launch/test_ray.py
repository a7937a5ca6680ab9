"""A sweep on a real Ray cluster: a head, and two workers of which one is killed in the middle."""

import contextlib
import os
import signal
import subprocess
import sys

import pandas as pd
import psutil
import pytest
from swarm_sweep import ROOT, events, wait_for, write_sweep

ray = pytest.importorskip("ray")
SMALL = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """A head that has no CPUs for points, and notices within seconds that a node is lost."""
    from ray.cluster_utils import Cluster

    impatient = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": impatient, **SMALL})
    yield cluster
    cluster.shutdown()


def start(cluster, file, root, *flags):
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={file}", f"--root={root}", "--backend=ray"]
    return subprocess.Popen(
        [*command, f"--address={cluster.address}", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def running(out):
    """A point that was started and is not done, and its last note."""
    return next(((name, notes[-1]) for name, notes in events(out).items() if notes[-1]["event"] == "started"), None)


def orphaned(note, parent):
    """Whether a point's process has lost the parent it had, or has gone with it."""
    try:
        return psutil.Process(note["pid"]).ppid() != parent
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("points", [4, 16])
def test_the_points_of_a_killed_worker_run_elsewhere(cluster, tmp_path, points):
    workers = {f"ray node {node.node_id}": node for node in (cluster.add_node(num_cpus=1, **SMALL) for _ in range(2))}
    cluster.wait_for_nodes()
    file = write_sweep(tmp_path, f"sweep.last = 'fit'\nsweep.grid = {{'fit.seed': {list(range(points))}}}")
    out = tmp_path / "out"
    process = start(cluster, file, out)
    wait_for(lambda: len({note["on"] for notes in events(out).values() for note in notes}) == 2)
    wait_for(lambda: running(out))
    victim, note = running(out)
    os.kill(note["pid"], signal.SIGSTOP)  # it cannot be done before its node is lost
    parent = psutil.Process(note["pid"]).ppid()
    cluster.remove_node(workers.pop(note["on"]), allow_graceful=False)
    wait_for(lambda: orphaned(note, parent))
    with contextlib.suppress(ProcessLookupError):
        os.kill(note["pid"], signal.SIGCONT)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert f"{points} of {points} points are done" in said

    noted = events(out)
    ((survivor, node),) = workers.items()
    assert len(noted) == points
    for name, notes in noted.items():
        assert [note["event"] for note in notes] == ["started"] * (1 + (name == victim)) + ["done"]
    assert [note["on"] for note in noted[victim]] == [note["on"], survivor, survivor]
    table = pd.read_parquet(out / "results.parquet")
    assert sorted(table["fit.seed"]) == list(range(points))
    assert set(table["status"]) == {"done"}
    assert table["mse"].notna().all()
    cluster.remove_node(node)


def test_resources_that_no_node_has(cluster, tmp_path):
    file = write_sweep(tmp_path, "sweep.last = 'fit'\nsweep.grid = {'fit.seed': [0]}")
    process = start(cluster, file, tmp_path / "out", "--tpus=4")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "error: no node of the Ray cluster has {'CPU': 1, 'TPU': 4.0}" in said
