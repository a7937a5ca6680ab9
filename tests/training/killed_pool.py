"""Trains a pool, run as a program of its own so that it can be killed: killed_pool.py STORES RUNS CACHE."""

import sys

import jax
from etils import epath

from mde.data.tokens import TokenStore
from mde.models.config import preset
from mde.training.placement import MeshShape
from mde.training.pool import Recipe, Run, train_pool
from mde.training.settings import TrainSettings

MODEL = preset("tiny", 64)
RUNS = [Run("a", (1.0, 0.0), 0), Run("b", (0.2, 0.8), 1), Run("c", (0.5, 0.5), 2)]


def main() -> None:
    stores, runs, cache = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_num_cpu_devices", 2)
    recipe = Recipe(
        MODEL,
        TrainSettings(steps=100, batch_size=4, seq_len=16, learning_rate=1e-2),
        {name: TokenStore(epath.Path(stores) / name) for name in ("one", "other")},
        None,
        {},
    )
    print("ready", flush=True)
    train_pool(RUNS, recipe, epath.Path(runs), checkpoint_every=10, mesh=MeshShape(2))


if __name__ == "__main__":
    main()
