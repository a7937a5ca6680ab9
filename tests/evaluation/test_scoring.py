import dataclasses

import numpy as np
import pytest
from helpers import write_store
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.evaluation.scoring import Scorer, batched_windows, evaluation_set
from mde.training.pool import pool_mesh

# The same float32 program in batches of another size: log-probs of about 5, a few roundings of 6e-8 each apart.
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def two_documents(tmp_path_factory):
    """law: 0 5 6 | 0 7 8 9, cut into windows of three predicted tokens; news: one document and one not asked for."""
    root = tmp_path_factory.mktemp("by-hand")
    stores = {
        "law": write_store(root / "law", [[5, 6], [7, 8, 9]]),
        "news": write_store(root / "news", [[1, 2, 3, 4, 5], [6] * 50]),
    }
    return evaluation_set(stores, 5, 3)


def test_windows_by_hand(two_documents):
    expected = [[0, 5, 6, 0], [0, 7, 8, 9], [0, 1, 2, 3], [3, 4, 5, 0]]
    assert_array_equal(two_documents.tokens, expected)
    assert_array_equal(two_documents.segments, [[1, 1, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    assert_array_equal(two_documents.window_domains, [0, 0, 1, 1])
    assert_array_equal(two_documents.bytes, [50, 50])  # ten a token, of the documents that are scored


def test_masks_and_numbers_by_hand(two_documents):
    assert_array_equal(two_documents.mask, [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]])
    assert_array_equal(two_documents.segment_ids, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert_array_equal(two_documents.token_counts, [5, 5])
    ids = two_documents.sequence_ids
    assert_array_equal(np.diff(ids) != 0, [0, 1, 0, 0, 1, 0, 0, 1, 0])  # a document's part of a window each
    assert len(np.unique(ids)) == 4


def test_sequences_of_different_windows_have_different_numbers_that_stand_together(data):
    window = np.nonzero(data.mask)[0]
    parts = list(zip(window, data.segments[:, 1:][data.mask], strict=True))
    ids = data.sequence_ids
    assert len(np.unique(ids)) == len(set(parts)) > len(data.tokens)
    for t in range(1, len(parts)):
        assert (ids[t] == ids[t - 1]) == (parts[t] == parts[t - 1])


def test_losses_by_hand(two_documents):
    log_probs = -np.arange(10, dtype=np.float32)
    assert_allclose(two_documents.losses(log_probs), [2, 7], rtol=1e-15)


def test_sums_of_losses_are_in_float64(two_documents):
    log_probs = np.full(10, -1e-3, np.float32)
    log_probs[0] = -1e5
    expected = -log_probs[:5].astype(np.float64).mean()
    assert_allclose(two_documents.losses(log_probs)[0], expected, rtol=1e-15)


def test_every_token_of_whole_documents_is_scored_exactly_once(data, stores):
    for j, (store, size) in enumerate(zip(stores.values(), data.bytes, strict=True)):
        n_tokens, n_bytes = store.whole_documents(280)
        scored = data.tokens[:, 1:][data.mask & (data.window_domains == j)[:, None]]
        stream = store.read(0, n_tokens).tokens
        assert_array_equal(scored, stream[stream != 0])  # all but START, in order
        assert size == n_bytes == 10 * len(scored)


def test_documents_beyond_the_last_whole_one_are_not_scored(data):
    last_of_domain = np.append(np.diff(data.window_domains) != 0, True)
    assert not data.mask[last_of_domain].all()  # this text does end inside a window
    assert_array_equal(data.mask.sum(), data.token_counts.sum())


def test_a_store_with_too_few_tokens_is_taken_whole(tmp_path):
    store = write_store(tmp_path / "short", [[5, 6], [7]])
    short = evaluation_set({"short": store}, 10_000, 16)
    assert_array_equal(short.token_counts, [3])
    assert_array_equal(short.bytes, [30])


def test_a_domain_without_documents_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluation domain 'void' is empty: no document in .*void-store"):
        evaluation_set({"void": write_store(tmp_path / "void-store", [])}, 100, 16)


def test_a_subset_takes_the_first_windows_of_each_domain_and_its_share_of_the_bytes(two_documents):
    part = two_documents.subset(1)
    assert_array_equal(part.tokens, [[0, 5, 6, 0], [0, 1, 2, 3]])
    assert_array_equal(part.token_counts, [2, 3])
    assert_allclose(part.bytes, [50 * 2 / 5, 50 * 3 / 5])
    assert_array_equal(two_documents.subset(100).tokens, two_documents.tokens)


def test_batches_are_filled_up_with_padding_that_is_never_scored(data):
    tokens, segments = batched_windows(data, 8)
    assert tokens.shape == segments.shape == (-(-len(data.tokens) // 8), 8, 17)
    flat = segments.reshape(-1, 17)
    assert_array_equal(flat[: len(data.tokens)], data.segments)
    assert_array_equal(flat[len(data.tokens) :], 0)


@pytest.fixture(scope="module")
def scorer(config, data):
    return Scorer(config, data, pool_mesh(2), batch_size=8)


def test_scores_equal_the_model_run_by_hand(scorer, models, by_hand):
    for scores, model in zip(scorer(models[:2]), models, strict=False):
        assert scores.dtype == np.float32
        assert_allclose(scores, by_hand(model), rtol=0, atol=TOLERANCE)


def test_fewer_models_than_devices_are_scored_as_well(scorer, models):
    together = scorer(models[:2])
    (alone,) = scorer(models[1:2])
    assert_array_equal(alone, together[1])


def test_more_models_than_devices_are_refused_or_all_scored(scorer, models, by_hand):
    four = [*models, models[0]]
    try:
        scores = scorer(four)
    except (ValueError, AssertionError):
        return
    assert len(scores) == 4
    for found, model in zip(scores, four, strict=True):
        assert_allclose(found, by_hand(model), rtol=0, atol=TOLERANCE)


def test_scores_do_not_depend_on_what_stands_behind_the_last_document(config, data, scorer, models):
    """Padding tokens are read from the store as they come; no scored token may see them."""
    tokens = np.where(data.segments == 0, 9, data.tokens)
    changed = Scorer(config, dataclasses.replace(data, tokens=tokens), pool_mesh(2), batch_size=8)
    assert_array_equal(changed(models[:1])[0], scorer(models[:1])[0])
