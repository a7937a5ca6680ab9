"""Two TPU v5e slices of 16 chips each, joined by the data-centre network (multislice)."""

from ml_collections import ConfigDict

from launch.machines import v5e_16


def get_config() -> ConfigDict:
    """The slice, twice."""
    config = v5e_16.get_config()
    config.update({"slices": 2})
    return config
