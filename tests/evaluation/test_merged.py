import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.errors import UserError
from mde.evaluation import MergedLosses, merged_nll

# Nats per token: parameters averaged in another order, and a mean over a few hundred log-probs of about 5, in float32.
TOLERANCE = 1e-5
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5], [1 / 3] * 3])  # no multiple of two devices


@pytest.fixture(scope="module")
def losses(config, models, data):
    return MergedLosses(config, models, data, batch_size=8)


@pytest.fixture(scope="module")
def found(losses):
    return losses(WEIGHTS)


def average(models, weights):
    """In float64."""
    return jax.tree.map(lambda *xs: sum(w * np.float64(x) for w, x in zip(weights, xs, strict=True)), *models)


def test_corners_are_the_experts_own_losses(found, models, data, by_hand):
    own = [data.losses(by_hand(model)) for model in models]
    assert_allclose(found[:3], own, rtol=0, atol=TOLERANCE)
    assert np.abs(np.diff(own, axis=0)).min() > 100 * TOLERANCE  # the experts do differ


@pytest.mark.parametrize("candidate", [3, 4])
def test_inside_it_is_the_averaged_model_run_by_hand(candidate, found, models, data, by_hand):
    params = jax.tree.map(np.float32, average(models, WEIGHTS[candidate]))
    assert_allclose(found[candidate], data.losses(by_hand(params)), rtol=0, atol=TOLERANCE)


def test_losses_are_one_a_candidate_and_domain_in_float64(found, data):
    assert found.shape == (len(WEIGHTS), len(data.domains))
    assert found.dtype == np.float64


@pytest.mark.parametrize("candidates", [[2], [0, 3], [4, 3, 2, 1, 0], [1, 1, 1]])
def test_a_candidate_does_not_depend_on_the_others_nor_on_the_number_of_devices(candidates, found, losses):
    """One alone has its windows cut over both devices, several are one a device: the same batches, the same bits."""
    assert_array_equal(losses(WEIGHTS[candidates]), found[candidates])


def test_no_candidates_have_no_losses(losses, data):
    assert losses(WEIGHTS[:0]).shape == (0, len(data.domains))
    assert losses.token_log_probs(WEIGHTS[:0]).shape == (0, len(data.segment_ids))


def test_losses_do_not_depend_on_the_batch_size(found, config, models, data):
    for batch_size in (None, 1):
        other = merged_nll(config, models, data, WEIGHTS[:4], batch_size=batch_size)
        assert_allclose(other, found[:4], rtol=0, atol=TOLERANCE)


def test_an_expert_of_weight_zero_has_no_say(config, models, data, found):
    strange = [*models[:2], jax.tree.map(lambda x: 1e3 * x, models[2])]
    assert_array_equal(merged_nll(config, strange, data, WEIGHTS[:2], batch_size=8), found[:2])


def test_a_subset_of_a_large_pool_is_weights(config, models, data, found):
    pool = [models[k % 3] for k in range(12)]
    weights = np.zeros((1, 12))
    weights[0, [3, 7, 11]] = WEIGHTS[3]
    assert_allclose(merged_nll(config, pool, data, weights, batch_size=8), found[3:4], rtol=0, atol=TOLERANCE)


def test_experts_come_as_trees_from_a_generator_or_on_a_leading_axis(config, models, data, found):
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *models)
    for experts in (stacked, jax.tree.map(jnp.asarray, stacked), (model for model in models)):
        assert_array_equal(merged_nll(config, experts, data, WEIGHTS[:3], batch_size=8), found[:3])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_averages_are_in_float32_whatever_is_stored(dtype, config, models, data, by_hand):
    stored = [jax.tree.map(lambda x: x.astype(dtype), model) for model in models]
    params = jax.tree.map(np.float32, average(stored, WEIGHTS[3]))
    assert jnp.dtype(dtype).itemsize == 2
    found = merged_nll(config, stored, data, WEIGHTS[3:4], batch_size=8)[0]
    assert_allclose(found, data.losses(by_hand(params)), rtol=0, atol=TOLERANCE)


def test_log_probs_of_every_token(losses, found, models, data, by_hand):
    log_probs = losses.token_log_probs(WEIGHTS)
    assert log_probs.shape == (len(WEIGHTS), len(data.segment_ids))
    assert log_probs.dtype == np.float32
    assert_allclose(log_probs[1], by_hand(models[1]), rtol=0, atol=TOLERANCE)
    for one, loss in zip(log_probs, found, strict=True):
        assert_allclose(data.losses(one), loss, rtol=0, atol=1e-6)  # sums of a window's 16 tokens in float32


# Task arithmetic: sums of 0, of 1 and of neither, and a negative weight.
AROUND = np.array([[0, 0], [1, 0], [0.5, 0.5], [0.9, 0.8], [1.2, -0.4]])


def test_around_a_base_it_is_task_arithmetic_by_hand(config, models, data, by_hand):
    base, *experts = models
    found = merged_nll(config, experts, data, AROUND, base=base, batch_size=8)
    for weights, loss in zip(AROUND, found, strict=True):
        by_definition = jax.tree.map(
            lambda b, *xs, ws=weights: np.float32(
                b + sum(w * (np.float64(x) - b) for w, x in zip(ws, xs, strict=True))
            ),
            base,
            *experts,
        )
        assert_allclose(loss, data.losses(by_hand(by_definition)), rtol=0, atol=TOLERANCE)


def test_the_experts_lie_in_memory_once_however_many_devices_there_are(losses, models):
    held = sum(shard.data.nbytes for leaf in losses._stack for shard in leaf.addressable_shards)
    given = sum(x.nbytes for model in models for x in jax.tree.leaves(model))
    devices = jax.device_count()
    assert devices > 1
    assert given <= held <= given + 4 * len(models) * devices * len(losses._stack)  # leaves are filled up


def spoilt(model, leaf, change):
    """The model with one leaf changed."""
    copy = jax.tree.map(lambda x: x, model)
    *path, last = leaf.split("/")
    part = copy
    for name in path:
        part = part[name]
    change(part, last)
    return copy


def _nan(part, name):
    part[name] = part[name].copy()
    part[name][0, 3] = np.nan


QUERY = "layers/attention/query/kernel"


@pytest.mark.parametrize(
    ("leaf", "change", "expected"),
    [
        (QUERY, lambda part, name: part.pop(name), f"expert 'wiki' has no parameter '{QUERY}'"),
        (QUERY, lambda part, name: part.update({name: part[name][..., :3]}), f"'wiki': parameter '{QUERY}' has shape"),
        (
            QUERY,
            lambda part, name: part.update({name: part[name].astype(np.float16)}),
            "is float16, that of expert 'code'",
        ),
        (
            QUERY,
            lambda part, name: part.update(kernal=part.pop(name)),
            "parameter of expert 'wiki' '.*/kernal': did you mean",
        ),
        (
            "embed/embedding",
            lambda part, name: part.update({name: part[name][:60]}),
            r"shape \(60, 32\).*one tokenizer",
        ),
        ("embed/embedding", _nan, r"'wiki': parameter 'embed/embedding' is nan at \(0, 3\)"),
    ],
)
def test_experts_that_differ_are_named_with_their_parameter(leaf, change, expected, config, models, data):
    experts = [models[0], spoilt(models[1], leaf, change), models[2]]
    with pytest.raises(UserError, match=expected):
        MergedLosses(config, experts, data, names=["code", "wiki", "news"])


def test_a_base_that_differs_is_named(config, models, data):
    with pytest.raises(UserError, match="expert 'base': parameter 'embed/embedding' is nan"):
        MergedLosses(config, models, data, base=spoilt(models[0], "embed/embedding", _nan))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([[0.5, 0.5, 0.1]], "candidate 0: weights sum to 1.1, expected 1"),
        ([[1, 0, 0], [1.5, -0.5, 0]], "candidate 1, expert '1': weight -0.5, expected zero or more"),
        ([[np.nan, 1, 0]], "candidate 0, expert '0': weight nan"),
        ([[1, 0]], r"shape \(1, 2\), expected \[C, 3\]"),
        ([1, 0, 0], r"shape \(3,\)"),
    ],
)
def test_weights_off_the_simplex_are_named(weights, expected, losses):
    with pytest.raises(UserError, match=expected):
        losses(np.array(weights))


def test_around_a_base_weights_must_be_finite(config, models, data):
    around = MergedLosses(config, models[:2], data, base=models[2], names=["a", "b"])
    with pytest.raises(UserError, match="candidate 0, expert 'b': weight inf, expected a finite number"):
        around(np.array([[0, np.inf]]))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_merged_model_that_gives_no_number_is_named(config, models, data):
    around = MergedLosses(config, models[:2], data, base=models[2])
    with pytest.raises(UserError, match="candidate 1, domain 'law': the merged model's loss is nan"):
        around(np.array([[0.5, 0.5], [1e39, 0]]))


def test_experts_and_names_must_be_as_many(config, models, data):
    for names, expected in ((["a", "b"], "more experts than names"), (list("abcd"), "3 experts, expected a, b, c, d")):
        with pytest.raises(UserError, match=expected):
            MergedLosses(config, models, data, names=names)
    with pytest.raises(UserError, match="0 experts"):
        MergedLosses(config, [], data)


def test_text_of_another_tokenizer_is_named(config, models, data):
    tokens = data.tokens.copy()
    tokens[0, 1] = 1000
    with pytest.raises(UserError, match="'law': token 1000 at position 1 of window 0"):
        MergedLosses(config, models, dataclasses.replace(data, tokens=tokens))
