"""Text that is read block by block, several τ in one pass, units, and the same answers on any number of devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.evaluation import MixtureLosses, mixture_nll

K = 3
# Blocks cut tokens into other sums; each sum is compensated, so what differs is the order of a few float32 mantissas.
SAME = 1e-7


def text(count=600, seed=0):
    rng = np.random.default_rng(seed)
    log_probs = np.float32(-rng.exponential(2.0, (count, 1)) - rng.exponential(3.0, (count, K)))
    log_probs[rng.random((count, K)) < 1e-3] = -np.inf
    log_probs[np.isneginf(log_probs).all(axis=1)] = -1
    segment_ids = np.sort(np.arange(count) % 4)
    lengths = rng.integers(1, 60, count)
    sequence_ids = np.repeat(np.arange(count), lengths)[:count] * 4 + segment_ids
    return log_probs, segment_ids, sequence_ids


def mixtures(count=8):
    rng = np.random.default_rng(1)
    return np.concatenate([np.eye(K), [[0.5, 0.5, 0]], rng.dirichlet(np.ones(K), count)])


class Columns:
    """A view of stored columns that counts what is read: rows come by slices alone."""

    def __init__(self, log_probs):
        self._columns = [np.ascontiguousarray(column) for column in log_probs.T]
        self.shape, self.dtype = log_probs.shape, log_probs.dtype
        self.read, self.largest = 0, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.read += rows.stop - rows.start
        self.largest = max(self.largest, rows.stop - rows.start)
        return np.stack([column[rows] for column in self._columns], axis=1)


TAUS = np.array([0.0, 0.05, 0.7, 1.0])
MEMORY = 60_000  # 468 tokens with one τ, 117 with four: no text of 600 fits


def test_text_that_does_not_fit_is_read_in_blocks_once_for_all_candidates_and_all_tau():
    log_probs, segment_ids, sequence_ids = text()
    view = Columns(log_probs)
    few = MixtureLosses(view, segment_ids, sequence_ids, memory=MEMORY)
    assert view.read == 0
    found = few(mixtures(), TAUS[:, None])
    assert view.read == len(log_probs)
    assert view.largest <= MEMORY / (32 * (K + 1) * len(TAUS))
    whole = MixtureLosses(log_probs, segment_ids, sequence_ids)(mixtures(), TAUS[:, None])
    assert found.shape == (len(TAUS), len(mixtures()), 4)
    assert_array_equal(np.isinf(found), np.isinf(whole))
    assert_allclose(found, whole, rtol=0, atol=SAME)


def test_text_that_fits_is_read_once_a_tau_and_kept():
    log_probs, segment_ids, sequence_ids = text()
    view = Columns(log_probs)
    losses = MixtureLosses(view, segment_ids, sequence_ids)
    losses(mixtures())
    assert view.read == len(log_probs)
    both = losses(mixtures(), TAUS[1:3, None])
    assert view.read == 2 * len(log_probs)
    assert_array_equal(losses(mixtures(), TAUS[2]), both[1])
    assert view.read == 2 * len(log_probs)


def test_gradients_of_blocks_are_those_of_the_whole():
    log_probs, segment_ids, _ = text()
    log_probs = np.maximum(log_probs, -50)
    whole, few = (MixtureLosses(log_probs, segment_ids, memory=m) for m in (1 << 31, MEMORY))
    for one, other in zip(whole.value_and_grad(mixtures()), few.value_and_grad(mixtures()), strict=True):
        assert_allclose(one, other, rtol=1e-6)


def test_a_memory_map_is_as_good_as_an_array(tmp_path):
    log_probs, segment_ids, sequence_ids = text()
    np.save(tmp_path / "log_probs.npy", log_probs)
    mapped = np.load(tmp_path / "log_probs.npy", mmap_mode="r")
    one, other = (
        mixture_nll(x, segment_ids, mixtures(), tau=0.3, sequence_ids=sequence_ids, memory=MEMORY)
        for x in (log_probs, mapped)
    )
    assert_array_equal(one, other)


def test_every_candidate_may_have_its_own_tau():
    log_probs, segment_ids, sequence_ids = text()
    losses = MixtureLosses(log_probs, segment_ids, sequence_ids)
    weights = mixtures(4)
    own = np.resize(TAUS, len(weights))
    found = losses(weights, own)
    for c, tau in enumerate(own):
        assert_allclose(found[c], losses(weights[c], tau), rtol=0, atol=SAME)


def test_bounds_say_the_same_as_sequence_ids():
    log_probs, segment_ids, sequence_ids = text()
    bounds = np.append(np.flatnonzero(np.diff(sequence_ids, prepend=-1)), len(log_probs))
    one = mixture_nll(log_probs, segment_ids, mixtures(), tau=0.3, sequence_ids=sequence_ids)
    assert_array_equal(mixture_nll(log_probs, segment_ids, mixtures(), tau=0.3, bounds=bounds), one)


def test_bits_per_byte_are_total_bits_over_total_bytes_by_hand():
    log_probs = np.log([[0.5], [0.25], [0.125]])
    found = mixture_nll(log_probs, [0, 0, 1], [[1.0]], bytes=[6, 12])
    assert_allclose(found, [[3 / 6, 3 / 12]], rtol=1e-7)  # 1 + 2 bits in 6 bytes, 3 bits in 12


def test_domains_may_stand_in_any_order():
    log_probs, segment_ids, _ = text()
    order = np.random.default_rng(2).permutation(len(segment_ids))
    one = mixture_nll(log_probs, segment_ids, mixtures())
    assert_allclose(mixture_nll(log_probs[order], segment_ids[order], mixtures()), one, rtol=0, atol=SAME)


PROGRAM = """
import json, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from test_mixture_streams import TAUS, mixtures, text
from mde.evaluation import MixtureLosses
found = {}
for count, candidates in ((200, 90), (40_000, 3)):  # candidates are spread over the devices, and tokens
    losses = MixtureLosses(*text(count))
    found[count] = losses(mixtures(candidates), TAUS[[0, 2], None]).tolist()
print(json.dumps([jax.device_count(), found]))
"""


def on_devices(count):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    arguments = [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)]
    printed = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout
    devices, found = json.loads(printed)
    assert devices == count
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.slow
def test_answers_are_the_same_on_one_two_and_eight_devices():
    """A candidate's arithmetic does not depend on its neighbours; sums of shards are added in float64, and what each
    has lost to rounding is carried along to 48 bits."""
    one, two, eight = (on_devices(count) for count in (1, 2, 8))
    for name, expected in one.items():
        assert_allclose(two[name], expected, rtol=0, atol=1e-12)
        assert_allclose(eight[name], expected, rtol=0, atol=1e-12)
