"""The documents of a shard: records that are text, long enough, of a known domain, and on one side of the split."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mde.domains import corpora, hygiene, reading
from mde.domains.corpora import Shard
from mde.domains.reading import Problem
from mde.errors import UserError, unknown

TOO_SHORT, OTHER_DOMAIN = "too_short", "other_domain"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides about documents; see `mde.commands.prepare`."""

    corpus_dir: str
    validation_share: float
    validation_bytes: int
    shortest: int
    near_duplicates: float
    overlap_words: int
    max_document_bytes: int
    on_error: str
    sample_bytes: int
    seed: int


class Document(NamedTuple):
    """A document of a shard, before anything is known of the others."""

    domain: str
    split: str
    text: str
    data: bytes
    digest: int


class Dropped(NamedTuple):
    """A document that is dropped for what it is."""

    domain: str
    reason: str
    size: int
    value: str = ""


def documents(shard: Shard, settings: Settings) -> Iterator[Document | Problem | Dropped]:
    """The documents of a shard, the same in both passes.

    Raises:
        UserError: the first problem, if `on_error` is "fail".
    """
    corpus = shard.corpus
    if corpus.registered:
        yield from _registered(shard, settings)
        return
    for piece, record in corpora.records(shard, settings.max_document_bytes):
        found = record if isinstance(record, Problem) else _document(shard, piece.path, record, settings)
        if isinstance(found, Problem) and settings.on_error == "fail":
            raise refused(found, shard)
        yield found


def refused(problem: Problem, shard: Shard) -> UserError:
    """The error for the first problem, if `on_error` is "fail"."""
    where = f"{problem.path}, line {problem.line}"
    return UserError(f"{where}: {problem.reason}: {problem.detail} (domain {shard.corpus.name!r})")


def _registered(shard: Shard, settings: Settings) -> Iterator[Document]:
    from mde.domains import registry

    assert shard.corpus.registered is not None
    assert shard.split is not None
    for text in registry.texts(shard.corpus.registered, shard.split, settings.corpus_dir):
        data = text.encode()
        yield Document(shard.corpus.name, shard.split, text, data, hygiene.digest(data))


def _document(shard: Shard, path: str, record: Any, settings: Settings) -> Document | Problem | Dropped:
    """A record's document, or why there is none."""
    corpus = shard.corpus
    try:
        text = record.value if isinstance(record.value, str) else reading.field(record.value, corpus.text_field)
        domain = corpus.name
        if corpus.domain_field and not isinstance(record.value, str):
            value = str(_plain(reading.field(record.value, corpus.domain_field)))
            if value not in corpus.domains:
                return Dropped(corpus.name, OTHER_DOMAIN, 0, value)
            domain = corpus.domains[value]
        text = _plain(text)
        if not isinstance(text, str):
            detail = f"field {corpus.text_field!r} holds {type(text).__name__}, not text"
            return Problem(path, record.line, "empty" if text is None else "missing_field", detail)
        data = text.encode()  # refuses what JSON's escapes can say and Unicode cannot: half a surrogate pair
    except KeyError as error:
        return Problem(path, record.line, "missing_field", str(unknown("field", *error.args)))
    except UnicodeError as error:
        return Problem(path, record.line, "invalid_utf8", str(error))
    if not text or text.isspace():
        return Problem(path, record.line, "empty", "no text")
    if len(data) > settings.max_document_bytes:
        return Problem(path, record.line, "too_large", f"{len(data):,} bytes of text")
    if len(text) < settings.shortest:
        return Dropped(domain, TOO_SHORT, len(data))
    digest = hygiene.digest(data)
    held_out = settings.validation_share * (2 if corpus.halved else 1)  # validation and test text, or the former alone
    split = shard.split or ("validation" if digest < held_out * 2.0**64 else "train")
    return Document(domain, split, text, data, digest)


def _plain(value: Any) -> Any:
    """TFDS and Parquet have text as bytes at times, and numbers as NumPy's."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
