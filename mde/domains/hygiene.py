"""Duplicates and overlap at the scale of a corpus: fingerprints of documents, and what follows from them.

A document leaves a digest and a MinHash signature behind; its text is never looked at again. All arrays are NumPy's:
300 bytes a document on disk, some 100 in memory at a time, where an index of Python objects takes thousands.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from mde.domains.dedup import MinHasher

BANDS, ROWS = 16, 4  # 64 permutations; a pair of similarity .7 shares a band with probability .988, of .3 with .12
PERMUTATIONS = BANDS * ROWS
_PAIRS = 1 << 16  # pairs compared at a time
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio, odd
_SHINGLE_WORDS = 5
# A word is a run of letters, digits and underscores; any byte beyond ASCII counts as a letter.
_IN_WORD = np.array([chr(byte).isalnum() or byte == ord("_") or byte > 127 for byte in range(256)])
_LONGEST_WORD = 64  # from there on, places in a word are not told apart
_PLACES = np.random.RandomState(0).randint(1, 2**63, size=_LONGEST_WORD, dtype=np.uint64) | np.uint64(1)
_HALF = 0.5


def digest(data: bytes) -> int:
    """64 bits of a document: equal documents, and nearly no others, have equal ones."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


class Signer:
    """Makes MinHash signatures of texts' 5-word shingles."""

    def __init__(self) -> None:
        self._hasher = MinHasher(PERMUTATIONS)

    def __call__(self, text: str) -> np.ndarray:
        """[PERMUTATIONS] uint32; the share of equal entries of two estimates the texts' Jaccard similarity."""
        shingles = _distinct(grams(text, _SHINGLE_WORDS) >> np.uint64(32))
        return np.asarray(self._hasher.minhash(shingles).hashvalues, np.uint32)


def first_of_equals(digests_N: np.ndarray) -> np.ndarray:
    """[N] bool: whether no earlier document has the same digest."""
    first_N = np.zeros(len(digests_N), bool)
    first_N[np.unique(digests_N, return_index=True)[1]] = True
    return first_N


def first_of_similar(
    signatures: Sequence[Callable[[], np.ndarray]], rows_N: np.ndarray, threshold: float
) -> np.ndarray:
    """Whether a document is the first of those it is nearly the same as.

    Documents that share a band of their signatures are compared with the first and the one before in their bucket;
    where the estimated Jaccard similarity of their 5-word shingles reaches the threshold they are joined, and so is
    what is joined to either. Of each group the first stays.

    Args:
        signatures: each opens an array [n, PERMUTATIONS] uint32, which together hold a row for every document. They are
            opened one at a time: the pages of a memory map are resident until it is closed.
        rows_N: the documents to look at, as rows of the signatures together, first come first kept.
        threshold: of the similarity.

    Returns:
        [N] bool.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    N = len(rows_N)
    starts = np.cumsum([0, *(len(part()) for part in signatures)])
    joined: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    for band in range(BANDS):
        columns = slice(band * ROWS, (band + 1) * ROWS)
        keys = np.concatenate([_key(part()[:, columns]) for part in signatures] or [np.zeros(0, np.uint64)])[rows_N]
        order = np.argsort(keys, kind="stable")  # within a bucket, first come first
        same = keys[order][1:] == keys[order][:-1]
        bucket = np.concatenate([[0], np.flatnonzero(~same) + 1])
        head = np.repeat(bucket, np.diff(np.append(bucket, N)))[1:][same] if N else np.zeros(0, np.int64)
        later = np.flatnonzero(same) + 1
        pairs = np.concatenate(
            [np.stack([order[head], order[later]], 1), np.stack([order[later - 1], order[later]], 1)]
        )
        pairs = np.unique(pairs, axis=0)
        for start in range(0, len(pairs), _PAIRS):
            block = pairs[start : start + _PAIRS]
            left, right = (_gather(signatures, starts, rows_N[block[:, side]]) for side in (0, 1))
            joined.append(block[(left == right).mean(axis=1) >= threshold])
    edges = np.unique(np.concatenate(joined), axis=0)
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (N, N))
    _, group_N = connected_components(graph, directed=False)
    first_N = np.zeros(N, bool)
    first_N[np.unique(group_N, return_index=True)[1]] = True
    return first_N


def _key(band: np.ndarray) -> np.ndarray:
    """[n] uint64 of [n, ROWS] uint32; that unlike bands meet in a key costs a comparison, no more."""
    key = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        key = (key + band[:, column]) * _MULTIPLIER
        key ^= key >> np.uint64(29)
    return key


def _gather(parts: Sequence[Callable[[], np.ndarray]], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of the parts as if they were one array."""
    found = np.empty((len(rows), PERMUTATIONS), np.uint32)
    owner = np.searchsorted(starts, rows, side="right") - 1
    for part in np.unique(owner):
        mine = owner == part
        found[mine] = parts[part]()[rows[mine] - starts[part]]
    return found


def grams(text: str, length: int) -> np.ndarray:
    """The distinct 64-bit hashes of the text's runs of `length` words; of all its words, where it has fewer."""
    hashes = _words(text.lower().encode())
    hashes = np.concatenate([hashes, np.zeros(max(0, length - len(hashes)), np.uint64)])
    total = np.zeros(len(hashes) - length + 1, np.uint64)
    for i in range(length):  # a polynomial in the multiplier, so that the order of the words counts
        total = total * _MULTIPLIER + hashes[i : i + len(total)]
    total ^= total >> np.uint64(32)
    return _distinct(total * _MULTIPLIER)


def _distinct(values: np.ndarray) -> np.ndarray:
    """What `np.unique` gives; for the few hundred values of a document that one takes eight times as long."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])]


def _words(data: bytes) -> np.ndarray:
    """[words] uint64: hashes of the words of UTF-8 text, all at once (a loop over words takes ten times as long)."""
    values = np.frombuffer(data, np.uint8)
    inside = np.concatenate([[False], _IN_WORD[values], [False]])
    starts, stops = np.flatnonzero(inside[1:] & ~inside[:-1]), np.flatnonzero(~inside[1:] & inside[:-1])
    if not len(starts):
        return np.zeros(0, np.uint64)
    lengths = stops - starts
    bounds = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(bounds, lengths)
    letters = values[_IN_WORD[values]].astype(np.uint64) + np.uint64(1)
    total = np.add.reduceat(letters * _PLACES[np.minimum(place, _LONGEST_WORD - 1)], bounds)
    return (total ^ (total >> np.uint64(32))) * _MULTIPLIER


class Overlap:
    """Tells whether a document repeats evaluation text: half of its own runs of words, or half of a document's there.

    (The second is a long page with an evaluation document in it.) Runs of 13 words are what GPT-3 took (arXiv
    2005.14165, appendix C); halves, because one run alone is often a licence's or a quotation's.
    """

    def __init__(self, grams_G: np.ndarray, owners_G: np.ndarray, length: int):
        """Of the sorted runs of all evaluation documents, and the number of the document that each is from."""
        self._grams, self._owners, self._length = grams_G, owners_G, length
        self._sizes = np.bincount(owners_G) if len(owners_G) else np.zeros(1, np.int64)

    def __call__(self, text: str) -> bool:
        """Whether the text overlaps."""
        if not len(self._grams):
            return False
        own = grams(text, self._length)
        found = self._places(own)
        if not len(found):
            return False
        return len(found) >= _HALF * len(own) or len(self._owned(found)) > 0

    def documents(self, text: str) -> np.ndarray:
        """Numbers of the evaluation documents that the text has half of."""
        return self._owned(self._places(grams(text, self._length))) if len(self._grams) else np.zeros(0, np.int32)

    def _places(self, own: np.ndarray) -> np.ndarray:
        """Where the runs of a text are among those of the evaluation text."""
        place = np.searchsorted(self._grams, own)
        place[place == len(self._grams)] = 0
        return place[self._grams[place] == own]

    def _owned(self, found: np.ndarray) -> np.ndarray:
        owners, counts = np.unique(self._owners[found], return_counts=True)
        return owners[counts >= _HALF * self._sizes[owners]]


def index(grams_by_document: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sorted distinct runs of documents, and which document each is from (the first of several)."""
    if not grams_by_document:
        return np.zeros(0, np.uint64), np.zeros(0, np.int32)
    owners = np.repeat(np.arange(len(grams_by_document), dtype=np.int32), list(map(len, grams_by_document)))
    values, first = np.unique(np.concatenate(grams_by_document), return_index=True)
    return values, owners[first]
