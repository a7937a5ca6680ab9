"""Losses on validation text while a pool is trained."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mde.errors import UserError
from mde.models import decoder
from mde.training.loss import loss
from mde.training.placement import on_pool, read_by_all, stack
from mde.training.runs import Recipe

VALIDATION_WINDOWS = 16  # of each domain; filled up to what the devices of a model can share


class Validation:
    """Losses of all models of a pool on the first windows of each domain's validation text, in nats per token.

    Attributes:
      names: of its metrics, one per domain.
    """

    def __init__(self, recipe: Recipe, mesh: Mesh):
        config, length, chunks = recipe.model, recipe.settings.seq_len, recipe.settings.loss_chunks
        count = VALIDATION_WINDOWS + -VALIDATION_WINDOWS % mesh.shape["data"]
        self.names = [f"validation/{name}" for name in recipe.validation]
        batches = {}
        for name, text in recipe.validation.items():
            windows = [text.window(i, length) for i in range(min(VALIDATION_WINDOWS, text.windows(length)))]
            if not windows:
                raise UserError(f"domain {name!r}: validation text in {text.directory} has not {length + 1} tokens")
            filled = windows + windows[-1:] * (count - len(windows))
            segments = np.stack([w.segments if i < len(windows) else 0 * w.segments for i, w in enumerate(filled)])
            batches[f"validation/{name}"] = (np.stack([w.tokens for w in filled]), segments)
        self._batches = stack(mesh, [batches] * mesh.shape["pool"], "data")

        def losses(params: decoder.Params, batches: Mapping[str, tuple[jax.Array, jax.Array]]) -> dict[str, jax.Array]:
            return {name: loss(config, params, *batch, chunks=chunks)[1][None] for name, batch in batches.items()}

        self._losses = on_pool(mesh, losses, donate=False, out_shardings=NamedSharding(mesh, read_by_all()))

    def __call__(self, params: decoder.Params) -> dict[str, jax.Array]:
        """By metric, [pool, 1]."""
        return self._losses(params, self._batches)
