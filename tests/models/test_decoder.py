import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mde.models import decoder
from mde.models.config import DecoderConfig

SIZES = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "norm_eps": 1e-3}
TIED = DecoderConfig(**SIZES)
UNTIED = DecoderConfig(**SIZES, tie_embeddings=False, rope_theta=50.0)
LENGTH = 16
SEGMENTS = np.array([[1] * 6 + [2] * 8 + [3] * 3, [1] * 17, [1] * 4 + [2] * 8 + [0] * 5])
TOKENS = np.random.default_rng(0).integers(1, 64, SEGMENTS.shape)

# Differences of float32 and float64 through two blocks: ~40 operations of relative error 6e-8 on activations and
# log-probs of about 5, that is 1e-5; a wrong head, angle or norm makes a difference of 1e-2 at least.
TOLERANCE = 2e-5


fresh = functools.cache(decoder.init)


@functools.cache
def parameters(config, seed=0):
    """Fresh parameters, with norms away from 1 and larger matrices, so that no part of the model is idle."""
    rng = np.random.default_rng(seed)

    def disturb(path, x):
        norm = "norm" in jax.tree_util.keystr(path)
        return jnp.asarray(rng.uniform(0.5, 1.5, x.shape) if norm else 2.0 * x, jnp.float32)

    return jax.tree.map_with_path(disturb, fresh(config, seed))


@functools.cache
def compiled(config):
    return jax.jit(functools.partial(decoder.token_log_probs, config))


def log_probs(config, params, tokens, segments):
    return np.asarray(compiled(config)(params, tokens, segments))


def reference_logits(config, params, tokens, segments):
    """One sequence through the decoder in float64, written from the papers with loops over heads and positions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    L, H = len(tokens), config.d_model // config.n_heads

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    positions = [sum(segments[s] == segments[t] for s in range(t)) for t in range(L)]

    def rotate(head):
        out = np.empty_like(head)
        for t, position in enumerate(positions):
            for i in range(H // 2):
                angle = position * config.rope_theta ** (-2 * i / H)
                pair = complex(head[t, i], head[t, i + H // 2]) * np.exp(1j * angle)
                out[t, i], out[t, i + H // 2] = pair.real, pair.imag
        return out

    x = p["embed"]["embedding"][tokens]
    for layer in range(config.n_layers):
        block = jax.tree.map(lambda a, layer=layer: a[layer], p["layers"])
        h = norm(x, block["attention_norm"]["scale"])
        query, key, value = (h @ block["attention"][name]["kernel"] for name in ("query", "key", "value"))
        heads = []
        for n in range(config.n_heads):
            shared = n // (config.n_heads // config.n_kv_heads)
            q = rotate(query[:, n * H : (n + 1) * H])
            k = rotate(key[:, shared * H : (shared + 1) * H])
            v = value[:, shared * H : (shared + 1) * H]
            mixed = np.zeros((L, H))
            for t in range(L):
                visible = [s for s in range(t + 1) if segments[s] == segments[t]]
                scores = np.exp(np.array([q[t] @ k[s] for s in visible]) / np.sqrt(H))
                mixed[t] = scores / scores.sum() @ v[visible]
            heads.append(mixed)
        x = x + np.concatenate(heads, -1) @ block["attention"]["out"]["kernel"]
        h = norm(x, block["mlp_norm"]["scale"])
        gate = h @ block["mlp"]["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block["mlp"]["up"]["kernel"])) @ block["mlp"]["down"]["kernel"]
    x = norm(x, p["final_norm"]["scale"])
    return x @ (p["embed"]["embedding"].T if config.tie_embeddings else p["unembed"]["kernel"])


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_log_probs_equal_a_float64_reference(config):
    params = parameters(config)
    found = log_probs(config, params, TOKENS, SEGMENTS)
    for b in range(len(TOKENS)):
        logits = reference_logits(config, params, TOKENS[b, :-1], SEGMENTS[b, :-1])
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert_allclose(found[b], expected[np.arange(LENGTH), TOKENS[b, 1:]], rtol=0, atol=TOLERANCE)


def test_probabilities_of_all_next_tokens_sum_to_one():
    params = parameters(TIED)
    tokens = np.repeat(TOKENS[:1], 3, axis=0)
    total = 0.0
    for first in range(0, 63, 3):
        tokens[:, -1] = np.arange(first, first + 3)
        total += np.exp(log_probs(TIED, params, tokens, np.ones_like(tokens))[:, -1].astype(np.float64)).sum()
    tokens[:, -1] = 63
    total += np.exp(log_probs(TIED, params, tokens, np.ones_like(tokens))[0, -1].astype(np.float64))
    assert_allclose(total, 1, rtol=1e-5)


def test_no_logit_depends_on_a_later_token():
    """By gradients to the embedded inputs, which miss nothing that a perturbation could fall short of."""
    params = parameters(TIED)
    segments = jnp.ones((1, LENGTH), jnp.int32)
    tokens = jnp.arange(1, LENGTH + 1)[None]  # each token once, so its embedding row stands for its position

    def logits(embedding):
        untied = {**params, "embed": {"embedding": embedding}, "unembed": {"kernel": params["embed"]["embedding"].T}}
        config = DecoderConfig(**SIZES, tie_embeddings=False)
        out = decoder.Decoder(config).apply({"params": untied}, tokens, segments)[0]
        return (out**2).sum(-1)

    sensitivity = np.abs(jax.jit(jax.jacobian(logits))(params["embed"]["embedding"])).sum(-1)[:, 1 : LENGTH + 1]
    assert (sensitivity[np.tril_indices(LENGTH)] > 0).all()
    assert_array_equal(sensitivity[np.triu_indices(LENGTH, 1)], 0)


def test_a_document_does_not_see_the_others_of_its_sequence():
    params = parameters(TIED)
    changed = TOKENS.copy()
    changed[:, :4] = (changed[:, :4] + 17) % 63 + 1  # only in the first documents
    before, after = (log_probs(TIED, params, t, SEGMENTS) for t in (TOKENS, changed))
    mask = np.asarray(decoder.target_mask(SEGMENTS))
    first = mask & (SEGMENTS[:, 1:] == 1)
    assert_array_equal(before[mask & ~first], after[mask & ~first])
    assert (before[first] != after[first]).mean() > 0.9


def test_a_document_has_the_same_log_probs_packed_and_alone():
    params = parameters(TIED)
    packed = log_probs(TIED, params, TOKENS, SEGMENTS)
    second = TOKENS[0, 6:14]
    alone = np.zeros_like(TOKENS)
    alone[:, :8] = second
    numbers = np.where(np.arange(LENGTH + 1) < 8, 1, 0)[None].repeat(3, axis=0)
    assert_allclose(log_probs(TIED, params, alone, numbers)[0, :7], packed[0, 6:13], rtol=0, atol=TOLERANCE)


def test_positions_restart_with_every_document():
    positions = decoder.document_positions(jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [4, 4, 5, 5, 5, 5, 6, 7]]))
    assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 0, 1, 2, 3, 0, 0]])


def test_targets_are_the_tokens_that_follow_one_of_their_own_document():
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 4, 5, 5]])
    expected = [[True, False, True, True, False, False], [True, True, True, False, False, True]]
    assert_array_equal(decoder.target_mask(segments), expected)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_parameters_of_the_blocks_lie_on_a_leading_layer_axis(config):
    params = fresh(config, 0)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(params["layers"])} == {config.n_layers}
    kernel = params["layers"]["mlp"]["gate"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # the layers begin differently


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_matmul_parameters_are_counted_right(config):
    params = fresh(config, 0)
    matrices = {k: v for k, v in params.items() if not (k == "embed" and not config.tie_embeddings)}
    sizes = jax.tree.map_with_path(lambda p, x: 0 if "norm" in jax.tree_util.keystr(p) else x.size, matrices)
    assert config.matmul_parameters == sum(jax.tree.leaves(sizes))


def test_fresh_parameters_are_a_function_of_the_seed():
    one, same, other = fresh(TIED, 0), decoder.init(TIED, 0), fresh(TIED, 1)
    jax.tree.map(assert_array_equal, one, same)
    assert np.abs(one["embed"]["embedding"] - other["embed"]["embedding"]).max() > 0.01
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(one))


def test_computing_in_bfloat16_keeps_parameters_and_logits_in_float32():
    half = DecoderConfig(**SIZES, dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(jax.eval_shape(lambda: decoder.init(half, 0))))
    params = parameters(TIED)
    found, expected = (log_probs(c, params, TOKENS, SEGMENTS) for c in (half, TIED))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() > 1e-4  # it does compute in bfloat16,
    assert np.abs(found - expected).mean() < 0.1  # whose 8 bits are 0.4 % of log-probs of about 5, a few times over


@pytest.mark.parametrize("overrides", [{}, {"n_layers": 5, "attention": "xla", "remat": "dots"}])
def test_decoding_with_a_cache_equals_the_whole_sequence_at_once(overrides):
    """Prompts of three lengths, padded before their beginning, then token by token; two prompts in one call as well."""
    config = dataclasses.replace(TIED, **overrides)
    params = parameters(config)
    tokens = TOKENS[:, :12]
    segments = (np.arange(12) >= np.array([0, 3, 5])[:, None]).astype(np.int32)
    whole = jax.jit(lambda t, s: jax.nn.log_softmax(decoder.Decoder(config).apply({"params": params}, t, s)))
    expected = np.asarray(whole(tokens, segments))
    step = jax.jit(functools.partial(decoder.log_probs_with_cache, config, params))
    found, cache = step(tokens[:, :6], segments, 0, None)
    assert_allclose(found[segments[:, :6] > 0], expected[:, :6][segments[:, :6] > 0], atol=TOLERANCE)
    found, cache = step(tokens[:, 6:9], segments, 6, cache)
    assert_allclose(found, expected[:, 6:9], atol=TOLERANCE)
    for position in range(9, 12):
        found, cache = step(tokens[:, position : position + 1], segments, position, cache)
        assert_allclose(found[:, 0], expected[:, position], atol=TOLERANCE)


def test_contexts_are_read_and_not_predicted():
    tokens = np.arange(1, 13, dtype=np.int32)[None]
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 0]])
    marked = segments * np.array([-1, -1, 1, 1, -1, -1, -1, 1, 1, 1, 1, 1])
    run = jax.jit(functools.partial(decoder.token_log_probs, TIED, parameters(TIED)))
    assert_array_equal(run(tokens, segments), run(tokens, marked))
    assert_array_equal(decoder.target_mask(marked)[0], [0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0])
