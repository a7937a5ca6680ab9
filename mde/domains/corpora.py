"""Corpora: text that lies somewhere, and which of it is which domain's.

A corpus is one or several domains. Its text is found at a place: a file, a folder, a pattern (`web/*.jsonl.zst`), a
TFDS data set (`tfds:name/config:split`) or a registered domain (`mde:wiki`), locally or in a bucket.
"""

import dataclasses
import functools
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mde import buckets
from mde.domains import reading, registry
from mde.domains.reading import Piece, Problem, Record
from mde.errors import UserError, unknown
from mde.values import described, fits

SPLITS = ("train", "validation", "test")
SHARD_BYTES = 64 << 20  # bytes of files a shard: the unit of work, and what is read again after a kill
PART = 2_000  # characters a part of a text that is alone in its place, as in `harvest`
# JSON lines, rows, a text a file, or files that are cut into parts, each a document.
FORMATS = ("jsonl", "parquet", "text", "parts")
_JSON = (".jsonl", ".ndjson", ".json")
NAME = re.compile(r"\w[\w.-]*")
_TFDS = re.compile(r"tfds:(.+):(\w+(?:\[[^\]]*\])?)")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where text lies and how it is read.

    Attributes:
        name: the domain's name, or that of a corpus of several.
        files: the place of its text; the place of its evaluation text, for a domain that is never trained on.
        validation: the place of its validation text; None holds documents of `files` out.
        test: the place of its test text; None takes half of the held-out documents, by their hashes.
        text_field: what holds the text of a JSON line, a row or a TFDS example; may be nested (`content.text`). Empty
            for records that are no text, which are read whole.
        domain_field: what holds the domain's name, where the corpus is several domains.
        domains: domain by the value that `domain_field` has for it, in the study's order.
        format: one of `FORMATS`, or None to tell by the files' names.
        trained: whether it is trained on.
    """

    name: str
    files: str
    validation: str | None = None
    test: str | None = None
    text_field: str = "text"
    domain_field: str | None = None
    domains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    format: str | None = None
    trained: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its domains."""
        return tuple(dict.fromkeys(self.domains.values())) if self.domain_field else (self.name,)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of its text: a token store each."""
        return SPLITS if self.trained else SPLITS[1:]

    @property
    def halved(self) -> bool:
        """Whether its held-out text is divided into validation and test text, rather than having a place for each."""
        return self.test is None and not (self.registered and "test" in registry.get(self.registered).splits)

    @property
    def read_splits(self) -> tuple[str, ...]:
        """The splits that its text is read in; a half of validation becomes test text later."""
        return self.splits[:-1] if self.halved else self.splits

    @property
    def registered(self) -> str | None:
        """The registered domain that it is; such a one divides and cleans its text itself."""
        return self.files.removeprefix("mde:") if self.files.startswith("mde:") else None


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some of a corpus's files: the unit of work.

    Attributes:
        corpus: what it is a part of.
        split: the split that all its documents are in; None where their hashes decide.
        pieces: what it reads, in this order.
        format: `jsonl`, `parquet`, `text`, `parts`, `tfds` or `mde`.
        size: bytes of its files, compressed as they are.
    """

    corpus: Corpus
    split: str | None
    pieces: tuple[Piece, ...]
    format: str
    size: int


def parse(domains: Sequence[str] | Mapping[str, Any], root: str | None, text_field: str, trained: bool) -> list[Corpus]:
    """The corpora that `prepare.training_domains` or `prepare.evaluation_domains` says.

    Args:
        domains: names of registered domains; or by name a place, or the arguments of `Corpus` as a mapping.
        root: the folder or bucket where relative places begin.
        text_field: of those that do not say one themselves.
        trained: whether they are trained on.

    Raises:
        UserError: an unknown argument, a name that cannot be a domain's, several domains without their names.
    """
    if not isinstance(domains, Mapping):
        domains = {name: f"mde:{name}" for name in domains}
    corpora = []
    for name, value in domains.items():
        given = settings("domain", name, value, Corpus, FORMATS)
        for key in ("files", "validation", "test"):
            if root and given.get(key) and not re.match(r"tfds:|mde:|\w+://", given[key]):
                given[key] = str(buckets.path(root) / given[key])
        corpus = Corpus(name, **{"text_field": text_field, **given}, trained=trained)
        if bool(corpus.domain_field) != bool(corpus.domains):
            raise UserError(f"domain {name!r}: 'domain_field' and 'domains' (its values) go together")
        for each in (name, *corpus.names):
            if not NAME.fullmatch(each):
                raise UserError(f"domain {each!r}: a name has letters, digits, '_', '-' and '.'")
        if corpus.registered:
            registry.get(corpus.registered)
        corpora.append(corpus)
    return corpora


def settings(kind: str, name: str, given: Any, form: type, formats: Sequence[str]) -> dict[str, Any]:
    """The fields of a domain or a task, which is given as its place or as a mapping of them.

    Args:
        kind: what it is, for messages.
        name: its name.
        given: what the user said.
        form: the dataclass that it becomes.
        formats: that its files may have.

    Raises:
        UserError: neither of the two, no place, an unknown field or format, or a value of another type than its field.
    """
    if not isinstance(given, str | Mapping):
        raise UserError(f"{kind} {name!r}: {given!r}, expected a place (a file, a folder or a pattern) or a mapping")
    found = {"files": given} if isinstance(given, str) else dict(given)
    if fits(found.get("domains"), Sequence[str]):
        found["domains"] = {value: value for value in found["domains"]}
    hints = {key: hint for key, hint in typing.get_type_hints(form).items() if key not in ("name", "trained")}
    for key, value in found.items():
        if key not in hints:
            raise unknown(f"setting of {kind} {name!r}", key, hints)
        if not fits(value, hints[key]):
            raise UserError(f"{kind} {name!r}: {key} = {value!r}, expected {described(hints[key])}")
    if "files" not in found:
        raise UserError(f"{kind} {name!r}: expected 'files', the place of its text")
    if found.get("format") not in (None, *formats):
        raise unknown(f"format of {kind} {name!r}", found["format"], formats)
    return found


def shards(corpus: Corpus, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The shards of a corpus, in an order that only its files' names and sizes decide.

    Raises:
        UserError: nothing is there, or a TFDS data set or split is unknown.
    """
    if corpus.registered:
        return [Shard(corpus, split, (Piece(corpus.files),), "mde", 0) for split in corpus.read_splits]
    places = {"validation": corpus.validation, "test": corpus.test}
    first: str | None = "train" if corpus.validation else None
    if not corpus.trained:
        first, places["validation"] = "validation", None
    found = _shards(corpus, corpus.files, first, shard_bytes)
    for split, place in places.items():
        found += _shards(corpus, place, split, shard_bytes) if place else []
    return found


def _shards(corpus: Corpus, place: str, split: str | None, shard_bytes: int) -> list[Shard]:
    if place.startswith("tfds:"):
        return _tfds_shards(corpus, place, split, shard_bytes)
    alone, files = _files(corpus, place)
    sized: list[tuple[str, Piece, int]] = []
    for path, inside in files:
        kind = corpus.format or _format(str(path), inside)
        if kind == "text" and alone:
            kind = "parts"
        sized += [(kind, piece, size) for piece, size in _pieces(path, kind, shard_bytes)]
    made: list[Shard] = []
    for kind, piece, size in sized:
        if made and made[-1].format == kind and made[-1].size + size <= shard_bytes:
            last = made.pop()
            made.append(dataclasses.replace(last, pieces=(*last.pieces, piece), size=last.size + size))
        else:
            made.append(Shard(corpus, split, (piece,), kind, size))
    return made


def _files(corpus: Corpus, place: str) -> tuple[bool, list[tuple[epath.Path, bool]]]:
    """Whether the place is one file, and its files, each with whether a folder was named that it lies in."""
    files: list[tuple[epath.Path, bool]] = []
    buckets.check(place)
    path = buckets.path(place)
    if path.is_file():
        return True, [(path, False)]
    if path.is_dir():
        files = [(file, True) for file in _walk(path)]
    else:
        for match in _matching(place):
            files += [(match, False)] if match.is_file() else [(file, True) for file in _walk(match)]
    if not files:
        raise UserError(f"domain {corpus.name!r}: no file matches {place!r}")
    return False, sorted(files)


def _matching(place: str) -> Iterator[epath.Path]:
    """What matches a pattern, which means the same locally and in a bucket; `**` is any number of folders."""
    sign = min((place.index(sign) for sign in "*?[" if sign in place), default=len(place))
    fixed = place[: place.rfind("/", 0, sign) + 1]
    root, pattern = buckets.path(fixed or "."), place[len(fixed) :]
    if "**" not in pattern:
        yield from root.glob(pattern) if root.exists() else ()
        return
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    wanted = re.compile("".join(signs.get(part) or re.escape(part) for part in parts))
    for path in _walk(root) if root.is_dir() else ():
        if wanted.fullmatch(path.relative_to(root).as_posix()):
            yield path


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below a folder but hidden ones, which belong to tools."""
    for path in folder.iterdir():
        if not path.name.startswith("."):
            if path.is_dir():
                yield from _walk(path)
            else:
                yield path


def _format(path: str, in_folder: bool) -> str:
    """How a file is read. A plain `.json` within a folder is one of its texts, as in a folder of code."""
    compressed = path.endswith(reading.GZIP + reading.ZSTD)
    stem = path.rsplit(".", 1)[0] if compressed else path
    if stem.endswith(_JSON) and not (in_folder and not compressed and stem.endswith(".json")):
        return "jsonl"
    return "parquet" if path.endswith(".parquet") else "text"


def _pieces(path: epath.Path, kind: str, shard_bytes: int) -> list[tuple[Piece, int]]:
    """A file, or ranges of one that is long, with their sizes."""
    stat, name = path.stat(), str(path)
    size, stamp = stat.length, f"{stat.length}@{stat.mtime}"
    count = -(-size // shard_bytes)
    if count < 2 or kind == "text" or name.endswith(reading.GZIP + reading.ZSTD):
        return [(Piece(name, stamp=stamp), size)]
    total = size
    if kind == "parquet":
        import pyarrow.parquet

        try:
            with path.open("rb") as handle:
                total = pyarrow.parquet.ParquetFile(handle).num_row_groups
        except (pyarrow.ArrowException, OSError):
            return [(Piece(name, stamp=stamp), size)]  # reading it will say what is wrong
        count = min(count, total)
    bounds = [total * i // count for i in range(count + 1)]
    return [(Piece(name, *pair, stamp), size // count) for pair in itertools.pairwise(bounds)]


def records(shard: Shard, limit: int) -> Iterator[tuple[Piece, Record | Problem]]:
    """What stands in the shard's pieces, good and bad.

    Args:
        shard: what to read.
        limit: bytes of the longest line or text.
    """
    corpus = shard.corpus
    paths = [path for path in (corpus.text_field, corpus.domain_field) if path]
    columns = [*(path.split(".")[0] for path in paths), *paths]
    for piece in shard.pieces:
        found: Iterator[Record | Problem]
        if shard.format == "jsonl":
            found = reading.json_records(piece, limit)
        elif shard.format == "parquet":
            found = reading.parquet_records(piece, columns)
        elif shard.format == "text":
            found = reading.text_records(piece, limit)
        elif shard.format == "parts":
            found = reading.part_records(piece, PART, limit)
        else:
            found = _tfds_records(piece)
        yield from ((piece, record) for record in found)


def _tfds_shards(corpus: Corpus, place: str, split: str | None, shard_bytes: int) -> list[Shard]:
    """Even parts of a split of a TFDS data set."""
    builder, name = _builder(corpus.name, place)
    known = builder.info.splits
    if name.split("[")[0] not in known:
        raise unknown(f"split of {place.rsplit(':', 1)[0]}", name, known)
    count, size = known[name].num_examples, known[name].num_bytes or 0
    parts = min(max(1, -(-size // shard_bytes)), max(count, 1))
    bounds = [count * i // parts for i in range(parts + 1)]
    pairs = itertools.pairwise(bounds)
    stamp = builder.info.full_name
    return [Shard(corpus, split, (Piece(place, *pair, stamp),), "tfds", size // parts) for pair in pairs]


def _tfds_records(piece: Piece) -> Iterator[Record]:
    """The examples of a share of a split."""
    import tensorflow_datasets as tfds

    builder, name = _builder(piece.path, piece.path)
    if "[" in name:
        dataset = builder.as_dataset(split=name, shuffle_files=False)
        share = dataset.skip(piece.start).take((piece.stop or 0) - piece.start)
    else:
        share = builder.as_dataset(split=f"{name}[{piece.start}:{piece.stop}]", shuffle_files=False)
    for number, example in enumerate(tfds.as_numpy(share), start=piece.start + 1):
        yield Record(number, example)


@functools.lru_cache(8)
def _builder(domain: str, place: str) -> tuple[Any, str]:
    """The TFDS builder and the split of `tfds:name/config:split`; a name may be the folder of a prepared data set."""
    match = _TFDS.fullmatch(place)
    if not match:
        raise UserError(f"domain {domain!r}: expected tfds:name/config:split, found {place!r}")
    name, split = match[1], match[2]
    registry.quietly_import_tensorflow()
    import tensorflow_datasets as tfds

    try:
        if epath.Path(name).is_dir():
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name)
            builder.download_and_prepare()
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"domain {domain!r}: TFDS does not have {name!r}: {reason}") from error
    return builder, split
