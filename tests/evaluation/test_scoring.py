import dataclasses

import jax
import numpy as np
import pytest
from helpers import write_store
from numpy.testing import assert_allclose, assert_array_equal

from mde.data import tokens
from mde.errors import UserError
from mde.evaluation import scoring
from mde.evaluation.scoring import Scorer, evaluation_set, windows_per_batch
from mde.models import decoder
from mde.models.config import preset

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


@pytest.fixture(scope="module")
def scorer(config, data):
    return Scorer(config, data, batch_size=8)


def scores_of(scorer, params, domains=None):
    return dict(scorer(params, domains))


def test_scores_equal_the_model_run_by_hand(scorer, models, by_hand, data):
    """Batches go over domains and over both devices; the last one is filled up."""
    assert len(data.tokens) % 16
    for model in models[:2]:
        scores = scores_of(scorer, model)
        assert all(x.dtype == np.float32 for x in scores.values())
        found = np.concatenate([scores[j] for j in range(len(data.domains))])
        assert_allclose(found, by_hand(model), rtol=0, atol=TOLERANCE)


def test_one_domain_alone_has_the_scores_that_it_has_among_all(scorer, models, data):
    everything = scores_of(scorer, models[1])
    for j in range(len(data.domains)):
        alone = scores_of(scorer, models[1], [j])
        assert list(alone) == [j]
        assert_array_equal(alone[j], everything[j])
    assert scores_of(scorer, models[1], []) == {}


def test_a_domain_is_there_before_the_next_one_is_run(scorer, models, data):
    counted = []
    first, _ = next(iter(scorer(models[0], advance=counted.append)))
    assert first == 0
    assert data.token_counts[0] <= sum(counted) < data.token_counts.sum()
    everything = []
    scores_of(scorer, models[0])
    dict(scorer(models[0], advance=everything.append))
    assert sum(everything) == data.token_counts.sum()


def test_scores_do_not_depend_on_the_batch_size(config, data, models, scorer):
    other = scores_of(Scorer(config, data), models[0])
    for j, found in scores_of(scorer, models[0]).items():
        assert_allclose(found, other[j], rtol=0, atol=TOLERANCE)


def test_scores_do_not_depend_on_what_stands_behind_the_last_document(config, data, scorer, models):
    """Padding tokens are read from the store as they come; no scored token may see them."""
    tokens = np.where(data.segments == 0, 9, data.tokens)
    changed = Scorer(config, dataclasses.replace(data, tokens=tokens), batch_size=8)
    for j, found in scores_of(changed, models[0]).items():
        assert_array_equal(found, scores_of(scorer, models[0])[j])


def test_tokens_of_another_vocabulary_are_named(config, data):
    tokens = data.tokens.copy()
    tokens[-1, 3] = 64
    with pytest.raises(UserError, match=rf"'news': token 64 at position 3 of window {len(tokens) - 1}.*of 64"):
        Scorer(config, dataclasses.replace(data, tokens=tokens))


@pytest.mark.parametrize(("windows", "expected"), [(1, 1), (16, 16), (17, 9), (160, 16), (161, 15)])
def test_batches_are_all_alike_and_as_large_as_keeps_a_device_busy(windows, expected, monkeypatch):
    monkeypatch.setattr(scoring, "_TOKENS_PER_BATCH", {"cpu": 2048})
    assert windows_per_batch(preset("tiny", 64), windows, 128) == expected


def test_batches_stay_within_the_memory():
    large = preset("tiny", 1 << 17)
    assert windows_per_batch(large, 1000, 128, memory=1 << 20) == 1  # a megabyte is one token's logits
    assert windows_per_batch(large, 1000, 128, memory=1 << 30) in range(4, 9)


@pytest.fixture(scope="module")
def two_answers(tmp_path_factory):
    """Windows of six tokens: two short documents share one, the third has one of its own and loses its beginning."""
    answers = [([0, 5, 6, 7], 2, 0), ([0, 8], 1, 0), ([0, 9, 10, 11, 12, 13, 14], 4, 1), ([0, 15], 1, 2)]
    made = [tokens.Answer(np.array(text), begins, 7, example) for text, begins, example in answers]
    store = tokens.write_answers(tmp_path_factory.mktemp("answers") / "task", made, "digest")
    return lambda examples: evaluation_set({"task": store}, 1, 5, examples)


def test_answers_stand_whole_in_windows_and_contexts_are_not_scored(two_answers):
    data = two_answers(2)
    assert_array_equal(data.tokens, [[0, 5, 6, 7, 0, 8], [9, 10, 11, 12, 13, 14]])
    assert_array_equal(data.segments, [[-1, -1, 1, 1, -2, 2], [-1, -1, -1, 1, 1, 1]])
    assert_array_equal(data.mask, [[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]])
    assert_array_equal(data.sequence_ids, [0, 0, 1, 2, 2, 2])
    assert (data.token_counts, data.bytes) == ([6], [21])
    assert len(two_answers(None).tokens) == 3
    assert two_answers(1).token_counts == [3]


def test_an_answer_is_scored_as_after_its_context_alone(two_answers):
    config = preset("tiny", 64)
    params = decoder.init(config, 0)
    ((_, found),) = Scorer(config, two_answers(2), batch_size=1)(params)
    run = jax.jit(lambda tokens: decoder.token_log_probs(config, params, tokens, tokens * 0 + 1))
    expected = []
    for text, begins in (([0, 5, 6, 7], 2), ([0, 8], 1), ([9, 10, 11, 12, 13, 14], 3)):
        row = run(np.array([text]))[0]
        expected += row[begins - 1 :].tolist()
    assert_allclose(found, expected, atol=TOLERANCE)
