import numpy as np
import pytest

from mde import hosts


def test_a_command_that_runs_alone_waits_for_nobody():
    hosts.connect(None)
    hosts.wait("anything")
    assert (hosts.count(), hosts.index(), hosts.is_first()) == (1, 0, True)
    np.testing.assert_array_equal(hosts.gathered([True, False]), [[True, False]])


@pytest.mark.parametrize("rank", [0, 2])
def test_skypilots_nodes_are_found_by_what_it_says_of_them(rank, monkeypatch):
    import jax

    monkeypatch.setenv("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2\n10.0.0.3")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", str(rank))
    told = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: told.append(arguments))
    hosts.connect("auto")
    assert told == [("10.0.0.1:8476", 3, rank)]


def test_cores_are_counted_where_the_system_does_not_say_which_are_ours(monkeypatch):
    import os

    assert hosts.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert hosts.cores() == os.cpu_count()
