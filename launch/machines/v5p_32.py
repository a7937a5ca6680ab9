"""A TPU v5p slice: 16 chips (of two cores each) on 4 hosts."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Spot, in a zone that has them."""
    return ConfigDict(
        {
            "accelerator": "tpu",
            "type": "v5p-32",
            "runtime": "v2-alpha-tpuv5",
            "gke_accelerator": "tpu-v5p-slice",
            "topology": "2x2x4",
            "hosts": 4,
            "chips_per_host": 4,
            "memory_gb": 95,
            "zone": "us-east5-a",
            "spot": True,
        }
    )
