"""A TPU v6e slice: 64 chips on 16 hosts."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Spot, in a zone that has them."""
    return ConfigDict(
        {
            "accelerator": "tpu",
            "type": "v6e-64",
            "runtime": "v2-alpha-tpuv6e",
            "gke_accelerator": "tpu-v6e-slice",
            "topology": "8x8",
            "hosts": 16,
            "chips_per_host": 4,
            "memory_gb": 32,
            "zone": "us-east5-b",
            "spot": True,
        }
    )
