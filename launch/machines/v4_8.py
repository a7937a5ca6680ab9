"""A TPU v4 host: 4 chips."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Spot, in a zone that has them."""
    return ConfigDict(
        {
            "accelerator": "tpu",
            "type": "v4-8",
            "runtime": "tpu-ubuntu2204-base",
            "gke_accelerator": "tpu-v4-podslice",
            "topology": "2x2x1",
            "hosts": 1,
            "chips_per_host": 4,
            "memory_gb": 32,
            "zone": "us-central2-b",
            "spot": True,
        }
    )
