"""The tokenizer of a study: a SentencePiece model that gives every text back exactly."""

import hashlib
import heapq
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from etils import epath

from mde.errors import UserError

if TYPE_CHECKING:
    import seqio

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_SMALLEST = 256 + 3 + 1  # the bytes, the three special pieces, the newline

# Chunks, not documents, are drawn: a few long documents must not be all that is seen of a domain. SentencePiece skips
# what is longer than its `max_sentence_length`.
_CHUNK_BYTES = 4_000


def train_sentencepiece(
    texts: Mapping[str, Iterable[str]],
    path: str | os.PathLike,
    vocab_size: int,
    *,
    sample_bytes: int = 6_000_000,
    seed: int = 0,
) -> None:
    """Train a byte-pair encoding and write it to `path`, whole or not at all.

    Bytes stand in for rare characters, so nothing becomes `unk`; spaces, tabs and newlines are kept as they are. The
    one character that does not come back is U+2581, SentencePiece's own sign for a space, which is read as one.

    Args:
        texts: the texts of each domain, read once.
        path: the model's file; may be in a bucket.
        vocab_size: pieces, the 256 bytes and 3 special ones (pad 0, eos 1, unk 2) among them.
        sample_bytes: UTF-8 bytes to train on, the same for every domain; a smaller domain gives all it has.
        seed: picks the sample. The same texts, in any order, and the same seed give the same file.

    Raises:
        UserError: there is no text, or it does not support so many pieces, or so few.
    """
    import sentencepiece

    if vocab_size < _SMALLEST:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and special pieces alone take {_SMALLEST}")
    share = sample_bytes // max(len(texts), 1)
    sample = [chunk for name in sorted(texts) for chunk in _sample(texts[name], share, seed)]
    if not sample:
        raise UserError("no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",  # a tenth of the time of `unigram`, and more bytes a token
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,  # indentation is worth a piece
            user_defined_symbols=["\n"],
            split_digits=True,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            max_sentence_length=2 * _CHUNK_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "Vocabulary size" not in str(error):  # anything else is no fault of the user's
            raise
        raise UserError(f"cannot train {vocab_size} pieces on {sum(map(len, sample))} characters: {error}") from error
    _write(epath.Path(path), model.getvalue())


def load(path: str | os.PathLike) -> "seqio.Vocabulary":
    """The vocabulary whose SentencePiece model is at `path`.

    Raises:
        UserError: there is no such file.
    """
    import seqio

    if not epath.Path(path).exists():
        raise UserError(f"no tokenizer at {os.fspath(path)}")
    return seqio.SentencePieceVocabulary(os.fspath(path))


def _sample(texts: Iterable[str], size: int, seed: int) -> list[str]:
    """Chunks of the texts, those with the smallest hashes, of `size` UTF-8 bytes together (the last may go past it)."""
    heap: list[tuple[int, str]] = []  # the largest hash on top; negated, as heapq keeps the smallest there
    total = 0
    for chunk in (chunk for text in texts for chunk in _chunks(text)):
        digest = hashlib.blake2b(f"{seed}\0{chunk}".encode(), digest_size=8).digest()
        heapq.heappush(heap, (-int.from_bytes(digest, "big"), chunk))
        total += len(chunk.encode())
        while total - len(heap[0][1].encode()) >= size:
            total -= len(heapq.heappop(heap)[1].encode())
    return [chunk for _, chunk in sorted(heap, reverse=True)]


def _chunks(text: str) -> Iterator[str]:
    """The text in runs of whole lines of some `_CHUNK_BYTES`; a line longer than that is cut."""
    waiting: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _CHUNK_BYTES):
            piece = line[start : start + _CHUNK_BYTES]
            if waiting and size + len(piece) > _CHUNK_BYTES:
                yield "".join(waiting)
                waiting, size = [], 0
            waiting.append(piece)
            size += len(piece)
    if waiting:
        yield "".join(waiting)


def _write(path: epath.Path, content: bytes) -> None:
    """Written aside, then renamed, so that a file under this name is always complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}"
    aside.write_bytes(content)
    aside.replace(path)
