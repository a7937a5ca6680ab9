"""Two virtual devices for every test, set before anything imports JAX, and the same examples of properties."""

import os

from hypothesis import settings

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("exploring", print_blob=True)
settings.load_profile("repeatable")  # --hypothesis-profile=exploring for others
