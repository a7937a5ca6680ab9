import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.models import decoder
from mde.models.config import preset
from mde.training.loss import loss, weighted_loss

TIED = preset("tiny", 64)
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 64, (3, 13))
SEGMENTS = np.array([[1] * 13, [1] * 5 + [2] * 8, [1] * 4 + [0] * 9])


def plain(config, params, z_loss):
    """The loss by its definition, from all logits at once, differentiated by JAX."""
    logits = decoder.Decoder(config).apply({"params": params}, TOKENS[:, :-1], SEGMENTS[:, :-1])
    lse = jax.nn.logsumexp(logits, axis=-1)
    nll = lse - jnp.take_along_axis(logits, TOKENS[:, 1:, None], axis=-1)[..., 0]
    mask = decoder.target_mask(SEGMENTS)
    return jnp.sum(jnp.where(mask, nll + z_loss * lse**2, 0.0)) / mask.sum()


@pytest.mark.parametrize(
    ("config", "chunks", "z_loss"), [(TIED, 1, 0.0), (TIED, 4, 0.1), (UNTIED, 4, 0.1)], ids=["tied", "chunks", "untied"]
)
def test_loss_and_gradient_are_those_of_the_definition(config, chunks, z_loss):
    params = decoder.init(config, 0)
    ours = jax.jit(
        jax.value_and_grad(lambda p: loss(config, p, TOKENS, SEGMENTS, z_loss=z_loss, chunks=chunks), has_aux=True)
    )
    (value, nll), grads = ours(params)
    expected, expected_grads = jax.jit(jax.value_and_grad(lambda p: plain(config, p, z_loss)))(params)
    # Means of 27 float32 terms of about 5, and gradients of at most 1 summed in another order: a few times 6e-8.
    assert_allclose(value, expected, rtol=5e-7)
    assert_allclose(nll, plain(config, params, 0.0), rtol=5e-7)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=0, atol=1e-6), grads, expected_grads)


def test_the_slope_in_a_direction_is_that_of_finite_differences_in_float64():
    hidden, h = RNG.normal(size=(2, 2, 6, 5)).astype(np.float32)
    matrix, m = RNG.normal(size=(2, 7, 5)).astype(np.float32)
    targets, weights = RNG.integers(0, 7, (2, 6)), RNG.uniform(size=(2, 6)).astype(np.float32)
    found = jax.grad(lambda h, m: weighted_loss(0.3, 3, h, m, targets, weights)[0], (0, 1))(hidden, matrix)

    def exact(e):
        logits = (hidden + e * h.astype(np.float64)) @ (matrix + e * m.astype(np.float64)).T
        lse = np.log(np.exp(logits).sum(-1))
        nll = lse - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return (weights * (nll + 0.3 * lse**2)).sum()

    # Central differences of step 1e-3 are off by some 1e-6, float32 sums of 60 terms by as much.
    slope = (exact(1e-3) - exact(-1e-3)) / 2e-3
    assert_allclose((found[0] * h).sum() + (found[1] * m).sum(), slope, rtol=1e-5)


def test_the_gradient_is_scaled_by_what_follows_the_loss():
    params = decoder.init(TIED, 0)
    grad = lambda scale: jax.jit(jax.grad(lambda p: scale * loss(TIED, p, TOKENS, SEGMENTS, chunks=2)[0]))(params)  # noqa: E731
    jax.tree.map(lambda a, b: assert_allclose(a, 4 * b, rtol=1e-6), grad(4.0), grad(1.0))


def test_chunks_bound_the_memory_of_the_logits():
    config = preset("tiny", 4096)
    tokens = jax.ShapeDtypeStruct((4, 65), jnp.int32)
    params = jax.eval_shape(lambda: decoder.init(config, 0))

    def bytes_of(chunks):
        value = lambda p, t: loss(config, p, t, jnp.ones_like(t), chunks=chunks)[0]  # noqa: E731
        return jax.jit(jax.grad(value)).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 64 * 4096 * 4
    assert bytes_of(1) > logits
    assert bytes_of(16) < bytes_of(1) - 0.8 * logits


def test_gradients_of_a_frequent_token_do_not_stagnate_in_bfloat16():
    """A sum of thousands in bfloat16 stands still at 256 times one of them, and is off by a quarter here."""
    config = preset("tiny", 64)
    tokens = RNG.integers(1, 64, (16, 257))
    tokens[RNG.random(tokens.shape) < 0.5] = 7
    grads = {
        dtype: jax.jit(jax.grad(lambda p, c: loss(c, p, tokens, np.ones_like(tokens))[0]), static_argnums=1)(
            decoder.init(config, 0), dataclasses.replace(config, dtype=dtype)
        )["embed"]["embedding"]
        for dtype in ("float32", "bfloat16")
    }
    wrong = jnp.linalg.norm(grads["bfloat16"] - grads["float32"]) / jnp.linalg.norm(grads["float32"])
    assert wrong < 0.02  # factors of eight bits, 0.4%, a few times over
