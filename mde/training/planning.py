"""What a training needs, found out without the machines: XLA compiles the train step for devices that are not there.

Run as a program, this module compiles for as many virtual CPU devices as a mesh has and prints what XLA says of its
memory: the number of devices can be chosen only before JAX starts, so `measure` starts a Python of its own.
"""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mde.models import decoder, sharding
from mde.models.config import DecoderConfig
from mde.training import placement, pool
from mde.training.loss import loss
from mde.training.placement import MeshShape
from mde.training.settings import TrainSettings
from mde.training.step import initial


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device: what lies there between steps, and what a step needs beside it."""

    parameters: int
    optimizer: int
    batches: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(dataclasses.astuple(self))


def measure(config: DecoderConfig, settings: TrainSettings, shape: MeshShape) -> Memory:
    """Compiles the program that `train_pool` runs for a mesh of virtual devices and reads XLA's memory analysis.

    Raises:
      UserError: the mesh does not divide the model or the batch.
    """
    shape.check(config, settings.sequences)
    request = json.dumps([dataclasses.asdict(x) for x in (config, settings, shape)])
    flags = f"--xla_force_host_platform_device_count={shape.devices}"
    done = subprocess.run(
        [sys.executable, "-m", "mde.training.planning", request],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"compiling for {shape} failed: {done.stderr[-2000:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def counted_flops(config: DecoderConfig, seq_len: int) -> float:
    """FLOPs of training on one token as XLA counts them, from models of one and of two layers (a loop is counted once).

    More than `train_flops`: XLA's attention computes what the mask then hides, and element-wise work counts as well.
    """

    def flops(layers: int) -> float:
        part = dataclasses.replace(config, n_layers=layers, remat="none", attention="xla")
        params = jax.eval_shape(functools.partial(decoder.init, part), 0)
        tokens = jax.ShapeDtypeStruct((1, seq_len + 1), jnp.int32)
        gradient = jax.jit(jax.grad(lambda params, tokens: loss(part, params, tokens, tokens)[0]))
        analysis: Any = gradient.lower(params, tokens).cost_analysis()
        return analysis["flops"]

    one, two = flops(1), flops(2)
    return (one + (config.n_layers - 1) * (two - one)) / seq_len


def _compile(config: DecoderConfig, settings: TrainSettings, shape: MeshShape) -> Memory:
    mesh = placement.make_mesh(shape)
    state = jax.eval_shape(functools.partial(initial, config, settings), 0)
    stacked = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct((shape.pool, *x.shape), x.dtype, sharding=where),
        state,
        sharding.stacked(mesh, state),
    )
    size = (shape.pool, pool.STEPS_PER_CALL, settings.batch_size, settings.seq_len + 1)
    tokens = jax.ShapeDtypeStruct(size, jnp.int32, sharding=NamedSharding(mesh, P("pool", None, "data")))
    batches = {"tokens": tokens, "segments": tokens}
    rates = jax.ShapeDtypeStruct(size[:2], jnp.float32, sharding=NamedSharding(mesh, P("pool")))
    compiled = pool.advance(mesh, config, settings).lower(stacked, batches, rates).compile()
    analysis: Any = compiled.memory_analysis()
    return Memory(_bytes(stacked.params), _bytes(stacked.opt_state), _bytes(batches), analysis.temp_size_in_bytes)


def _bytes(tree: Any) -> int:
    """Bytes that a device holds of a tree."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    model, training, mesh = json.loads(sys.argv[1])
    found = _compile(DecoderConfig.from_dict(model), TrainSettings.from_dict(training), MeshShape(**mesh))
    print(json.dumps(dataclasses.asdict(found)))
