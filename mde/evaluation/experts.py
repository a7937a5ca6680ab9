"""The experts' parameters as merging needs them: checked, stacked, and spread over the devices once.

Every leaf is kept as [K, n]: a row for each expert, columns cut over all devices. So the stack lies in memory once
however many devices there are, and a device averages its columns and is sent the rest (see `average`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
      experts: one tree a model, which may come from a generator (then no second copy of them is held), or one tree
        whose leaves have a leading axis K.
      names: what to call them in messages; their numbers otherwise.
      base: one more tree, called "base".
      mesh: the devices.

    Raises:
      UserError: see `_checked`; also a number of experts that is not that of their names.
    """
    rows: list[list[np.ndarray]] = []
    first: tuple[str, list[np.dtype]] | None = None
    for name, tree in _named(experts, names, base):
        leaves = _checked(config, name, tree, first)
        first = first or (name, [leaf.dtype for leaf in leaves])
        rows.append(leaves)
    columns = [list(leaf) for leaf in zip(*rows, strict=True)]
    del rows, leaves, tree  # so that each leaf can go as soon as it is on the devices
    return [_spread(columns.pop(0), mesh) for _ in range(len(columns))]


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

        def add(sums: jax.Array, expert: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            row, weights_C = expert
            return sums + weights_C[:, None] * row.astype(jnp.float32), None

        zeros = jnp.zeros((len(weights_CxK), part.shape[1]), jnp.float32)
        sums, _ = jax.lax.scan(add, zeros, (part, weights_CxK.T), unroll=min(8, len(part)))
        own = jax.lax.all_to_all(sums, "candidates", split_axis=0, concat_axis=1, tiled=True)
        whole = jax.lax.all_gather(own, "data", axis=1, tiled=True)
        leaves.append(whole[0, : like.size].reshape(like.shape))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def abstract(config: DecoderConfig) -> Any:
    """Shapes and dtypes of the parameters of a model."""
    return jax.eval_shape(lambda: decoder.init(config, 0))


def _named(
    experts: decoder.Params | Iterable[decoder.Params], names: Sequence[str] | None, base: decoder.Params | None
) -> Iterator[tuple[str, Any]]:
    """Every expert with its name, then the base."""
    if isinstance(experts, Mapping):
        counts = {len(x) for x in jax.tree.leaves(experts) if np.ndim(x)}
        if len(counts) != 1:
            raise UserError(f"stacked experts: leading axes of {sorted(counts)}, expected one K for all leaves")
        stacked = jax.tree.map(np.asarray, experts)
        experts = (jax.tree.map(lambda x, k=k: x[k], stacked) for k in range(counts.pop()))
    k = -1
    for k, tree in enumerate(experts):
        if names is not None and k >= len(names):
            raise UserError(f"more experts than names: {len(names)} names, {', '.join(names)}")
        yield str(k) if names is None else names[k], tree
    if k < 0 or (names is not None and k + 1 < len(names)):
        raise UserError(f"{k + 1} experts, expected {'at least one' if names is None else ', '.join(names)}")
    if base is not None:
        yield "base", base


def _checked(
    config: DecoderConfig, name: str, tree: Any, first: tuple[str, Sequence[np.dtype]] | None
) -> list[np.ndarray]:
    """The leaves of an expert, on the host.

    Raises:
      UserError: names the expert and the leaf that the model does not have or lacks, whose shape is not the model's,
        whose dtype is not that of the `first` expert (name and dtypes), or that is not finite.
    """
    wanted = {_path(path): like for path, like in jax.tree.leaves_with_path(abstract(config))}
    found = {_path(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    for path in found:
        if path not in wanted:
            raise unknown(f"parameter of expert {name!r}", path, wanted)
    for i, (path, like) in enumerate(wanted.items()):
        if path not in found:
            raise UserError(f"expert {name!r} has no parameter {path!r}; the model has it, of shape {like.shape}")
        leaf = found[path]
        if leaf.shape != like.shape:
            raise UserError(
                f"expert {name!r}: parameter {path!r} has shape {leaf.shape}, the model {like.shape}; "
                "experts must have one architecture and one tokenizer"
            )
        if first and leaf.dtype != first[1][i]:
            raise UserError(
                f"expert {name!r}: parameter {path!r} is {leaf.dtype}, that of expert {first[0]!r} {first[1][i]}"
            )
        bad = ~np.isfinite(leaf)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise UserError(f"expert {name!r}: parameter {path!r} is {leaf[at]} at {at}, expected a finite number")
    return [found[path].reshape(-1) for path in wanted]


def _spread(rows: list[np.ndarray], mesh: Mesh) -> jax.Array:
    """[K, n] on the devices, filled up with zeros to a multiple of their number."""
    n = rows[0].size
    width = -(-n // mesh.size) * mesh.size

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[1].indices(width)
        columns = np.zeros((len(rows), stop - start), rows[0].dtype)
        for row, out in zip(rows, columns, strict=True):
            here = row[start:stop]
            out[: len(here)] = here
        return columns

    return jax.make_array_from_callback((len(rows), width), NamedSharding(mesh, P(None, AXES)), part)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
