"""Near duplicates: documents that share most of their word shingles."""

import re
import zlib

import numpy as np
from datasketch import MinHash, MinHashLSH

_WORD = re.compile(r"\w+")
_SHINGLE__WORDS = 5
_PERMUTATIONS = 64
# One fixed multiplier a word of the shingle: odd 64-bit constants, so that the order of the words counts.
_MULTIPLIERS = np.random.RandomState(0).randint(1, 2**63, size=_SHINGLE__WORDS, dtype=np.uint64) | np.uint64(1)


class MinHasher:
    """Makes MinHash signatures of sets of 32-bit hashes; seeded, so equal sets have equal ones everywhere."""

    def __init__(self, permutations: int):
        # Drawn once; every signature shares it.
        self._permutations = MinHash(num_perm=permutations, seed=1).permutations
        self._count = permutations

    def minhash(self, hashes: np.ndarray) -> MinHash:
        """The signature of a set of hashes; the share of equal entries of two estimates their Jaccard similarity."""
        signature = MinHash(permutations=self._permutations, num_perm=self._count, scheme="affine32", hashfunc=int)
        signature.update_batch(hashes.tolist())
        return signature


class NearDuplicates:
    """Remembers documents, and tells whether a new one is nearly one of them.

    Two documents are nearly the same where the Jaccard similarity of their sets of 5-word shingles, estimated by
    MinHash, reaches the threshold. Order matters: the first of a group is the one that is new. Everything is seeded, so
    the same documents in the same order always give the same answers.
    """

    def __init__(self, threshold: float = 0.7):
        self._threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._signatures: list[MinHash] = []
        self._hasher = MinHasher(_PERMUTATIONS)

    def is_new(self, text: str) -> bool:
        """Whether no earlier document is nearly `text`; remembers it if so."""
        signature = self._hasher.minhash(_shingles(text))
        # The index may propose documents below the threshold, hence the second look.
        near = (self._signatures[i] for i in self._index.query(signature))
        if any(signature.jaccard(other) >= self._threshold for other in near):
            return False
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(signature)
        return True


def _shingles(text: str) -> np.ndarray:
    """The distinct 32-bit hashes of the text's 5-word shingles (of all its words, where it has fewer)."""
    words = _WORD.findall(text.lower())
    words += [""] * (_SHINGLE__WORDS - len(words))
    hashes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, _SHINGLE__WORDS)
    return np.unique((windows * _MULTIPLIERS).sum(axis=1, dtype=np.uint64) >> np.uint64(32))
