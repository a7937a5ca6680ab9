"""The token store: one domain's tokens, kept once, with document bounds and byte counts.

A store is a directory of three TensorStore arrays (`tokens` [T], `bounds` [D + 1], `bytes` [D]) and `store.json`.
Every document is kept as START, its tokens, and the end-of-text token of its vocabulary, so that each of its tokens,
the first one included, is predicted once from inside the document.
"""

import dataclasses
import json
from collections.abc import Iterable

import numpy as np
import tensorstore as ts
from etils import epath

from mde.data.arrays import open_array
from mde.errors import UserError

START = 0  # begins every document; the padding id of seqio vocabularies, which no text contains
_CHUNK = 1 << 16
_IN_MEMORY = 1 << 24  # a store with no more tokens than this is read once, whole


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive tokens with the number of their document; 0 numbers padding."""

    tokens: np.ndarray
    segments: np.ndarray


class TokenStore:
    """Reads a store.

    Attributes:
      directory: where it is.
      n_tokens: tokens, START and end-of-text included.
      n_documents: documents.
      n_bytes: UTF-8 bytes of the documents' text.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        try:
            about = json.loads((self.directory / "store.json").read_text())
            self.n_tokens: int = about["tokens"]
            self.n_documents: int = about["documents"]
            self.n_bytes: int = about["bytes"]
            self.digest: str = about["digest"]
            opened = _open(self.directory / "tokens")
            self._tokens = opened.read().result() if self.n_tokens <= _IN_MEMORY else opened
            self.bounds = _open(self.directory / "bounds").read().result()
            self.bytes = _open(self.directory / "bytes").read().result()
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{self.directory}: no readable token store here ({e}); run `mde prepare` again") from e

    def read(self, start: int, stop: int) -> Window:
        """Tokens [start, stop) with document numbers that begin at 1; past the end comes padding."""
        end = min(stop, self.n_tokens)
        if not 0 <= start < end:
            raise ValueError(f"tokens {start} to {stop} of {self.n_tokens} in {self.directory}")
        tokens = np.zeros(stop - start, np.int32)
        segments = np.zeros(stop - start, np.int32)
        values = self._tokens[start:end]
        tokens[: end - start] = values if isinstance(values, np.ndarray) else values.read().result()
        documents = np.searchsorted(self.bounds, np.arange(start, end), side="right")
        segments[: end - start] = documents - documents[0] + 1
        return Window(tokens, segments)

    def windows(self, length: int) -> int:
        """How many disjoint windows of `length` predicted tokens the store holds."""
        return max(0, (self.n_tokens - 1) // length)

    def window(self, index: int, length: int) -> Window:
        """Window `index`: `length` + 1 tokens, of which the last is also the next window's first."""
        return self.read(index * length, (index + 1) * length + 1)

    def whole_documents(self, at_least: int) -> tuple[int, int]:
        """The first documents with `at_least` tokens in all: (tokens, bytes), the whole store if it has fewer."""
        documents = min(int(np.searchsorted(self.bounds, at_least)), self.n_documents)
        return int(self.bounds[documents]), int(self.bytes[:documents].sum())


def write(directory: epath.PathLike, documents: Iterable[tuple[np.ndarray, int]], digest: str) -> TokenStore:
    """Writes a store aside and moves it into place, so that a store that exists is whole.

    Args:
      directory: where to; replaced if it exists.
      documents: (tokens, UTF-8 bytes of the text) of each document.
      digest: names the text and the vocabulary that the tokens come from.

    Returns:
      The store, opened.
    """
    directory = epath.Path(directory)
    aside = directory.parent / f"{directory.name}.partial"
    if aside.exists():
        aside.rmtree()
    aside.mkdir(parents=True)
    tokens = _open(aside / "tokens", create=np.int32)
    buffer, bounds, sizes = [], [0], []
    written = buffered = 0
    for document, n_bytes in documents:
        buffer.append(np.concatenate([[START], document]).astype(np.int32))
        buffered += len(buffer[-1])
        bounds.append(written + buffered)
        sizes.append(n_bytes)
        if buffered >= 16 * _CHUNK:
            written, buffer, buffered = _flush(tokens, written, buffer)
    written, _, _ = _flush(tokens, written, buffer)
    for name, values in (("bounds", bounds), ("bytes", sizes)):
        _flush(_open(aside / name, create=np.int64), 0, [np.asarray(values, np.int64)])
    about = {"tokens": written, "documents": len(sizes), "bytes": int(sum(sizes)), "digest": digest}
    (aside / "store.json").write_text(json.dumps(about))
    if directory.exists():
        directory.rmtree()
    aside.rename(directory)
    return TokenStore(directory)


def _flush(array: ts.TensorStore, written: int, buffer: list[np.ndarray]) -> tuple[int, list, int]:
    """Appends the buffer to an array of length `written`; returns the new length and an empty buffer."""
    if not buffer:
        return written, [], 0
    values = np.concatenate(buffer)
    end = written + len(values)
    array.resize(exclusive_max=[end]).result()[written:end].write(values).result()
    return end, [], 0


def _open(path: epath.Path, create: type | None = None) -> ts.TensorStore:
    return open_array(path, create, _CHUNK)
