"""Where the decoder's arrays lie on a mesh with axes `pool`, `data` and `model`.

`pool` holds different models. Inside one, `data` splits the batch, and with it every parameter and optimizer state
(FSDP: gathered for use, its gradient summed and scattered); `model` splits heads, the feed-forward width and the
vocabulary (tensor parallelism). One table says which dimension of a parameter lies on which axis.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.errors import UserError
from mde.models.config import DecoderConfig

AXES = ("pool", "data", "model")

# The end of a parameter's path -> the axis of each of its dimensions; blocks have a leading dimension of layers.
RULES = {
    r"embed/embedding": ("model", "data"),
    r"unembed/kernel": ("data", "model"),
    r"layers/attention/(query|key|value)/kernel": (None, "data", "model"),
    r"layers/attention/out/kernel": (None, "model", "data"),
    r"layers/mlp/(gate|up)/kernel": (None, "data", "model"),
    r"layers/mlp/down/kernel": (None, "model", "data"),
    r"norm/scale": (),
    r"^(weights|scores)": (),  # of domains, in a state that re-weights them
}


def spec(path: Any, leaf: Any) -> P:
    """The axes of a parameter, or of an optimizer state that mirrors it; scalars (counts) are on every device."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for ending, axes in RULES.items():
        if re.search(f"{ending}$", name):
            return P(*axes)
    if leaf.ndim:
        raise ValueError(f"no rule says where {name} of shape {leaf.shape} lies")
    return P()


def stacked(mesh: Mesh, tree: Any) -> Any:
    """Shardings of a tree of parameters or states that gets a leading `pool` axis."""
    return jax.tree.map_with_path(lambda path, leaf: NamedSharding(mesh, P("pool", *spec(path, leaf))), tree)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks for dimensions of an activation on these axes; changes nothing where one device has a model to itself."""
    return jax.lax.with_sharding_constraint(x, P(*axes)) if _inner_axes() else x


def by_hand(function: Callable[..., Any], inputs: Sequence[Sequence[str | None]], output: Sequence[str | None]) -> Any:
    """A function that runs on each device's part: for kernels that XLA cannot split by itself."""
    if not _inner_axes():
        return function
    specs = tuple(P(*axes) for axes in inputs)
    return jax.shard_map(function, in_specs=specs, out_specs=P(*output), check_vma=False)


def _inner_axes() -> bool:
    """Whether the program being traced leaves it to XLA to split a model over several devices.

    Under `shard_map` it does not: there each device has a whole model, whatever the mesh's axes are called.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}
    return free.get("data", 1) * free.get("model", 1) > 1


def check(config: DecoderConfig, data: int, model: int) -> None:
    """Raises UserError where the axes do not divide the model, with what would."""
    dimensions = {
        "model": {n: getattr(config, n) for n in ("n_heads", "n_kv_heads", "d_ff")} | {"vocab_size": config.table_rows},
        "data": {"d_model": config.d_model},
    }
    for axis, size in (("data", data), ("model", model)):
        for name, dimension in dimensions[axis].items():
            if dimension % size:
                fits = [n for n in range(1, size) if not any(d % n for d in dimensions[axis].values())]
                raise UserError(
                    f"mesh axis {axis}={size} does not divide {name}={dimension}; "
                    f"of the smaller ones {', '.join(map(str, fits))} would"
                )
