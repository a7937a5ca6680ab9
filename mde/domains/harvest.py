"""From a domain's source to its documents: sampled, cleaned of duplicates, divided into the splits, cut."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tqdm import tqdm

from mde.domains import sources
from mde.domains.dedup import NearDuplicates
from mde.domains.sources import Unit

MAX_BYTES = 4_000_000
HELD_OUT_SHARE = 10  # one document in ten is validation text, and one is test text
# Characters a part. A few thousand evaluation tokens must hold many documents: whole files and articles would be two or
# three of them, and their quirks most of the loss.
PART = 2_000


class Document(NamedTuple):
    """A document or a part of a long one: a stable id, its text, the split that the whole text's hash puts it in."""

    id: str
    text: str
    split: str


@dataclass
class Harvest:
    """The documents of a domain in the order of their hashes, and the record of how they were come by."""

    documents: list[Document] = field(default_factory=list)
    provenance: dict = field(default_factory=dict)


def harvest(domain: str, max_bytes: int = MAX_BYTES) -> Harvest:
    """Collect a domain's text from the installed packages.

    Units (files, articles, chapters) are read in the order of their names' hashes until `max_bytes` are kept, so a
    capped domain is a fair sample of the whole, and nothing beyond the cap is read or compared. Of duplicates the first
    stays. Long documents are then cut into parts, which stay on their document's side.

    Args:
        domain: a name in `sources.SOURCES`.
        max_bytes: stop once the documents kept reach this many UTF-8 bytes (the last may go past it).

    Returns:
        The same documents in the same order on every run with the same versions of the packages.

    Raises:
        UserError: the domain is unknown, or a package it reads is not installed.
    """
    source = sources.get(domain)
    units = sorted(source.units(), key=lambda unit: (_digest(unit.name), unit.name))
    documents: list[Document] = []
    counts = Counter(units_read=0, harvested=0)
    dropped = Counter(too_short=0, too_long=0, exact_duplicates=0, near_duplicates=0)
    seen: set[bytes] = set()
    near = NearDuplicates()
    size = 0
    with tqdm(total=max_bytes, desc=f"harvest {domain}", unit="B", unit_scale=True, disable=None) as progress:
        for name, text in _read(units, counts):
            digest = _digest(text)
            if reason := _why_not(text, digest, seen, near):
                dropped[reason] += 1
                continue
            documents.append(Document(name, text, _split(digest, source.splits)))
            seen.add(digest)
            size += len(text.encode())
            progress.update(len(text.encode()))
            if size >= max_bytes:
                break
    parts = _parts(documents)
    provenance = {
        "domain": domain,
        "description": source.description,
        "versions": source.versions(),
        "max_bytes": max_bytes,
        "units": {"found": len(units), "read": counts["units_read"]},
        "documents": {"harvested": counts["harvested"], "kept": len(documents), "dropped": dict(dropped)},
        "splits": {split: _size(parts, split) for split in source.splits},
    }
    return Harvest(parts, provenance)


def _read(units: list[Unit], counts: Counter) -> Iterator[tuple[str, str]]:
    """The documents of the units in order, as (id, text), counting both."""
    for unit in units:
        counts["units_read"] += 1
        for document in unit.read():
            counts["harvested"] += 1
            yield document


def _why_not(text: str, digest: bytes, seen: set[bytes], near: NearDuplicates) -> str | None:
    """Why the document is dropped, or None; the cheap reasons first."""
    if len(text) < sources.SHORTEST:
        return "too_short"
    if len(text) > sources.LONGEST:
        return "too_long"
    if digest in seen:
        return "exact_duplicates"
    return None if near.is_new(text) else "near_duplicates"


def _split(digest: bytes, splits: tuple[str, ...]) -> str:
    number = int.from_bytes(digest, "big")
    if "train" not in splits:
        return splits[number % len(splits)]
    return {0: "validation", 1: "test"}.get(number % HELD_OUT_SHARE, "train")


def _parts(documents: list[Document]) -> list[Document]:
    """The documents cut into parts, each text once, in the order of the texts' hashes: parts of one come apart."""
    parts: dict[bytes, Document] = {}
    for name, text, split in documents:
        pieces = cut(text, PART)
        for i, piece in enumerate(pieces):
            parts.setdefault(_digest(piece), Document(f"{name}@{i}" if len(pieces) > 1 else name, piece, split))
    return [parts[digest] for digest in sorted(parts)]


def cut(text: str, length: int) -> list[str]:
    """The text in parts of about equal length, none much longer than `length`, each ending with a line if it can."""
    count = -(-len(text) // length)
    parts, start = [], 0
    for i in range(1, count):
        target = len(text) * i // count
        newline = text.find("\n", target, target + length // 4)
        stop = newline + 1 if newline >= 0 else target
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]


def _size(documents: list[Document], split: str) -> dict[str, int]:
    texts = [document.text for document in documents if document.split == split]
    return {"parts": len(texts), "bytes": sum(len(text.encode()) for text in texts)}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
