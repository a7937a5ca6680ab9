"""A TPU v5e slice: 16 chips on 4 hosts."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Spot, in a zone that has them."""
    return ConfigDict(
        {
            "accelerator": "tpu",
            "type": "v5litepod-16",
            "runtime": "v2-alpha-tpuv5-lite",
            "gke_accelerator": "tpu-v5-lite-podslice",
            "topology": "4x4",
            "hosts": 4,
            "chips_per_host": 4,
            "memory_gb": 16,
            "zone": "us-west4-a",
            "spot": True,
        }
    )
