"""Two virtual devices for every test, set before anything imports JAX, the same examples of properties, and buckets."""

import itertools
import os
import sys

import psutil
import pytest
import standin_gcs
from hypothesis import settings

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("exploring", print_blob=True)
settings.load_profile("repeatable")  # --hypothesis-profile=exploring for others


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Compiled programs of the modules before are dropped once they take gigabytes."""
    yield
    if "jax" in sys.modules and psutil.Process().memory_info().rss > 4 * 2**30:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def _storage():
    """Stands in for Google Cloud Storage, here and in processes that tests start; clients remember where."""
    with standin_gcs.running() as environment:
        os.environ.update(environment)
        yield itertools.count()


@pytest.fixture
def bucket(_storage) -> str:
    """The address of an empty bucket."""
    return f"gs://bucket-{next(_storage)}"
