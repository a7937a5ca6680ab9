"""Files of text, read as a stream: blocks of bytes, lines, records. What is wrong with a file is told, not raised.

Nothing here holds more than one record and one block in memory, and nothing imports TensorFlow.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

_BLOCK = 1 << 20
_ZSTD_BLOCK = 1 << 14  # compressed bytes at a time: a block of zeros may be thousands of times as long
_WINDOW = 1 << 31  # the longest window of `zstd --long=31`
GZIP, ZSTD = (".gz",), (".zst", ".zstd")


class Piece(NamedTuple):
    """A part of a file: bytes [start, stop) of plain text, row groups [start, stop) of Parquet, else the whole file.

    The stamp is another one when the file has changed.
    """

    path: str
    start: int = 0
    stop: int | None = None
    stamp: str = ""


class Record(NamedTuple):
    """What stands in one place of a file: a JSON object, a row or a text; lines and rows count from 1."""

    line: int
    value: Any


class Problem(NamedTuple):
    """Something that gives no document: where it is, which of `REASONS`, and what exactly is wrong."""

    path: str
    line: int
    reason: str
    detail: str


# Why a place of a file gives no document, as the columns of the hygiene table are called.
REASONS = ("broken_file", "invalid_utf8", "not_json", "missing_field", "too_large", "empty", "not_a_choice")


class _BrokenError(Exception):
    """The file ends too early or cannot be decompressed."""


def blocks(piece: Piece) -> Iterator[bytes]:
    """The decompressed bytes of a piece; of a range, the lines that begin in it."""
    try:
        with epath.Path(piece.path).open("rb") as file:
            if piece.path.endswith(ZSTD):
                yield from _zstd(file)
            elif piece.path.endswith(GZIP):
                unpacked = gzip.GzipFile(fileobj=file)
                yield from iter(lambda: unpacked.read1(_BLOCK), b"")  # what comes before a break
            elif piece.stop is None:
                yield from iter(lambda: file.read(_BLOCK), b"")
            else:
                yield from _whole_lines(file, piece.start, piece.stop)
    except (EOFError, OSError, zlib.error) as error:  # a bad gzip frame is an OSError
        raise _BrokenError(str(error)) from error


def _zstd(file: Any) -> Iterator[bytes]:
    """All frames of a zstd file; `stream_reader` would take a truncated one for a whole one."""
    import zstandard

    decoder, ended = zstandard.ZstdDecompressor(max_window_size=_WINDOW), True
    frame = decoder.decompressobj()
    try:
        for block in iter(lambda: file.read(_ZSTD_BLOCK), b""):
            while block:
                if frame.eof:
                    frame = decoder.decompressobj()
                yield frame.decompress(block)
                ended, block = frame.eof, frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise _BrokenError(str(error)) from error
    if not ended:
        raise _BrokenError("the file ends within a zstd frame")


def _whole_lines(file: Any, start: int, stop: int) -> Iterator[bytes]:
    """The lines that begin in [start, stop): of neighbouring ranges each line belongs to one."""
    position = start
    if start:
        file.seek(start - 1)
        position -= 1
        while chunk := file.readline(_BLOCK):
            position += len(chunk)
            if chunk.endswith(b"\n"):
                break
    last = b"\n"
    while position < stop and (block := file.read(min(_BLOCK, stop - position))):
        yield block
        position, last = position + len(block), block[-1:]
    while last != b"\n" and (chunk := file.readline(_BLOCK)):
        yield chunk
        last = chunk[-1:]


def lines(stream: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    """The lines of a stream without their newlines; None stands for one of more than `limit` bytes."""
    waiting: list[bytes] = []
    size = 0
    for block in stream:
        first, *others = block.split(b"\n")
        size += len(first)
        waiting = [*waiting, first] if size <= limit else []
        if not others:
            continue
        yield b"".join(waiting) if size <= limit else None
        for line in others[:-1]:
            yield line if len(line) <= limit else None
        waiting, size = [others[-1]], len(others[-1])
    if size:
        yield b"".join(waiting) if size <= limit else None


def json_records(piece: Piece, limit: int) -> Iterator[Record | Problem]:
    """One JSON object a line; blank lines are none. A record's value is a dict."""
    first = _lines_before(piece)
    number = 0
    try:
        for number, line in enumerate(lines(blocks(piece), limit), start=1):
            if line is None:
                yield Problem(piece.path, first() + number, "too_large", f"a line of more than {limit:,} bytes")
            elif line and not line.isspace():
                try:
                    value = json.loads(line.decode())
                except UnicodeDecodeError as error:
                    yield Problem(piece.path, first() + number, "invalid_utf8", str(error))
                except (ValueError, RecursionError) as error:
                    yield Problem(piece.path, first() + number, "not_json", str(error))
                else:
                    if isinstance(value, dict):
                        yield Record(number, value)
                    else:
                        detail = f"expected a JSON object, found {type(value).__name__}"
                        yield Problem(piece.path, first() + number, "not_json", detail)
    except _BrokenError as error:
        yield Problem(piece.path, first() + number + 1, "broken_file", str(error))


def parquet_records(piece: Piece, columns: list[str] | None = None) -> Iterator[Record | Problem]:
    """The rows of a Parquet file as dicts; only the top-level `columns` are read, where they exist."""
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with epath.Path(piece.path).open("rb") as handle, pyarrow.parquet.ParquetFile(handle) as file:
            groups = range(piece.start, file.num_row_groups if piece.stop is None else piece.stop)
            row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
            names = file.schema_arrow.names
            wanted = [name for name in names if columns is None or name in columns]
            # Without any of the columns a row is still counted, and its fields are named in what is said about it.
            for batch in file.iter_batches(256, groups, wanted or names, use_threads=False):
                for value in batch.to_pylist():
                    row += 1
                    yield Record(row, value)
    except (pyarrow.ArrowException, OSError) as error:
        yield Problem(piece.path, row + 1, "broken_file", " ".join(str(error).split()))


def text_records(piece: Piece, limit: int) -> Iterator[Record | Problem]:
    """The whole file as one text, found on its line 1."""
    waiting: list[bytes] = []
    size = 0
    try:
        for block in blocks(piece):
            size += len(block)
            if size > limit:
                yield Problem(piece.path, 1, "too_large", f"a text of more than {limit:,} bytes")
                return
            waiting.append(block)
        yield Record(1, b"".join(waiting).decode())
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        yield Problem(piece.path, line, "invalid_utf8", f"{error.reason} at byte {error.start}")
    except _BrokenError as error:
        yield Problem(piece.path, 1, "broken_file", str(error))


def part_records(piece: Piece, characters: int, limit: int) -> Iterator[Record | Problem]:
    """One long text in parts of whole lines, of about `characters` each; a longer line is cut."""
    first = _lines_before(piece)
    waiting, size, began, number = [], 0, 1, 0
    try:
        for number, line in enumerate(lines(blocks(piece), limit), start=1):
            if line is None:
                yield Problem(piece.path, first() + number, "too_large", f"a line of more than {limit:,} bytes")
                continue
            try:
                text = f"{line.decode()}\n"
            except UnicodeDecodeError as error:
                yield Problem(piece.path, first() + number, "invalid_utf8", f"{error.reason} at byte {error.start}")
                continue
            for start in range(0, len(text), characters):
                waiting.append(text[start : start + characters])
                size += len(waiting[-1])
                if size >= characters:
                    yield Record(began, "".join(waiting))
                    waiting, size, began = [], 0, number + (start + characters >= len(text))
    except _BrokenError as error:
        yield Problem(piece.path, first() + number + 1, "broken_file", str(error))
    if waiting:
        yield Record(began, "".join(waiting))


def _lines_before(piece: Piece) -> Any:
    """How many lines come before the piece; counted when first asked for, as few pieces have a problem."""
    known: list[int] = []

    def count() -> int:
        if not piece.start:
            return 0
        if not known:
            known.append(sum(block.count(b"\n") for block in blocks(Piece(piece.path, 0, piece.start))))
        return known[0]

    return count


def field(value: Any, path: str) -> Any:
    """What stands at a path such as `meta.name`, `fields.0` or `body.*.text`; `*` joins the texts of all items.

    Raises:
        KeyError: nothing does; its argument says what was looked for and which names are there instead.
    """
    if isinstance(value, Mapping) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping) and head in value:
        inner = value[head]
    elif isinstance(value, list | tuple) and head == "*":
        texts = [field(item, rest) if rest else item for item in value]
        if not all(isinstance(text, str) for text in texts):
            raise KeyError(path, [])
        return "\n\n".join(texts)
    elif isinstance(value, list | tuple) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    else:
        raise KeyError(head, sorted(map(str, value)) if isinstance(value, Mapping) else [])
    return field(inner, rest) if rest else inner
