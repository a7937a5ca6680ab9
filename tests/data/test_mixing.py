import itertools

import numpy as np
import pytest
from helpers import write_store
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from mde.data.mixing import ProportionalSelection, batches, grouped, iterate
from mde.errors import UserError

SEQ_LEN, BATCH = 4, 3
SIZES = (5, 8, 30)  # windows of each domain


@st.composite
def mixtures(draw):
    """Points of the simplex: its inside, faces, corners, and tiny weights beside large ones."""
    weight = st.one_of(st.sampled_from([0.0, 1e-12, 1e-9, 1e-3, 1.0]), st.floats(0, 1))
    weights = np.array(draw(st.lists(weight, min_size=1, max_size=7).filter(lambda w: sum(w) > 1e-6)))
    return weights / weights.sum()


@given(mixtures())
@settings(max_examples=60, deadline=None)
def test_every_prefix_has_the_proportions_of_the_mixture(weights):
    selection = ProportionalSelection(weights)
    counts = np.zeros(len(weights), int)
    for n in range(400):
        assert np.abs(counts - n * weights).max() < len(weights)
        domain, index = selection[n]
        assert weights[domain] > 0
        assert index == counts[domain]
        counts[domain] += 1


@given(mixtures(), st.integers(0, 2**45))
@settings(max_examples=200, deadline=None)
def test_far_out_sequences_are_where_the_proportions_put_them(weights, n):
    domain, index = ProportionalSelection(weights)[n]
    assert weights[domain] > 0
    assert abs(index - n * weights[domain]) < len(weights) + 2.0**-50 * n  # weights sum to 1 to a few ulp only


@pytest.mark.parametrize("n", [7, 1000, 10**6 + 3])
def test_neighbours_agree_on_the_counts_between_them(n):
    weights = np.array([0.6, 0.4 - 1e-9, 1e-9])
    selection = ProportionalSelection(weights)
    seen = [selection[i] for i in range(n, n + 500)]
    for k in range(2):
        indices = [index for domain, index in seen if domain == k]
        assert_array_equal(np.diff(indices), 1)


def test_a_small_weight_is_seen_its_due_number_of_times():
    weights = np.array([0.001, 0.7, 0.0, 0.299])
    domains = [domain for domain, _ in map(ProportionalSelection(weights).__getitem__, range(100_000))]
    assert np.abs(np.bincount(domains) - 100_000 * weights).max() <= 1
    gaps = np.diff(np.flatnonzero(np.array(domains) == 0))
    assert gaps.min() > 900  # spread out, not in one heap
    assert gaps.max() < 1100


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Domains whose every token tells the domain (thousands) and the window (first token)."""
    root = tmp_path_factory.mktemp("stores")
    return {
        f"domain-{k}": write_store(root / str(k), [1000 * (k + 1) + np.arange(n * SEQ_LEN)])
        for k, n in enumerate(SIZES)
    }


def run(stores, weights, seed=0):
    return batches(stores, np.asarray(weights), seed=seed, batch_size=BATCH, seq_len=SEQ_LEN)


def read(dataset, steps):
    """(domain, window) of the sequences of the first steps, in order."""
    last = np.concatenate([dataset[step]["tokens"][:, -1] for step in range(steps)])
    return [(t // 1000 - 1, t % 1000 // SEQ_LEN) for t in last.tolist()]


def by_domain(sequences):
    return {k: [w for domain, w in sequences if domain == k] for k in range(len(SIZES))}


def test_batches_are_windows_of_the_stores(stores):
    batch = run(stores, [0.2, 0.3, 0.5])[0]
    assert batch["tokens"].shape == batch["segments"].shape == (BATCH, SEQ_LEN + 1)
    assert batch["tokens"].dtype == batch["segments"].dtype == np.int32
    assert_array_equal(np.diff(batch["tokens"][:, 1:]), 1)


def test_a_batch_is_a_pure_function_of_the_step(stores):
    mixture = [0.2, 0.3, 0.5]
    one, other = run(stores, mixture), run(stores, mixture)
    backwards = [one[step] for step in reversed(range(12))][::-1]
    for step, batch in enumerate(itertools.islice(iterate(other, 0, 12), 12)):
        assert_array_equal(batch["tokens"], backwards[step]["tokens"])
        assert_array_equal(batch["segments"], backwards[step]["segments"])


def test_iteration_from_the_middle_goes_on_as_if_it_had_begun_at_the_start(stores):
    dataset = run(stores, [0.2, 0.3, 0.5])
    resumed = list(iterate(dataset, 5, 9))
    assert len(resumed) == 4
    for step, batch in enumerate(resumed, start=5):
        assert_array_equal(batch["tokens"], dataset[step]["tokens"])


def test_the_domains_of_a_run_follow_its_proportions(stores):
    sequences = read(run(stores, [0.2, 0.3, 0.5]), 40)
    counts = np.bincount([domain for domain, _ in sequences])
    assert np.abs(counts - len(sequences) * np.array([0.2, 0.3, 0.5])).max() < 3


def test_a_weight_of_zero_is_never_read(stores):
    assert {domain for domain, _ in read(run(stores, [0.5, 0.0, 0.5]), 40)} == {0, 2}
    assert {domain for domain, _ in read(run(stores, [0.0, 1.0, 0.0]), 40)} == {1}


def test_all_sequences_of_a_domain_are_seen_once_before_any_is_seen_again(stores):
    seen = by_domain(read(run(stores, [0.4, 0.3, 0.3]), 60))
    for k, size in enumerate(SIZES):
        epochs = [seen[k][i : i + size] for i in range(0, len(seen[k]) - size + 1, size)]
        assert len(epochs) >= 1
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)


def test_every_epoch_is_shuffled_anew(stores):
    seen = by_domain(read(run(stores, [0.0, 1.0, 0.0]), 16))[1]
    assert seen[:8] != sorted(seen[:8])
    assert len({tuple(seen[i : i + 8]) for i in range(0, 48, 8)}) == 6


def test_two_mixtures_read_the_same_sequences_of_a_domain_in_the_same_order(stores):
    one, other = (by_domain(read(run(stores, w), 40)) for w in ([0.6, 0.3, 0.1], [0.1, 0.2, 0.7]))
    for k in range(3):
        n = min(len(one[k]), len(other[k]))
        assert n > 0
        assert one[k][:n] == other[k][:n]


def test_another_seed_reads_in_another_order(stores):
    one, other = (by_domain(read(run(stores, [0, 0, 1.0], seed), 10)) for seed in (0, 1))
    assert one[2] != other[2]
    assert sorted(one[2]) == sorted(other[2])


def test_an_empty_domain_is_an_error_only_if_it_is_to_be_read(stores, tmp_path):
    short = write_store(tmp_path / "short", [[1] * (SEQ_LEN - 1)])  # with START one token too few
    with_short = {**stores, "short": short}
    assert {domain for domain, _ in read(run(with_short, [0.5, 0.0, 0.5, 0.0]), 20)} == {0, 2}
    with pytest.raises(UserError, match=r"'short' is empty: 4 tokens in .*short.* needs 5"):
        run(with_short, [0.5, 0.0, 0.4, 0.1])


def test_weights_must_be_one_a_domain(stores):
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        run(stores, [0.5, 0.5])


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_every_sequence_of_a_uniform_batch_has_a_place_in_its_domain(size, multiple):
    """Sequences carry their number; their domains go round."""
    K = 5
    uniform = np.full(K, 1 / K)
    shapes = set()
    for first in (0, size, 7 * size):
        numbers = np.arange(first, first + size)
        batch = {"tokens": 1 + numbers[:, None] * np.ones((1, 4), int), "segments": np.ones((size, 4), int)}
        placed = grouped(batch, uniform, first, multiple)
        shapes.add(placed["tokens"].shape)
        for k in range(K):
            found = placed["tokens"][:, k, 0]
            assert_array_equal(found[found > 0] - 1, [n for n in numbers if ProportionalSelection(uniform)[n][0] == k])
            assert (found > 0).any()
            assert_array_equal(placed["segments"][:, k] > 0, (found > 0)[:, None] * np.ones(4, bool))
    assert len(shapes) == 1  # so that programs are compiled once
    ((places, *_),) = shapes
    assert places % multiple == 0
    assert places * K >= size
