"""Small inputs that tests of several rooms share."""

from pathlib import Path

import numpy as np

from mde.data import tokens


def write_store(directory: Path, documents: list, digest: str = "digest") -> tokens.TokenStore:
    """A store of these documents; each is said to have ten bytes a token, which no other count comes to."""
    return tokens.write(directory, [(np.asarray(d, np.int32), 10 * len(d)) for d in documents], digest)


def random_documents(count: int, seed: int, longest: int = 40, vocab_size: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size, rng.integers(1, longest)) for _ in range(count)]
