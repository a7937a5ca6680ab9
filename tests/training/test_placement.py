"""Meshes of machines that are not here, of which JAX is told by stand-ins for their devices."""

import dataclasses
import itertools

import jax
import pytest

from mde.evaluation import merged
from mde.models.config import preset
from mde.training.placement import MeshShape, fitting, make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    slice_index: int
    coords: tuple[int, ...]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


def grid(across, slices=1):
    """Chips of slices of across x across, four a process: squares of two by two, numbered by rows of the slice."""
    found = []
    for part, (y, x) in itertools.product(range(slices), itertools.product(range(across), repeat=2)):
        process = part * (across // 2) ** 2 + (y // 2) * (across // 2) + x // 2
        found.append(Device(len(found), process, part, (x, y, 0)))
    return found


@pytest.fixture
def machine(monkeypatch):
    """Has JAX see these devices."""

    def seen(devices):
        monkeypatch.setattr(jax, "devices", lambda: devices)
        monkeypatch.setattr(jax, "device_count", lambda: len(devices))
        monkeypatch.setattr(jax, "process_count", lambda: len({device.process_index for device in devices}))
        merged._mesh.cache_clear()

    yield seen
    merged._mesh.cache_clear()


@pytest.mark.parametrize("models", [3, 7, 12, 16])
def test_a_pool_of_any_number_of_models_has_a_mesh(models, machine):
    machine([dataclasses.replace(device, process_index=0) for device in grid(4)])
    mesh = make_mesh(MeshShape(models))
    assert mesh.shape == {"pool": models, "data": 1, "model": 1}
    assert len(set(mesh.devices.flat)) == models


@pytest.mark.parametrize("shape", [MeshShape(4, 16), MeshShape(16, 4), MeshShape(8, 4, 2)], ids=str)
def test_a_row_of_a_mesh_lies_in_as_few_processes_as_it_can(shape, machine):
    machine(grid(8))
    mesh = make_mesh(shape)
    assert len(set(mesh.devices.flat)) == 64
    for row in mesh.devices:
        assert len({device.process_index for device in row.flat}) == row.size // 4


@pytest.mark.parametrize("shape", [MeshShape(32), MeshShape(2, 16), MeshShape(8, 4)], ids=str)
def test_slices_train_models_of_their_own(shape, machine):
    machine(grid(4, slices=2)[::-1])
    for row in make_mesh(shape).devices:
        assert len({device.slice_index for device in row.flat}) == 1


def test_averages_are_scored_on_all_slices(machine):
    machine(grid(4, slices=2))
    assert merged._mesh(8).devices.shape == (4, 8)


@pytest.mark.parametrize(
    ("across", "runs", "sequences", "shape"),
    [
        (8, 1, 16, MeshShape(4, 16)),  # the seed model of configs/demo.gin
        (8, 40, 16, MeshShape(64)),
        (4, 12, 16, MeshShape(16)),
        (4, 1, 48, MeshShape(1, 16)),
        (4, 2, 12, MeshShape(4, 4)),
        (2, 1, 7, MeshShape(1)),  # one process may leave devices idle
    ],
)
def test_left_to_itself_a_pool_has_all_processes_take_part(across, runs, sequences, shape, machine):
    machine(grid(across))
    found = fitting(runs, preset("demo", 2048), sequences)
    assert found == shape
    make_mesh(found)


def test_a_seed_model_has_all_processes_take_part(machine):
    config = preset("demo", 2048)
    machine(grid(8))
    assert MeshShape(16, 4).alone(config, 16) == MeshShape(4, 16)
    assert MeshShape(16, 1, 4).alone(config, 16) == MeshShape(1, 16, 4)
    machine(grid(2))
    assert MeshShape(4).alone(config, 2) == MeshShape(1, 2)
