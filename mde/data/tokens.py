"""The token store: one domain's tokens, kept once, with document bounds and byte counts.

A store is a directory of three TensorStore arrays (`tokens` [T], `bounds` [D + 1], `bytes` [D]) and `store.json`.
Every document is kept as START, its tokens, and the end-of-text token of its vocabulary, so that each of its tokens,
the first one included, is predicted once from inside the document.

The documents of an end task are START, a context and an answer, without end-of-text. Its store has two arrays more,
`answers` [D], where in its document each answer begins, and `examples` [D], which example of the task it belongs to.
"""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorstore as ts
from etils import epath

from mde.buckets import is_bucket, reading, writing
from mde.data.arrays import open_array
from mde.errors import UserError, reason

START = 0  # begins every document; the padding id of seqio vocabularies, which no text contains
_ABOUT = "store.json"
_END_TASK = ("answers", "examples")
_CHUNK = 1 << 16
_BLOCK = 1 << 20  # tokens that are written at a time
_IN_MEMORY = 1 << 24  # a store with no more tokens than this is read once, whole


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive tokens with the number of their document; 0 numbers padding.

    The tokens of an end task's context have their document's number below zero: a model reads them, and they are not
    scored (see `mde.models.decoder.target_mask`).
    """

    tokens: np.ndarray
    segments: np.ndarray


class Answer(NamedTuple):
    """A document of an end task.

    Attributes:
      tokens: START, context and answer.
      begins: the position of the answer's first token.
      bytes: UTF-8 bytes of the answer's text.
      example: number of the example, 0 for a task's first.
    """

    tokens: np.ndarray
    begins: int
    bytes: int
    example: int


class TokenStore:
    """Reads a store.

    Attributes:
      directory: where it is.
      n_tokens: tokens, START and end-of-text included.
      n_documents: documents.
      n_bytes: UTF-8 bytes of the documents' text.
      bounds: [D + 1] where documents begin and end.
      bytes: [D] UTF-8 bytes of each document's text; of an end task's, of the answers alone.
      end_task: whether it holds an end task's answers, each after its context.
      answers: [D] tokens of each document before its answer; empty but for an end task.
      examples: [D] the example that each document belongs to, ascending; likewise.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        with _whole(self.directory):
            about = json.loads((self.directory / _ABOUT).read_text())
            self.n_tokens: int = about["tokens"]
            self.n_documents: int = about["documents"]
            self.n_bytes: int = about["bytes"]
            self.digest: str = about["digest"]
            opened = _open(self.directory / "tokens")
            self._tokens = opened.read().result() if self.n_tokens <= _IN_MEMORY else opened
            self.bounds = _open(self.directory / "bounds").read().result()
            self.bytes = _open(self.directory / "bytes").read().result()
            self.end_task: bool = about.get("end_task", False)
            self.answers, self.examples = (
                _open(self.directory / name).read().result() if self.end_task else np.zeros(0, np.int64)
                for name in _END_TASK
            )

    def read(self, start: int, stop: int) -> Window:
        """Tokens [start, stop) with document numbers that begin at 1; past the end comes padding."""
        end = min(stop, self.n_tokens)
        if not 0 <= start < end:
            raise ValueError(f"tokens {start} to {stop} of {self.n_tokens} in {self.directory}")
        tokens = np.zeros(stop - start, np.int32)
        segments = np.zeros(stop - start, np.int32)
        values = self._tokens[start:end]
        with _whole(self.directory):
            tokens[: end - start] = values if isinstance(values, np.ndarray) else values.read().result()
        documents = np.searchsorted(self.bounds, np.arange(start, end), side="right")
        segments[: end - start] = documents - documents[0] + 1
        if self.end_task:
            before = np.arange(start, end) < (self.bounds[:-1] + self.answers)[documents - 1]
            segments[: end - start][before] *= -1
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

    def documents(self, first: int, stop: int) -> "TokenStore":
        """Documents [first, stop) as a store of their own; no token is copied."""
        view = copy.copy(self)
        begin, end = map(int, self.bounds[[first, stop]])
        tokens = self._tokens[begin:end]
        view._tokens = tokens if isinstance(tokens, np.ndarray) else tokens[ts.d[0].translate_to[0]]
        view.bounds, view.bytes = self.bounds[first : stop + 1] - begin, self.bytes[first:stop]
        view.n_tokens, view.n_documents, view.n_bytes = end - begin, stop - first, int(view.bytes.sum())
        view.digest = f"{self.digest}[{first}:{stop}]"
        return view


@contextlib.contextmanager
def _whole(directory: epath.Path) -> Iterator[None]:
    """Says in one line that a store cannot be read just now, or else that there is none, or a damaged one."""
    try:
        with reading(directory):
            yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{directory}: no readable token store here ({reason(e)}); run `mde prepare` again") from e


# Documents one after the other: their tokens (START and end-of-text included), and of each its tokens and its bytes.
Block = tuple[np.ndarray, np.ndarray, np.ndarray]


def write(directory: epath.PathLike, documents: Iterable[tuple[np.ndarray, int]], digest: str) -> TokenStore:
    """Writes a store of documents without START, given as (tokens, UTF-8 bytes of the text); see `write_blocks`."""
    return write_blocks(directory, _blocks(documents), digest)


def _blocks(documents: Iterable[tuple[np.ndarray, int]]) -> Iterator[Block]:
    """The documents, START before each, in blocks of about `_BLOCK` tokens."""
    tokens: list[np.ndarray] = []
    sizes: list[int] = []
    buffered = 0
    for document, n_bytes in documents:
        tokens.append(np.concatenate([[START], document]).astype(np.int32))
        sizes.append(n_bytes)
        buffered += len(tokens[-1])
        if buffered >= _BLOCK:
            yield np.concatenate(tokens), np.array(list(map(len, tokens))), np.array(sizes)
            tokens, sizes, buffered = [], [], 0
    if tokens:
        yield np.concatenate(tokens), np.array(list(map(len, tokens))), np.array(sizes)


def write_answers(
    directory: epath.PathLike, answers: Sequence[Answer], digest: str, dtype: type[np.integer] = np.int32
) -> TokenStore:
    """Writes the store of an end task; see `write_blocks`."""
    tokens, begins, sizes, examples = zip(*answers, strict=True)
    block = np.concatenate(tokens).astype(dtype), np.array(list(map(len, tokens))), np.array(sizes)
    return write_blocks(directory, [block], digest, dtype, (np.array(begins), np.array(examples)))


def write_blocks(
    directory: epath.PathLike,
    blocks: Iterable[Block],
    digest: str,
    dtype: type[np.integer] = np.int32,
    end_task: Sequence[np.ndarray] = (),
) -> TokenStore:
    """Writes a store aside and moves it into place; a bucket moves no directories, there it is written in place.

    `store.json` comes last, so that a store that has it is whole.

    Args:
      directory: where to; replaced if it exists.
      blocks: the documents, in any number of blocks; a block's tokens may be those of no whole number of documents.
      digest: names the text and the vocabulary that the tokens come from.
      dtype: that holds every token.
      end_task: the arrays `answers` and `examples` of an end task.

    Returns:
      The store, opened.

    Raises:
      UserError: the place cannot be written to.
    """
    directory = epath.Path(directory)
    aside = directory if is_bucket(directory) else directory.parent / f"{directory.name}.partial"
    with writing(directory):
        if aside.exists():
            (aside / _ABOUT).unlink(missing_ok=True)  # first: what is left must not look whole
            aside.rmtree(missing_ok=True)
        aside.mkdir(parents=True)
        tokens = _open(aside / "tokens", create=dtype)
    lengths, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    written = 0
    for block_tokens, block_lengths, block_sizes in blocks:
        with writing(directory):  # and not around what reads the blocks
            written = _append(tokens, written, block_tokens)
        lengths.append(block_lengths)
        sizes.append(block_sizes)
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    n_bytes = np.concatenate(sizes)
    about = {"tokens": written, "documents": len(n_bytes), "bytes": int(n_bytes.sum()), "digest": digest}
    about |= {"end_task": True} if end_task else {}
    with writing(directory):
        _append(_open(aside / "bounds", create=np.int64), 0, bounds)
        _append(_open(aside / "bytes", create=np.int64), 0, n_bytes)
        for name, values in zip(_END_TASK, end_task, strict=False):
            _append(_open(aside / name, create=np.int64), 0, values)
        (aside / _ABOUT).write_text(json.dumps(about))
        if aside != directory:
            if directory.exists():
                directory.rmtree()
            aside.rename(directory)
    return TokenStore(directory)


def _append(array: ts.TensorStore, written: int, values: np.ndarray) -> int:
    """Appends values to an array of length `written`; returns the new length."""
    end = written + len(values)
    if len(values):
        array.resize(exclusive_max=[end]).result()[written:end].write(values).result()
    return end


def _open(path: epath.Path, create: type | None = None) -> ts.TensorStore:
    return open_array(path, create, _CHUNK)
