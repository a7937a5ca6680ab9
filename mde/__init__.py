"""Finds the mixture of text domains that a language model should be pre-trained on.

The public names are imported when they are first used, so `import mde` costs nothing and needs neither JAX nor
TensorFlow.
"""

import importlib
import os
from typing import Any

# Buckets are reached by fsspec, whatever else is installed: TensorFlow knows no s3:// and takes seconds to import. What
# another process has written is seen at once.
os.environ.setdefault("EPATH_USE_TF", "false")
for _scheme in ("GCS", "S3"):
    os.environ.setdefault(f"FSSPEC_{_scheme}", '{"use_listings_cache": false}')

_PUBLIC = {
    "Study": "mde.api",
    "Recommendation": "mde.api",
    "optimize": "mde.api",
    "Constraints": "mde.optimization.constraints",
    "Search": "mde.results.recommendation",
    "UserError": "mde.errors",
    # the two evaluators, prepared or in one call, and the best mixture of experts
    "mixture_nll": "mde.evaluation",
    "MixtureLosses": "mde.evaluation",
    "merged_nll": "mde.evaluation",
    "MergedLosses": "mde.evaluation",
    "optimum": "mde.evaluation",
    "bootstrap": "mde.evaluation",
    # scikit-learn estimators and what they are fitted on
    "Auto": "mde.regression.auto",
    "Ridge": "mde.regression.ridge",
    "GradientBoosting": "mde.regression.estimators",
    "GaussianProcess": "mde.regression.gaussian_process",
    "MixingLaw": "mde.regression.laws",
    "BiMix": "mde.regression.laws",
    "PowerLaw": "mde.regression.laws",
    "assemble": "mde.regression.features",
    "read_swarm": "mde.regression.swarm",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mde' has no attribute {name!r}; public are {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
