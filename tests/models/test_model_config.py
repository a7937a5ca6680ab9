import dataclasses

import pytest

from mde.errors import UserError
from mde.models.config import PRESETS, DecoderConfig, preset


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
    [({"d_model": 30}, "d_model=30 must be a multiple of 2"), ({"n_heads": 4, "n_kv_heads": 3}, "multiple of n_kv")],
)
def test_sizes_that_do_not_fit_each_other_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        preset("tiny", 64, **override)
