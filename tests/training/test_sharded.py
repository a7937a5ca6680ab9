import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from mde.errors import UserError
from mde.models.config import preset
from mde.training.placement import MeshShape, fitting, make_mesh

ROOT = Path(__file__).parents[2]
FACTORISATIONS = [(p, d, 8 // p // d) for p in (1, 2, 4, 8) for d in (1, 2, 4, 8) if p * d <= 8]

# Four steps of the same numbers summed in another order: float32 sums of a few hundred terms differ by some 1e-6 of a
# loss of 4.6, and Adam's first steps, which are of the size of the learning rate whatever the gradient, hand that on.
# A sequence or a head that is lost or counted twice makes a difference of 1e-2.
TOLERANCE = 2e-5


def start(meshes, *more, model="decoder"):
    """The program that prints losses by mesh, begun."""
    command = [sys.executable, Path(__file__).parent / "sharded_losses.py", model, ",".join(meshes), *more]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def losses(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    (line,) = (line for line in out.splitlines() if line.startswith("{"))  # gloo talks, too
    return {mesh: np.array(found) for mesh, found in json.loads(line).items()}


def assert_same(found, reference):
    """Model n has the losses of model n of the reference on every mesh."""
    for mesh, curves in found.items():
        assert curves.shape[0] == int(mesh[0])
        assert_allclose(curves, reference[: len(curves)], rtol=0, atol=TOLERANCE, err_msg=mesh)


def test_a_pool_of_split_models_has_the_losses_of_models_on_one_device_each():
    found = losses(start(["8.1.1", "2.2.2", "1.1.1"]))
    reference = found["8.1.1"]
    assert np.ptp(reference, axis=0).min() > 0.05  # models differ
    assert np.ptp(reference, axis=1).min() > 0.05  # and learn
    assert_same(found, reference)


@pytest.mark.slow
def test_losses_are_the_same_on_every_factorisation_of_eight_devices():
    found = losses(start([".".join(map(str, shape)) for shape in FACTORISATIONS]))
    assert len(found) == 10
    assert_same(found, found["8.1.1"])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "meshes"), [("encoder", ["1.2.4", "2.4.1"]), ("splash", ["1.2.2"])])
def test_losses_of_other_models_are_the_same_on_split_devices(model, meshes):
    """An encoder of few key heads with a z-loss, and a kernel that runs on each device's part (in the interpreter)."""
    found = losses(start(["2.1.1", *meshes], model=model))
    reference = found["2.1.1"]
    assert np.ptp(reference, axis=1).min() > 0.01
    assert_same(found, reference)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2.2.2", "1.8.1", "1.2.4"])
def test_losses_are_the_same_in_two_processes_of_four_devices(mesh):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [start([mesh], str(i), port) for i in range(2)]
    alone = losses(start([mesh]))[mesh]
    for process in both:
        assert_same(losses(process), alone)


def test_a_mesh_is_read_from_text_and_back():
    shape = MeshShape.parse("data=4, pool=2")
    assert shape == MeshShape(2, 4, 1)
    assert MeshShape.parse(str(shape)) == shape
    assert shape.devices == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool=2,date=4", "unknown mesh axis 'date': did you mean 'data'"),
        ("2x4", "mesh '2x4': expected something like 'pool=2,data=4,model=1'"),
        ("data=0", "data=0 must be positive"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        MeshShape.parse(text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (MeshShape(model=8), "model=8 does not divide n_heads=12; of the smaller ones 1, 2, 4 would"),
        (MeshShape(model=6), "model=6 does not divide n_kv_heads=4; of the smaller ones 1, 2, 4 would"),
        (MeshShape(data=5), "data=5 does not divide d_model=1536; of the smaller ones 1, 2, 3, 4 would"),
        (MeshShape(data=32), "data=32 does not divide the 48 sequences .* of the smaller ones .* 16, 24 would"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_or_the_batch_says_what_would(shape, message):
    with pytest.raises(UserError, match=message):
        shape.check(preset("510m", 32_000), sequences=48)


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="mesh pool=2,data=2,model=1 needs 4 devices, here are 2"):
        make_mesh(MeshShape(2, 2))


def test_left_to_itself_a_pool_gives_every_run_a_device_and_a_lone_run_all_that_divide_its_batch():
    config = preset("tiny", 64)  # with two devices, see conftest.py
    assert fitting(5, config, 16) == MeshShape(2, 1)
    assert fitting(1, config, 16) == MeshShape(1, 2)
    assert fitting(1, config, 7) == MeshShape(1, 1)
