import dataclasses

import jax
import pytest

from mde.errors import UserError
from mde.models import decoder
from mde.models.config import PRESETS, DecoderConfig, on_record, preset


def test_a_preset_is_completed_by_the_vocabulary_and_overridden_by_name():
    config = preset("tiny", 64, n_layers=3, tie_embeddings=False)
    assert (config.vocab_size, config.n_layers, config.tie_embeddings) == (64, 3, False)
    assert config.d_model == PRESETS["tiny"].d_model
    assert config.n_kv_heads == config.n_heads


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_model(name):
    config = preset(name, 64)
    assert config.head_dim * config.n_heads == config.d_model


def test_fields_survive_a_round_trip():
    config = preset("demo", 512, dtype="bfloat16")
    assert DecoderConfig.from_dict(dataclasses.asdict(config)) == config


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="unknown preset 'tinny': did you mean 'tiny'"):
        preset("tinny", 64)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(UserError, match="unknown model field 'n_layer': did you mean 'n_layers'"):
        preset("tiny", 64, n_layer=3)


def test_missing_fields_are_named():
    with pytest.raises(UserError, match="a model needs d_model, n_layers, n_heads, n_kv_heads, d_ff"):
        DecoderConfig.from_dict({"vocab_size": 64})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"d_model": 30}, "d_model=30 must be a multiple of 2"),
        ({"n_heads": 4, "n_kv_heads": 3}, "multiple of n_kv"),
        *(({name: 0}, f"{name}=0 must be positive") for name in ("n_heads", "n_kv_heads", "n_layers", "rope_theta")),
        ({"d_ff": -4}, "d_ff=-4 must be positive"),
        ({"d_ff": 256.5}, "d_ff=256.5: expected a whole number"),
        ({"d_model": "96"}, "d_model='96': expected a whole number"),
        ({"n_layers": True}, "n_layers=True: expected a whole number"),
        ({"tie_embeddings": 1}, "tie_embeddings=1: expected True or False"),
        ({"norm_eps": -1e-6}, "norm_eps=-1e-06 must not be negative"),
        ({"dtype": 16}, "dtype=16: expected a name"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_sizes_that_make_no_model_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        preset("tiny", 64, **override)


@pytest.mark.parametrize(("name", "millions"), [("70m", 70), ("150m", 150), ("280m", 280), ("510m", 510), ("1b", 1000)])
def test_presets_have_the_parameters_that_their_names_say(name, millions):
    config = preset(name, 32_000)
    assert config.non_embedding_parameters == pytest.approx(millions * 1e6, rel=0.05)
    assert config.head_dim in (64, 128)
    assert config.d_ff % 128 == 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["demo", "510m"])
def test_parameters_are_counted_as_they_are_made(name, tied):
    config = preset(name, 512, tie_embeddings=tied)
    made = jax.eval_shape(lambda: decoder.init(config, 0))
    assert config.parameters == sum(x.size for x in jax.tree.leaves(made))
    layers = {k: v for k, v in made.items() if k not in ("embed", "unembed")}
    assert config.non_embedding_parameters == sum(x.size for x in jax.tree.leaves(layers))


def test_flops_of_a_token_by_hand():
    config = DecoderConfig(vocab_size=10, d_model=8, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=12)
    matrices = 3 * (8 * 4 * (2 + 1 + 1 + 2) + 3 * 8 * 12) + 8 * 10
    attention = 3 * (2 * 2 * 4) * (64 / 2) * 2  # layers, heads * width, seen positions, scores and averages
    assert config.train_flops(64) == 3 * (2 * matrices + attention)  # forward once, backward twice


def test_options_are_on_record_only_where_they_are_used():
    assert "remat" not in on_record(preset("tiny", 64))
    assert on_record(preset("tiny", 64, remat="full"))["remat"] == "full"
    assert on_record(preset("tiny", 64))["dtype"] == "float32"


@pytest.mark.parametrize(("field", "value"), [("remat", "ful"), ("dtype", "float23"), ("attention", "splsh")])
def test_an_unknown_choice_names_the_nearest(field, value):
    with pytest.raises(UserError, match=f"unknown {field} '{value}': did you mean"):
        preset("tiny", 64, **{field: value})
