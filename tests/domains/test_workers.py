"""Several processes: results in order, errors that come through, a process that is killed."""

import os
import time

import pytest

from mde.domains import workers
from mde.domains.corpora import Corpus, Shard
from mde.errors import UserError

SHARD = Shard(Corpus("a", "nowhere"), None, (), "text", 0)


def double(shard: Shard, number: int) -> dict:
    time.sleep(0.2 * (number == 0))  # the first comes last
    workers.advance(10, 2)
    return {"doubled": 2 * number}


def refuse_the_first(shard: Shard, number: int) -> dict:
    if number == 0:
        raise UserError("a.jsonl, line 3: not JSON")
    for _ in range(600):
        time.sleep(0.1)
        workers.advance(1)
    raise AssertionError("nobody said to stop")


def die(shard: Shard) -> dict:
    os._exit(9)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes):
    found = workers.over(double, [(SHARD, i) for i in range(5)], processes, "double")
    assert found == [{"doubled": 2 * i} for i in range(5)]
    assert workers.over(double, [], processes, "nothing") == []


def test_one_failure_stops_the_others_and_is_told():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"a\.jsonl, line 3"):
        workers.over(refuse_the_first, [(SHARD, 0), (SHARD, 1)], 2, "refuse")
    assert time.monotonic() - started < 50  # and not the minute that the other one would have taken
    workers.advance(1)  # nothing is left behind that stops this process


def test_a_process_that_is_killed_is_told():
    with pytest.raises(UserError, match=r"smaller prepare\.processes; the same command goes on"):
        workers.over(die, [(SHARD,)], 2, "die")
