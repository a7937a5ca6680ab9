"""Meshes for pools, and moving trees of arrays between the host and a pool.

A mesh has the axes `pool`, `data` and `model` (see `mde.models.sharding`). A row of it, the devices with one place on
`pool`, holds one model; a tree of several models has a leading axis of models, which lies on `pool`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mde.errors import UserError, check_positive, unknown
from mde.models import sharding
from mde.models.config import DecoderConfig
from mde.models.products import compiler_options


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each axis."""

    pool: int = 1
    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        check_positive(**dataclasses.asdict(self))

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in dataclasses.asdict(self).items())

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.pool * self.data * self.model

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Reads `pool=2,data=4,model=1`; an axis that is not named has one device."""
        sizes = {}
        for part in text.split(","):
            if not (match := re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)):
                raise UserError(f"mesh {text!r}: expected something like 'pool=2,data=4,model=1'")
            if match[1] not in sharding.AXES:
                raise unknown("mesh axis", match[1], sharding.AXES)
            sizes[match[1]] = int(match[2])
        return cls(**sizes)

    def check(self, config: DecoderConfig, sequences: int) -> None:
        """Raises UserError where the mesh does not divide the model, or the sequences that are stepped at a time."""
        sharding.check(config, self.data, self.model)
        if sequences % self.data:
            fits = [n for n in range(1, self.data) if sequences % n == 0]
            raise UserError(
                f"mesh axis data={self.data} does not divide the {sequences} sequences of a step (or of a part of it, "
                f"where gradients are accumulated); of the smaller ones {', '.join(map(str, fits))} would"
            )

    def alone(self, config: DecoderConfig, sequences: int) -> "MeshShape":
        """The mesh of a model that has the devices of a whole pool to itself, as far as its data axis can take them."""
        data = _data_axis(self.pool * self.data, jax.device_count() // self.model, config, sequences)
        return _with_all_processes(MeshShape(1, data, self.model))


def fitting(runs: int, config: DecoderConfig, sequences: int) -> MeshShape:
    """The mesh where none is asked for: a row of devices a run, and all that the data axis can take in a row."""
    devices = jax.device_count()
    rows = min(runs, devices)
    return _with_all_processes(MeshShape(rows, _data_axis(devices // rows, devices, config, sequences)))


def _data_axis(most: int, devices: int, config: DecoderConfig, sequences: int) -> int:
    """How many devices, at most so many, can share a model's batch and parameters.

    Where there are several processes, rows of so many take up all `devices`.
    """
    divides = math.gcd(sequences, config.d_model, devices if jax.process_count() > 1 else 0)
    return max(n for n in range(1, most + 1) if divides % n == 0)


def _with_all_processes(shape: MeshShape) -> MeshShape:
    """The mesh, with rows to spare if some process would have no device in it otherwise; they repeat a run."""
    if jax.process_count() == 1:
        return shape
    return dataclasses.replace(shape, pool=jax.device_count() // (shape.data * shape.model))


def make_mesh(shape: MeshShape) -> Mesh:
    """The mesh of this shape on the first of the devices; raises UserError if there are fewer."""
    if shape.devices > jax.device_count():
        raise UserError(f"mesh {shape} needs {shape.devices} devices, here are {jax.device_count()}")
    mesh = mesh_of((shape.pool, shape.data, shape.model), sharding.AXES)
    if len({device.process_index for device in mesh.devices.flat}) < jax.process_count():
        raise UserError(
            f"mesh {shape} takes {shape.devices} of {jax.device_count()} devices and leaves a process without any; "
            f"run it with fewer processes, or give a --mesh of all devices"
        )
    return mesh


def mesh_of(sizes: Sequence[int], axes: Sequence[str]) -> Mesh:
    """A mesh of the first devices, where those of a slice, and in it those of a process, are next to each other.

    Any sizes will do: `jax.make_mesh` follows a TPU's torus, on which not every mesh can be laid out, and refuses
    devices of several slices.
    """
    devices = sorted(jax.devices(), key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id))
    return Mesh(np.array(devices[: math.prod(sizes)]).reshape(sizes), axes, axis_types=(AxisType.Auto,) * len(axes))


def on_pool(
    mesh: Mesh, function: Callable[..., Any], donate: bool = True, out_shardings: Any = None
) -> jax.stages.Wrapped:
    """`function` of one model as a jitted function of a stack of them, one a row; all its arguments are stacked.

    Models do not see each other. Where a row has several devices, XLA splits the work among them as the arguments'
    shardings say.
    """

    def local(*stacked: Any) -> Any:
        out = function(*jax.tree.map(lambda x: x[0], stacked))
        return jax.tree.map(lambda x: x[None], out)

    def split(*stacked: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if mesh.shape["pool"] == 1:  # products of plain matrices are faster than a batch of one
                return local(*stacked)
            return jax.vmap(function, spmd_axis_name="pool")(*stacked)

    alone = mesh.size == mesh.shape["pool"]
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("pool"), out_specs=P("pool"), check_vma=False)
    return jax.jit(
        mapped if alone else split,
        donate_argnums=0 if donate else (),
        out_shardings=out_shardings,
        compiler_options=compiler_options(),
    )


def read_by_all() -> P:
    """Where metrics [pool, ...] lie so that every process can read them."""
    return P("pool") if jax.process_count() == 1 else P()


def stack(mesh: Mesh, trees: Sequence[Any], *axes: str | None) -> Any:
    """Trees of host arrays stacked on a leading axis that lies on the pool; the dimensions after it lie on `axes`."""
    sharding = NamedSharding(mesh, P("pool", *axes))
    return jax.tree.map(lambda *xs: _place(sharding, np.stack(xs)), *trees)


def spread(mesh: Mesh, params: Any) -> Any:
    """One model's parameters as those of every model of the pool, each device given only its part."""

    def place(leaf: np.ndarray, where: NamedSharding) -> jax.Array:
        shape = (mesh.shape["pool"], *leaf.shape)
        return jax.make_array_from_callback(shape, where, lambda index: leaf[(index or ())[1:]][None])

    return jax.tree.map(place, params, sharding.stacked(mesh, params))


def stack_params(mesh: Mesh, models: Sequence[Any]) -> Any:
    """Parameters of one model per row, on the host, as a stack whose devices are each given only their part."""
    where = sharding.stacked(mesh, models[0])
    return jax.tree.map(lambda where, *xs: _place(where, np.stack(xs)), where, *models)


def zeros(like: Any) -> Any:
    """Zeros where the shapes, dtypes and shardings of a tree say."""

    def make(x: jax.ShapeDtypeStruct) -> jax.Array:
        part = np.zeros(x.sharding.shard_shape(x.shape), x.dtype)
        return jax.make_array_from_callback(x.shape, x.sharding, lambda _: part)

    return jax.tree.map(make, like)


def _place(sharding: NamedSharding, x: np.ndarray) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def processes_of(mesh: Mesh, index: int) -> frozenset[int]:
    """The processes that hold parts of one model of a stack."""
    return frozenset(device.process_index for device in mesh.devices[index].flat)


def member(mesh: Mesh, stacked: Any, index: int) -> Any:
    """One model of a stack: on the devices of its row, or on every row if several processes each must have it."""
    if jax.process_count() > 1:
        return _told_to_all(mesh, stacked, index)
    row = _row(mesh, index)

    def take(x: jax.Array) -> jax.Array:
        local = [s.data[0] for s in x.addressable_shards if s.index[0].start in (index, None)]
        return jax.make_array_from_single_device_arrays(x.shape[1:], NamedSharding(row, P(*_axes(x)[1:])), local)

    return jax.tree.map(take, stacked)


@functools.partial(jax.jit, static_argnums=0)
def _told_to_all(mesh: Mesh, stacked: Any, index: jax.Array | int) -> Any:
    """A sum over the pool to which only one row has something to add: no device holds more than its part of a model."""
    axes = jax.tree.map_with_path(lambda path, x: sharding.spec(path, jax.eval_shape(lambda: x[0])), stacked)

    def tell(x: jax.Array, axes: P) -> jax.Array:
        mine = lambda x, index: jnp.where(jax.lax.axis_index("pool") == index, x[0], 0)  # noqa: E731
        told = jax.shard_map(
            lambda x, index: jax.lax.psum(mine(x, index), "pool"),
            mesh=mesh,
            in_specs=(P("pool", *axes), P()),
            out_specs=axes,
        )
        return told(x, index)

    return jax.tree.map(tell, stacked, axes)


def abstract_member(mesh: Mesh, tree: Any, index: int) -> Any:
    """Shapes, dtypes and shardings that `member` gives a model."""
    devices = mesh if jax.process_count() > 1 else _row(mesh, index)
    return jax.tree.map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(devices, sharding.spec(path, x))),
        tree,
    )


def join(mesh: Mesh, members: Sequence[Any]) -> Any:
    """The stack of models that lie as `member` leaves them."""
    rows = [set(devices.flat) for devices in mesh.devices]

    def put(*xs: jax.Array) -> jax.Array:
        where = NamedSharding(mesh, P("pool", *_axes(xs[0])))
        parts = [s.data[None] for x, row in zip(xs, rows, strict=True) for s in x.addressable_shards if s.device in row]
        return jax.make_array_from_single_device_arrays((len(xs), *xs[0].shape), where, parts)

    return jax.tree.map(put, *members)


def _axes(x: jax.Array) -> P:
    assert isinstance(x.sharding, NamedSharding)
    return x.sharding.spec


def _row(mesh: Mesh, index: int) -> Mesh:
    return Mesh(mesh.devices[index], sharding.AXES[1:])
