"""Encoders are scored by masked-token loss, and their log-probs are mixed like any others."""

import dataclasses

import numpy as np
import pytest
from helpers import random_documents, write_store
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.evaluation import merged_nll, mixture_nll
from mde.evaluation.scoring import Scorer, evaluation_set
from mde.models import decoder
from mde.models.config import preset

CONFIG = preset("tiny", 64, objective="masked")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    return {name: write_store(folder / name, random_documents(60, seed)) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def data(stores):
    return evaluation_set(stores, 600, 16, masked=True)


@pytest.fixture(scope="module")
def experts():
    return [decoder.init(CONFIG, seed) for seed in range(2)]


def test_hidden_tokens_alone_are_scored(data, stores):
    plain = evaluation_set(stores, 600, 16)
    hidden = data.tokens < 0
    assert_array_equal(np.where(hidden, ~data.tokens, data.tokens), plain.tokens)
    assert_array_equal(data.mask, hidden[:, 1:])
    assert (plain.mask | ~data.mask).all()
    # 15% of 1,100 targets lie within four standard deviations of their mean.
    share = data.mask.sum() / plain.mask.sum()
    assert abs(share - 0.15) < 4 * np.sqrt(0.15 * 0.85 / plain.mask.sum())
    assert_allclose(data.bytes, plain.bytes * data.token_counts / plain.token_counts)


def test_scores_are_the_model_s_and_mix_like_any_log_probs(data, experts):
    columns = [np.concatenate([scores for _, scores in Scorer(CONFIG, data, 8)(params)]) for params in experts]
    for params, column in zip(experts, columns, strict=True):
        alone = np.asarray(decoder.token_log_probs(CONFIG, params, data.tokens, data.segments))[data.mask]
        assert_allclose(column, alone, atol=1e-5)
    log_probs = np.stack(columns, axis=1)
    weights = np.array([[1.0, 0.0], [0.3, 0.7]])
    expected = [data.losses(np.log(np.exp(log_probs.astype(np.float64)) @ row)) for row in weights]
    assert_allclose(mixture_nll(log_probs, data.segment_ids, weights), expected, rtol=1e-5)
    assert_allclose(expected[0], data.losses(columns[0]), rtol=1e-6)


def test_merged_encoders_are_scored_on_the_same_tokens(data, experts):
    losses = merged_nll(CONFIG, experts, data, np.eye(2))
    for row, params in zip(losses, experts, strict=True):
        column = np.concatenate([scores for _, scores in Scorer(CONFIG, data, 8)(params)])
        assert_allclose(row, data.losses(column), rtol=1e-5)


def test_text_and_model_must_be_of_one_kind(data, stores):
    causal = dataclasses.replace(CONFIG, objective="causal")
    with pytest.raises(UserError, match="text for an encoder, and the model is a decoder"):
        Scorer(causal, data)
    with pytest.raises(UserError, match="text for a decoder, and the model is an encoder"):
        Scorer(CONFIG, evaluation_set(stores, 600, 16))


def test_a_domain_of_which_nothing_is_hidden(tmp_path):
    store = write_store(tmp_path / "short", [[5, 6]])
    with pytest.raises(UserError, match="'short': too little text to hide 15%"):
        evaluation_set({"short": store}, 10, 16, masked=True)
