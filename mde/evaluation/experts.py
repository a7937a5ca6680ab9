"""The experts' parameters as merging needs them: checked, stacked, and spread over the devices once.

Every leaf is kept as [K, n]: a row for each expert, columns cut over all devices. So the stack lies in memory once
however many devices there are, and a device averages its columns and is sent the rest (see `average`).
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.errors import UserError, unknown
from mde.models import decoder
from mde.models.config import DecoderConfig

AXES = ("data", "candidates")  # of the meshes that `average` runs on; the columns are cut over both


def stack(
    config: DecoderConfig,
    experts: decoder.Params | Iterable[decoder.Params],
    names: Sequence[str] | None,
    base: decoder.Params | None,
    mesh: Mesh,
) -> list[jax.Array]:
    """The leaves of the experts, and after them of the base, each [K, n] with its columns cut over the devices.

    Args:
      config: the architecture that they must have.
      experts: one tree per model, or one tree whose leaves have a leading axis K. With names they may come from a
        generator, and no second copy of them is ever held.
      names: of the K experts, for messages; their numbers otherwise.
      base: one more tree, called "base".
      mesh: the devices.

    Raises:
      UserError: see `_checked`; also experts whose dtypes differ, and more or fewer experts than names.
    """
    if isinstance(experts, dict):
        experts = _unstacked(experts)
    if names is None:
        experts = list(experts)
        names = [str(k) for k in range(len(experts))]
    count = len(names) + (base is not None)
    columns: list[np.ndarray] = []  # of each leaf [devices, K, n / devices]
    for k, (name, tree) in enumerate(_named(experts, names, base)):
        leaves = _checked(config, name, tree)
        if not columns:
            columns = [np.zeros((mesh.size, count, -(-leaf.size // mesh.size)), leaf.dtype) for leaf in leaves.values()]
        for (path, leaf), part in zip(leaves.items(), columns, strict=True):
            if leaf.dtype != part.dtype:
                raise UserError(
                    f"expert {name!r}: parameter {path!r} is {leaf.dtype}, that of expert {names[0]!r} {part.dtype}"
                )
            part[:, k] = np.pad(leaf.reshape(-1), (0, part[:, k].size - leaf.size)).reshape(mesh.size, -1)
    return [_spread(columns.pop(0), mesh) for _ in range(len(columns))]  # what is on the devices is kept nowhere else


def average(config: DecoderConfig, stacked: Sequence[jax.Array], weights_CxK: jax.Array) -> decoder.Params:
    """The parameters of this device's candidate; to be called under `shard_map` on a mesh of `AXES`.

    Each device averages its columns for all candidates of the block, in float32 whatever the stored dtype, one expert
    after the other so that the sum does not depend on how many there are of either. Then candidates change places.

    Args:
      config: the architecture.
      stacked: the device's columns of every leaf, [K, n / devices].
      weights_CxK: float32 weights of a block of as many candidates as the axis has.

    Returns:
      The parameters of one model, float32.
    """
    shapes = abstract(config)
    leaves = []
    for part, like in zip(stacked, jax.tree.leaves(shapes), strict=True):
        zeros = jnp.zeros((len(weights_CxK), part.shape[1]), jnp.float32)
        sums, _ = jax.lax.scan(_add, zeros, (part, weights_CxK.T), unroll=min(8, len(part)))
        own = jax.lax.all_to_all(sums, "candidates", split_axis=0, concat_axis=1, tiled=True)
        whole = jax.lax.all_gather(own, "data", axis=1, tiled=True)
        leaves.append(whole[0, : like.size].reshape(like.shape))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _add(sums_CxN: jax.Array, expert: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    row_N, weights_C = expert
    return sums_CxN + weights_C[:, None] * row_N.astype(jnp.float32), None


@functools.cache
def abstract(config: DecoderConfig) -> Any:
    """Shapes and dtypes of the parameters of a model."""
    return jax.eval_shape(lambda: decoder.init(config, 0))


def _unstacked(experts: decoder.Params) -> list[decoder.Params]:
    """A tree for each expert, of views."""
    stacked = jax.tree.map(np.asarray, experts)
    counts = {len(leaf) for leaf in jax.tree.leaves(stacked) if leaf.ndim}
    if len(counts) != 1:
        raise UserError(f"stacked experts: leading axes of {sorted(counts)}, expected one K for all parameters")
    return [jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in range(counts.pop())]


def _named(
    experts: Iterable[decoder.Params], names: Sequence[str], base: decoder.Params | None
) -> Iterator[tuple[str, Any]]:
    """Every expert with its name, then the base."""
    k = -1
    for k, tree in enumerate(experts):
        if k == len(names):
            raise UserError(f"more experts than names: {len(names)} names, {', '.join(names)}")
        yield names[k], tree
    if k + 1 < max(1, len(names)):
        raise UserError(f"{k + 1} experts, expected {', '.join(names) or 'at least one'}")
    if base is not None:
        yield "base", base


def _checked(config: DecoderConfig, name: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of an expert by their path, on the host, in the model's order.

    Raises:
      UserError: names the expert and the leaf that the model does not have or lacks, whose shape is not the model's,
        or that is not finite.
    """
    wanted = {_path(path): like for path, like in jax.tree.leaves_with_path(abstract(config))}
    found = {_path(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    for path in found:
        if path not in wanted:
            raise unknown(f"parameter of expert {name!r}", path, wanted)
    for path, like in wanted.items():
        if path not in found:
            raise UserError(f"expert {name!r} has no parameter {path!r}; the model has it, of shape {like.shape}")
        leaf = found[path]
        if leaf.shape != like.shape:
            raise UserError(
                f"expert {name!r}: parameter {path!r} has shape {leaf.shape}, the model {like.shape}; "
                "experts must have one architecture and one tokenizer"
            )
        bad = ~np.isfinite(leaf)
        if bad.any():
            at = tuple(map(int, np.argwhere(bad)[0]))
            raise UserError(f"expert {name!r}: parameter {path!r} is {leaf[at]} at {at}, expected a finite number")
    return {path: found[path] for path in wanted}


def _spread(columns: np.ndarray, mesh: Mesh) -> jax.Array:
    """[K, n] on the devices, given as [devices, K, n / devices]."""
    devices, count, width = columns.shape

    def part(index: Any) -> np.ndarray:
        return columns[(index[1].start or 0) // width]

    return jax.make_array_from_callback((count, devices * width), NamedSharding(mesh, P(None, AXES)), part)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
