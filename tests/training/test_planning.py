import dataclasses

import pytest

from mde.errors import UserError
from mde.models.config import preset
from mde.training import devices, planning
from mde.training.placement import MeshShape
from mde.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=10, batch_size=16, seq_len=128, learning_rate=1e-3)


@pytest.fixture(scope="module")
def measured():
    config = preset("demo", 2048)
    return config, planning.measure(config, SETTINGS, MeshShape(2, 4, 1))


@pytest.mark.slow
def test_parameters_and_optimizer_are_spread_over_the_row_of_a_model(measured):
    config, memory = measured
    norms = config.d_model * (2 * config.n_layers + 1)  # whole on every device
    share = 4 * ((config.parameters - norms) // 4 + norms)
    assert memory.parameters == share
    assert memory.optimizer == 2 * share + 4  # two moments, and the count of steps
    assert memory.batches == 2 * 4 * 10 * (16 // 4) * 129  # tokens and segments of ten steps, int32


@pytest.mark.slow
def test_a_step_needs_at_least_its_gradients_and_activations(measured):
    config, memory = measured
    activations = 4 * (16 // 4) * 128 * config.n_layers * (4 * config.d_model + 2 * config.d_ff)
    logits = 4 * (16 // 4) * 128 * config.vocab_size
    assert activations + logits < memory.temporary < 10 * (activations + logits)


@pytest.mark.parametrize("name", ["demo", "70m", "510m"])
def test_flops_agree_with_those_that_xla_counts(name):
    config, seq_len = preset(name, 2048), 256
    masked = 6 * config.n_layers * config.n_heads * config.head_dim * seq_len  # the half of attention we leave out
    products = config.train_flops(seq_len) + masked
    # Norms, softmax, rotation and activations are the rest: more of it in a narrow model.
    assert 1.0 <= planning.counted_flops(config, seq_len) / products < (1.1 if name == "demo" else 1.02)


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(planning.subprocess, "run", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(UserError, match="data=7 does not divide d_model=96; of the smaller ones 1, 2, 3, 4, 6 would"):
        planning.measure(preset("demo", 2048), SETTINGS, MeshShape(1, 7))
    with pytest.raises(UserError, match="data=8 does not divide the 4 sequences"):
        planning.measure(preset("demo", 2048), dataclasses.replace(SETTINGS, accumulate=4), MeshShape(1, 8))


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(UserError, match="unknown device 'tpu-v5': did you mean 'tpu-v5"):
        devices.device("tpu-v5")
