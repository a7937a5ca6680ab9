import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.errors import UserError
from mde.models import attention, decoder
from mde.models.config import DecoderConfig

B, L, N, KV, H = 2, 256, 4, 2, 64


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, L, heads, H)).astype(np.float32) for heads in (N, KV, KV))
    return q, k, v, np.sort(rng.integers(0, 4, (B, L)).astype(np.int32))


@pytest.mark.parametrize("kernel", ["xla", "heads"])
def test_attention_equals_float64(inputs, kernel):
    q, k, v, segments = inputs
    found = attention.attend(kernel, q, k, v, attention.visible(kernel, jnp.asarray(segments)))
    for b in range(B):
        for n in range(N):
            scores = q[b, :, n].astype(np.float64) @ k[b, :, n // 2].T / np.sqrt(H)
            seen = np.tri(L, dtype=bool) & (segments[b][:, None] == segments[b])
            weights = np.where(seen, np.exp(scores), 0)
            expected = weights / weights.sum(-1, keepdims=True) @ v[b, :, n // 2]
            assert_allclose(found[b, :, n], expected, rtol=0, atol=1e-5)  # float32 sums of 256 terms of about 1


@pytest.mark.parametrize("causal", [True, False])
def test_the_derivative_of_attention_by_heads_is_that_of_the_definition_in_float64(inputs, causal):
    """Of the values' products with random slopes, in every query, key and value."""
    q, k, v, segments = (x[:, :64] for x in inputs)
    slope = np.random.default_rng(1).normal(size=q.shape)
    seen = (segments[:, :, None] == segments[:, None]) & (np.tri(64, dtype=bool) | (not causal))

    def definition(q, k, v):
        k, v = (jnp.repeat(x, N // KV, axis=2) for x in (k, v))
        scores = jnp.einsum("blnh,bsnh->bnls", q, k) / np.sqrt(H)
        weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -np.inf))
        return jnp.sum(jnp.einsum("bnls,bsnh->blnh", weights, v) * slope)

    def ours(q, k, v):
        visible = attention.visible("heads", jnp.asarray(segments), causal)
        return jnp.sum(attention.attend("heads", q, k, v, visible, causal) * slope)

    with jax.enable_x64(True):
        expected = jax.grad(definition, (0, 1, 2))(*(x.astype(np.float64) for x in (q, k, v)))
    found = jax.jit(jax.grad(ours, (0, 1, 2)))(q, k, v)
    for one, wanted in zip(found, expected, strict=True):
        assert wanted.dtype == np.float64
        assert_allclose(one, wanted, rtol=0, atol=2e-5)  # float32 sums of 64 products of about 1


@pytest.mark.parametrize("causal", [True, False])
def test_splash_attention_equals_xla_in_the_interpreter(inputs, monkeypatch, causal):
    q, k, v, segments = inputs
    expected = attention.attend("xla", q, k, v, attention.visible("xla", jnp.asarray(segments), causal), causal)
    monkeypatch.setattr(attention, "_splash_kernel", functools.partial(attention._splash_kernel, interpret=True))
    found = attention.attend("splash", q, k, v, attention.visible("splash", jnp.asarray(segments)), causal)
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_model_with_splash_attention_lowers_for_tpus_with_its_backward_pass():
    config = DecoderConfig(64, 256, 1, 4, 2, 128, dtype="bfloat16", attention="splash")
    params = jax.eval_shape(functools.partial(decoder.init, config), 0)
    tokens = jax.ShapeDtypeStruct((2, L + 1), jnp.int32)
    mean = lambda p, t, s: decoder.token_log_probs(config, p, t, s).mean()  # noqa: E731
    lowered = jax.jit(jax.grad(mean)).trace(params, tokens, tokens).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("tpu_custom_call") == 3  # forward, and backward in queries and in keys and values


def test_splash_attention_refuses_lengths_that_its_blocks_do_not_divide(inputs):
    q, k, v, segments = (x[:, :100] for x in inputs)
    with pytest.raises(UserError, match="seq_len=100: splash attention needs a multiple of 128"):
        attention.attend("splash", q, k, v, segments)


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "expected"),
    [
        ("cpu", "bfloat16", 128, "heads"),
        ("gpu", "bfloat16", 128, "cudnn"),
        ("gpu", "float32", 128, "xla"),
        ("tpu", "float32", 128, "splash"),
        ("tpu", "float32", 64, "xla"),
    ],
)
def test_the_kernel_is_that_of_the_platform_unless_asked_for(platform, dtype, length, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert attention.kernel("auto", dtype, length) == expected
    assert attention.kernel("splash", dtype, length) == "splash"


def test_a_short_sequence_goes_through_a_model_on_a_tpu(monkeypatch):
    """As in configs/demo_tiny.gin."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    config = DecoderConfig(64, 32, 1, 2, 2, 64)
    params = jax.eval_shape(functools.partial(decoder.init, config), 0)
    tokens = jax.ShapeDtypeStruct((2, 65), jnp.int32)
    assert jax.eval_shape(functools.partial(decoder.token_log_probs, config), params, tokens, tokens).shape == (2, 64)


@pytest.fixture(scope="module")
def by_remat():
    """Loss and gradient of a tall narrow model, and the bytes XLA needs for them, by what is computed again."""
    base = DecoderConfig(64, 64, decoder.UNROLLED + 1, 2, 2, 256)
    params = decoder.init(base, 0)
    tokens = np.random.default_rng(0).integers(1, 64, (4, 65))

    def run(remat):
        config = dataclasses.replace(base, remat=remat)
        mean = lambda p: -decoder.token_log_probs(config, p, tokens, jnp.ones_like(tokens)).mean()  # noqa: E731
        compiled = jax.jit(jax.value_and_grad(mean)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    return {remat: run(remat) for remat in ("none", "dots", "full")}


def test_computing_again_saves_memory(by_remat):
    none, dots, full = (by_remat[remat][1] for remat in ("none", "dots", "full"))
    assert full < 0.6 * none
    assert full < dots < none


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_computing_again_changes_no_gradient(remat, by_remat):
    # The same operations, fused otherwise: float32 rounding of gradients of about .1.
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-7), by_remat[remat][0], by_remat["none"][0])
