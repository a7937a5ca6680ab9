"""A host with 8 H100 GPUs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """On demand; `--set=partition=…` says which of a Slurm cluster."""
    return ConfigDict(
        {
            "accelerator": "gpu",
            "type": "H100",
            "gke_accelerator": "nvidia-h100-80gb",
            "hosts": 1,
            "chips_per_host": 8,
            "memory_gb": 80,
        }
    )
