import numpy as np
import pytest
from helpers import random_documents, write_store
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from mde.ablation import units
from mde.data import mixing
from mde.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "wiki", random_documents(200, 0))


def test_units_are_disjoint_ranges_after_the_seed_models(store):
    found = units.cut("wiki", store, 5, tokens=300, seed_share=0.3)
    seed = units.set_aside(store, 0.3)
    parts = [seed, *(unit.store for unit in found.values())]
    assert list(found) == [f"wiki-{i}" for i in range(5)]
    assert {unit.domain for unit in found.values()} == {"wiki"}
    read = np.concatenate([part.read(0, part.n_tokens).tokens for part in parts])
    assert_array_equal(read, store.read(0, len(read)).tokens)  # one after the other, nothing twice
    assert seed.n_tokens >= 0.3 * store.n_tokens > seed.n_tokens - 42  # to a whole document
    for part in parts[1:]:
        assert 300 <= part.n_tokens < 300 + 42


def test_more_units_leave_those_there_are_as_they_are(store):
    few, many = (units.cut("wiki", store, n, tokens=300, seed_share=0.3) for n in (2, 6))
    for name, unit in few.items():
        assert unit.store.digest == many[name].store.digest
    assert len({unit.store.digest for unit in many.values()}) == 6


def test_a_unit_is_a_domain_to_train_on(store):
    unit = units.cut("wiki", store, 3, tokens=300, seed_share=0.3)["wiki-1"].store
    batch = mixing.batches({"wiki-1": unit}, np.array([1.0]), seed=0, batch_size=unit.windows(16), seq_len=16)[0]
    expected = [unit.window(i, 16).tokens for i in range(unit.windows(16))]
    assert_array_equal(np.sort(batch["tokens"], axis=0), np.sort(expected, axis=0))


def test_a_domain_that_is_too_small_says_what_it_has_text_for(store):
    room = units.capacity(store, 300, 0.3)
    assert len(units.cut("wiki", store, room, 300, 0.3)) == room
    with pytest.raises(UserError, match=rf"domain 'wiki': .* enough for {room} units of 300 .* not for {room + 1}"):
        units.cut("wiki", store, room + 1, 300, 0.3)
    with pytest.raises(UserError, match="seed_share=1"):
        units.cut("wiki", store, 1, 300, 1.0)
    with pytest.raises(UserError, match="units=0"):
        units.cut("wiki", store, 0, 300, 0.3)


def test_larger_domains_get_more_units():
    tokens = {"a": 100, "b": 50, "c": 5}
    assert units.apportion(tokens, dict.fromkeys(tokens, 9), 7) == {"a": 4, "b": 2, "c": 1}
    assert units.apportion(tokens, {"a": 2, "b": 9, "c": 9}, 7) == {"a": 2, "b": 4, "c": 1}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(0, 20))
def test_one_unit_more_takes_none_away(sizes, more):
    tokens = {str(i): size for i, size in enumerate(sizes)}
    room = dict.fromkeys(tokens, 50)
    before, after = (units.apportion(tokens, room, len(sizes) + more + one) for one in (0, 1))
    assert all(0 <= after[name] - before[name] <= 1 for name in tokens)
    assert sum(before.values()) == len(sizes) + more


def test_units_that_cannot_be_shared_out():
    with pytest.raises(UserError, match="units=1: expected at least one for each of a, b"):
        units.apportion({"a": 1, "b": 1}, {"a": 1, "b": 1}, 1)
    with pytest.raises(UserError, match="units=4: there is text for a 1, b 2"):
        units.apportion({"a": 1, "b": 1}, {"a": 1, "b": 2}, 4)
    with pytest.raises(UserError, match="there is text for a 0, b 9"):
        units.apportion({"a": 1, "b": 1}, {"a": 0, "b": 9}, 4)
