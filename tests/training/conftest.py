"""What tests of pools have in common."""

import pytest

from mde.training import pool


@pytest.fixture(scope="module")
def compiled_once():
    """Every pool compiles its step anew; here the same step on as many devices is compiled once."""
    patch, programs, on_pool = pytest.MonkeyPatch(), {}, pool.on_pool

    def shared(mesh, function, donate=True, out_shardings=None):
        key = (mesh, getattr(function, "func", function), getattr(function, "args", ()), donate)
        return programs.setdefault(key, on_pool(mesh, function, donate, out_shardings))

    patch.setattr(pool, "on_pool", shared)
    yield
    patch.undo()
