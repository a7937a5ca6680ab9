"""Losses of a few steps of a pool on a mesh, run as a program of its own: devices can be counted only once.

    python sharded_losses.py MODEL MESH[,MESH...] [process_id port]

Prints a JSON object: by mesh (`pool.data.model`) the losses [models, steps]. Model n is the same on every mesh.
"""

import dataclasses
import functools
import json
import sys

import jax
import numpy as np

from mde.models import attention, sharding
from mde.models.config import DecoderConfig
from mde.training import placement, pool
from mde.training.settings import TrainSettings
from mde.training.step import initial, schedule

DECODER = DecoderConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=8, n_kv_heads=8, d_ff=64, remat="dots")
ENCODER = DecoderConfig(63, 64, n_layers=2, n_heads=8, n_kv_heads=4, d_ff=64, tie_embeddings=False, objective="masked")
SPLASH = DecoderConfig(64, 64, n_layers=1, n_heads=4, n_kv_heads=2, d_ff=64, attention="splash")
SETTINGS = TrainSettings(4, batch_size=16, seq_len=16, learning_rate=1e-2, warmup_steps=1, loss_chunks=2, accumulate=2)
MODELS = {
    "decoder": (DECODER, SETTINGS),
    "encoder": (ENCODER, dataclasses.replace(SETTINGS, z_loss=1e-2)),
    "splash": (SPLASH, dataclasses.replace(SETTINGS, steps=4, batch_size=4, seq_len=attention.SPLASH_BLOCK)),
}


def losses(model: DecoderConfig, settings: TrainSettings, shape: placement.MeshShape) -> np.ndarray:
    mesh = placement.make_mesh(shape)
    begin = functools.partial(initial, model, settings)
    state = jax.eval_shape(begin, 0)
    seeds = placement.stack(mesh, [np.int32(seed) for seed in range(shape.pool)])
    states = pool.on_pool(mesh, begin, donate=False, out_shardings=sharding.stacked(mesh, state))(seeds)
    assert_spread(states, shape)
    batches = []
    for seed in range(shape.pool):
        rng = np.random.default_rng(seed)
        size = (settings.steps, settings.batch_size, settings.seq_len + 1)
        segments = np.sort(rng.integers(0, 3, size).astype(np.int32), axis=-1)
        tokens = rng.integers(1, model.vocab_size, size).astype(np.int32)
        batches.append({"tokens": tokens, "segments": segments})
    rates = placement.stack(mesh, [np.asarray(schedule(settings)(np.arange(settings.steps)))] * shape.pool)
    states, metrics = pool.advance(mesh, model, settings)(states, placement.stack(mesh, batches, None, "data"), rates)
    assert_spread(states, shape)
    return np.asarray(metrics["loss"])


def assert_spread(states: object, shape: placement.MeshShape) -> None:
    """Every matrix and its optimizer state takes a part of each axis, before the first step and after the last."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        share = shape.devices if "kernel" in str(path) or "embedding" in str(path) else shape.pool
        assert all(s.data.size * share == leaf.size for s in leaf.addressable_shards), path


def main() -> None:
    processes = len(sys.argv) > 3
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 if processes else 8)
    if processes:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{sys.argv[4]}", num_processes=2, process_id=int(sys.argv[3]))
    attention._splash_kernel = functools.partial(attention._splash_kernel, interpret=True)
    out = {}
    for name in sys.argv[2].split(","):
        out[name] = losses(*MODELS[sys.argv[1]], placement.MeshShape(*map(int, name.split(".")))).tolist()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
