"""A host without accelerators, to try a launcher out."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """8 cores, with the memory of one as what a model can have."""
    return ConfigDict({"accelerator": "cpu", "type": "cpu", "hosts": 1, "chips_per_host": 8, "memory_gb": 4})
