"""One small text and three models that differ, for scoring and merging."""

import jax
import numpy as np
import pytest
from helpers import random_documents, write_store

from mde.evaluation.scoring import evaluation_set
from mde.models import decoder
from mde.models.config import preset

SEQ_LEN = 16


@pytest.fixture(scope="session")
def config():
    return preset("tiny", 64)


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    return {name: write_store(root / name, random_documents(30, seed=i)) for i, name in enumerate(("law", "news"))}


@pytest.fixture(scope="session")
def data(stores):
    """35 or so windows: no multiple of the batch of 8 that the tests score with."""
    return evaluation_set(stores, 280, SEQ_LEN)


@pytest.fixture(scope="session")
def models(config):
    """One model's parameters and two disturbances of them, as experts of one seed model would be."""
    base = jax.tree.map(np.asarray, decoder.init(config, 0))
    rng = np.random.default_rng(0)
    disturb = lambda x: (x + 0.3 * x.std() * rng.standard_normal(x.shape)).astype(np.float32)  # noqa: E731
    return [base, *(jax.tree.map(disturb, base) for _ in range(2))]


@pytest.fixture(scope="session")
def by_hand(config, data):
    """The log-probs of the scored tokens under a model: all windows at once, no batches, pools or padding windows."""
    run = jax.jit(lambda params: decoder.token_log_probs(config, params, data.tokens, data.segments))
    return lambda params: np.asarray(run(params))[data.mask]
