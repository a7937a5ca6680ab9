"""The versions that a result depends on."""

import platform
from importlib import metadata

PACKAGES = (
    *("mde", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "grain", "numpy", "pandas", "scipy"),
    *("scikit-learn", "lightgbm", "plotly", "seqio", "tensorflow", "tensorflow-datasets"),
)


def versions() -> dict[str, str]:
    """By name, the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
