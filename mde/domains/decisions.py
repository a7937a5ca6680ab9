"""Between the passes: which documents stay, what the evaluation text is, and the record of it all."""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mde.domains import hygiene, passes, vocabulary
from mde.domains.corpora import SPLITS, Shard
from mde.domains.documents import Settings
from mde.domains.tables import DROPPED, EXACT, HELD_OUT, NEAR, OVERLAP, Tally
from mde.errors import UserError, unknown

_KEPT = len(DROPPED)


@dataclasses.dataclass
class Surveyed:
    """A shard, what its survey said, where it left the rest, and how often others had joined the study before it."""

    shard: Shard
    about: dict[str, Any]
    folder: Path
    joined: int = 0


def decide(surveyed: Sequence[Surveyed], settings: Settings, tally: Tally) -> list[np.ndarray]:
    """Which documents of each shard stay.

    Of equal and of nearly equal documents the first stays, over all domains: evaluation text comes before training
    text, so that none of it is trained on; otherwise the order is that of the domains, and of the files in them.
    What joined a study later comes after all that was there, and decides nothing about it.
    Of validation and of test text, what is beyond `settings.validation_bytes` per domain is neither trained nor
    evaluated on; the smallest digests stay.

    Args:
        surveyed: all shards.
        settings: of near duplicates and of the validation text's length.
        tally: counts what is dropped.

    Returns:
        For each shard a bool array over its documents.
    """
    loaded = [dict(np.load(each.folder / "documents.npz")) for each in surveyed]
    lengths = [len(each["digest"]) for each in loaded]
    domains = list(dict.fromkeys(name for each in surveyed for name in each.shard.corpus.names))
    codes = [np.array([domains.index(name) for name in each.shard.corpus.names], np.int32) for each in surveyed]
    domain_N = _concatenate([code[each["domain"]] for code, each in zip(codes, loaded, strict=True)], np.int32)
    digest_N, size_N, split_N = (
        _concatenate([each[key] for each in loaded], kind)
        for key, kind in (("digest", np.uint64), ("bytes", np.int64), ("split", np.uint8))
    )
    given = np.repeat([each.shard.corpus.registered is not None for each in surveyed], lengths)
    reason_N = np.full(len(digest_N), _KEPT, np.uint8)

    joined_N = np.repeat([each.joined for each in surveyed], lengths)
    for number in sorted({each.joined for each in surveyed}):
        known = np.flatnonzero((joined_N < number) & (reason_N == _KEPT) & ~given)
        order = np.argsort(split_N == SPLITS.index("train"), kind="stable")
        order = np.concatenate([known, order[~given[order] & (joined_N[order] == number)]])
        reason_N[order[~hygiene.first_of_equals(digest_N[order])]] = DROPPED.index(EXACT)
        if settings.near_duplicates:
            order = order[reason_N[order] == _KEPT]
            own = [i for i, each in enumerate(surveyed) if each.shard.corpus.registered is None]
            row_N = np.cumsum(~given) - 1  # among the signatures, which registered domains have none of
            signatures = [functools.partial(passes.signatures, surveyed[i].folder) for i in own]
            near = order[~hygiene.first_of_similar(signatures, row_N[order], settings.near_duplicates)]
            reason_N[near[joined_N[near] == number]] = DROPPED.index(NEAR)
    halved = {name for each in surveyed if each.shard.corpus.halved for name in each.shard.corpus.names}
    for code, split in itertools.product(range(len(domains)), ("validation", "test")):
        held = (domain_N == code) & (split_N == SPLITS.index(split)) & ~given
        mine = np.flatnonzero(held & (reason_N == _KEPT))
        mine = mine[np.argsort(digest_N[mine], kind="stable")]
        before = np.cumsum(size_N[mine]) - size_N[mine]
        most = settings.validation_bytes * (2 if domains[code] in halved else 1)
        reason_N[mine[before >= most]] = DROPPED.index(HELD_OUT)

    for code, domain in enumerate(domains):
        for reason in (EXACT, NEAR, HELD_OUT):
            dropped = (domain_N == code) & (reason_N == DROPPED.index(reason))
            tally.add(domain, reason, int(dropped.sum()), int(size_N[dropped].sum()))
    return np.split(reason_N == _KEPT, np.cumsum(lengths)[:-1])


def index_runs(
    surveyed: Sequence[Surveyed], keep: Sequence[np.ndarray], where: Path, more: Sequence[np.ndarray] = ()
) -> None:
    """Keeps the runs of words of the evaluation documents that stay, as `WHERE.grams.npy` and `WHERE.owners.npy`.

    Args:
        surveyed: all shards.
        keep: which documents of each stay.
        where: the beginning of the files' names.
        more: runs of words of evaluation text that is in no shard.
    """
    kept_runs = [run for each, kept in zip(surveyed, keep, strict=True) for _, run in _runs(each, kept)]
    grams, owners = hygiene.index([*kept_runs, *more])
    np.save(f"{where}.grams.npy", grams)
    np.save(f"{where}.owners.npy", owners)


def _runs(each: Surveyed, kept: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The evaluation documents of a shard that stay, with their runs of words."""
    split = np.load(each.folder / "documents.npz")["split"]
    places = np.flatnonzero(split != SPLITS.index("train"))
    return [(int(n), run) for n, run in zip(places, passes.runs(each.folder), strict=False) if kept[n]]


def index_joined(surveyed: Sequence[Surveyed], keep: Sequence[np.ndarray], where: Path) -> list[tuple[int, int]]:
    """Keeps the runs of words of the evaluation documents that joined the study, as `index_runs` does.

    Returns:
        Of each its shard and its place in it. Those that joined first come first: a run that several have is theirs.
    """
    order = sorted((i for i, each in enumerate(surveyed) if each.joined), key=lambda i: surveyed[i].joined)
    found = [((i, n), run) for i in order for n, run in _runs(surveyed[i], keep[i])]
    grams, owners = hygiene.index([run for _, run in found])
    np.save(f"{where}.grams.npy", grams)
    np.save(f"{where}.owners.npy", owners)
    return [place for place, _ in found]


def drop_repeated(
    surveyed: Sequence[Surveyed], keep: Sequence[np.ndarray], places: Sequence[tuple[int, int]], tally: Tally
) -> list[np.ndarray]:
    """Which documents stay without these evaluation documents (shard and place in it), which it counts."""
    left = [kept.copy() for kept in keep]
    for i, n in set(places):
        left[i][n] = False
        stored = np.load(surveyed[i].folder / "documents.npz")
        domain = surveyed[i].shard.corpus.names[stored["domain"][n]]
        tally.add(domain, OVERLAP, 1, int(stored["bytes"][n]))
    return left


def check(surveyed: Sequence[Surveyed], keep: Sequence[np.ndarray], tally: Tally) -> None:
    """Raises UserError at the first domain with nothing to train or to evaluate on, with what came in between."""
    found: Counter[tuple[str, str]] = Counter()
    for each, kept in zip(surveyed, keep, strict=True):
        stored = np.load(each.folder / "documents.npz")
        for i, domain in enumerate(each.shard.corpus.names):
            for j, split in enumerate(SPLITS):
                found[domain, split] += int((kept & (stored["domain"] == i) & (stored["split"] == j)).sum())
    for corpus in dict.fromkeys(each.shard.corpus.name for each in surveyed):
        mine = [each for each in surveyed if each.shard.corpus.name == corpus]
        for domain in mine[0].shard.corpus.names:
            for split in [split for split in mine[0].shard.corpus.splits if split != "test"]:  # which may be missing
                if not found[domain, split]:
                    raise _empty(domain, split, mine, found, tally)


def _empty(domain: str, split: str, mine: Sequence[Surveyed], found: Counter, tally: Tally) -> UserError:
    """Why a split of a domain has no document, as far as one can tell."""
    corpus = mine[0].shard.corpus
    values: Counter[str] = Counter()
    for each in mine:
        values.update(dict(map(tuple, each.about["others"])))
    missing = [value for value, name in corpus.domains.items() if name == domain]
    if missing and values and split == "train":
        nearest = unknown(f"value of {corpus.domain_field!r}", missing[0], values)
        return UserError(f"domain {domain!r} is empty: {nearest}")
    reasons = {r: n for (name, r), n in tally.documents.items() if name in (domain, corpus.name) and n}
    if split == "validation" and found[domain, "train"]:
        hint = f"none of its {found[domain, 'train']} documents fell to validation"
        advice = "; bind a larger prepare.validation_share or give its validation text"
        return UserError(f"domain {domain!r} is empty: its {split} split has no document ({hint}{advice})")
    first = next((problem for each in mine for problem in each.about["problems"]), None)
    told = f"; {first[0]}, line {first[1]}: {first[2]}: {first[3]}" if first else ""
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1]))
    return UserError(
        f"domain {domain!r} is empty: its {split} split has no document (dropped: {dropped or 'none'}{told})"
    )


def surveys(surveyed: Sequence[Surveyed], tally: Tally) -> list[list[Any]]:
    """Counts what the surveys dropped; returns the problems they told, [path, line, reason, detail] each."""
    for each in surveyed:
        for domain, reason, documents, size in each.about["dropped"]:
            tally.add(domain, reason, documents, size)
    return [problem for each in surveyed for problem in each.about["problems"]]


def samples(surveyed: Sequence[Surveyed], size: int, seed: int) -> dict[str, list[str]]:
    """The chunks of each training domain that a tokenizer is trained on, out of the shards' own samples."""
    merged: dict[str, vocabulary.Sample] = {}
    for each in surveyed:
        for domain, chunks in json.loads((each.folder / "sample.json").read_text()).items():
            if each.shard.corpus.trained:
                sample = merged.setdefault(domain, vocabulary.Sample(size, seed))
                for chunk in chunks:
                    sample.add_chunk(chunk)
    return {domain: sample.chunks() for domain, sample in merged.items()}


def _concatenate(parts: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *parts])
