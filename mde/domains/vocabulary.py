"""The tokenizer of a study: a SentencePiece model that gives every text back exactly."""

import hashlib
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence

from mde.errors import UserError

SAMPLE_BYTES = 6_000_000  # UTF-8 bytes to train on, shared evenly; a smaller domain gives all it has
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_SMALLEST = 256 + 3 + 1  # the bytes, the three special pieces, the newline

# Chunks, not documents, are drawn: a few long documents must not be all that is seen of a domain. SentencePiece skips
# what is longer than its `max_sentence_length`.
_CHUNK_BYTES = 4_000


def train_sentencepiece(samples: Mapping[str, Sequence[str]], vocab_size: int) -> bytes:
    """Train a byte-pair encoding; returns the content of its file.

    Bytes stand in for rare characters, so nothing becomes `unk`; spaces, tabs and newlines are kept as they are. The
    one character that does not come back is U+2581, SentencePiece's own sign for a space, which is read as one.

    Args:
        samples: chunks of text of each domain, as `Sample` draws them.
        vocab_size: pieces, the 256 bytes and 3 special ones (pad 0, eos 1, unk 2) among them.

    Raises:
        UserError: there is no text, or it does not support so many pieces, or so few.
    """
    import sentencepiece

    if vocab_size < _SMALLEST:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and special pieces alone take {_SMALLEST}")
    sample = [chunk for name in sorted(samples) for chunk in samples[name]]
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
    return model.getvalue()


class Sample:
    """Chunks of texts, those with the smallest hashes, of `size` UTF-8 bytes together (the last may go past it).

    So the same texts, in any order and from any number of samples added up, and the same seed give the same chunks.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed, self._total = size, seed, 0
        self._heap: list[tuple[int, str]] = []  # the largest hash on top; negated, as heapq keeps the smallest there

    def add(self, text: str) -> None:
        """Takes in a text."""
        for chunk in _chunks(text):
            self.add_chunk(chunk)

    def add_chunk(self, chunk: str) -> None:
        """Takes in a chunk of another sample."""
        data = chunk.encode()
        found = hashlib.blake2b(f"{self._seed}\0".encode() + data, digest_size=8).digest()
        entry = (-int.from_bytes(found, "big"), chunk)
        if self._total >= self._size and self._heap and entry < self._heap[0]:
            return
        heapq.heappush(self._heap, entry)
        self._total += len(data)
        while self._total - len(self._heap[0][1].encode()) >= self._size:
            self._total -= len(heapq.heappop(self._heap)[1].encode())

    def chunks(self) -> list[str]:
        """What was drawn, smallest hash first."""
        return [chunk for _, chunk in sorted(self._heap, reverse=True)]


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
