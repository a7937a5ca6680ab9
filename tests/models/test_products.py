import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.models.products import gated, outer, product

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 3), (5, 5)])
def test_products_and_their_gradients_are_those_of_float64(inputs, outputs):
    x, matrix, slope = (RNG.normal(size=shape) for shape in ((40, inputs), (inputs, outputs), (40, outputs)))
    value, pullback = jax.vjp(product, *(jnp.asarray(a, jnp.float32) for a in (x, matrix)))
    found = (value, *pullback(jnp.asarray(slope, jnp.float32)))
    for one, expected in zip(found, (x @ matrix, slope @ matrix.T, x.T @ slope), strict=True):
        assert one.shape == expected.shape
        assert_allclose(one, expected, rtol=0, atol=1e-5)  # float32 sums of up to 40 terms of about 1


def test_outer_products_of_half_precision_are_added_up_in_the_dtype_asked_for():
    a, b = (jnp.asarray(RNG.normal(size=(2048, n)), jnp.bfloat16) for n in (4, 2))
    expected = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    for found, wanted in ((outer(a, b, jnp.float32), expected), (outer(b, a, jnp.float32), expected.T)):
        assert found.dtype == jnp.float32
        assert_allclose(found, wanted, rtol=0, atol=1e-3)  # 2,048 terms of about 1; bfloat16 would be off by 1e-1
    assert outer(a, b).dtype == jnp.bfloat16


def test_the_gate_and_its_gradient_are_those_of_float64():
    gate, up, slope = RNG.normal(size=(3, 1000)) * 4
    value, pullback = jax.vjp(gated, *(jnp.asarray(a, jnp.float32) for a in (gate, up)))
    open = 1 / (1 + np.exp(-gate))
    expected = (gate * open * up, slope * up * open * (1 + gate * (1 - open)), slope * gate * open)
    for one, wanted in zip((value, *pullback(jnp.asarray(slope, jnp.float32))), expected, strict=True):
        assert_allclose(one, wanted, rtol=3e-6, atol=3e-6)  # products of five float32 numbers of up to 16


def test_a_large_negative_gate_is_closed_and_has_no_slope():
    value, pullback = jax.vjp(gated, jnp.float32(-200), jnp.float32(3))
    assert value == 0
    assert all(slope == 0 for slope in pullback(jnp.float32(1)))
