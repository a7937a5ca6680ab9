"""Two passes over corpora, shard by shard in several processes: `survey` looks, `tokenize` writes tokens.

In between it is decided which documents stay (`mde.domains.decisions`). Each shard leaves a folder of its own, whose
`about.json` is written last: what was done when a process was killed is not done again. Texts are read twice, which
costs a tenth of what tokenizing does, so that nothing has to be held.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from mde.domains import corpora, hygiene, reading, tokenizers, vocabulary
from mde.domains.corpora import Shard
from mde.domains.reading import Problem
from mde.errors import UserError, unknown

_TOLD = 100  # problems of a shard that are told one by one; all are counted
_VALUES = 50  # values of a domain field that no domain has, which are told
_BLOCK_TOKENS = 1 << 20  # that are copied at a time
_BATCH_BYTES = 1 << 20  # text that is tokenized at a time
SPLITS = ("train", "validation")
TOO_SHORT, OTHER_DOMAIN = "too_short", "other_domain"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides about documents; see `mde.stages.prepare`."""

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
            raise UserError(f"{found.path}, line {found.line}: {found.reason}: {found.detail} (domain {corpus.name!r})")
        yield found


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
            value = _plain(reading.field(record.value, corpus.domain_field))
            if value not in corpus.domains:
                return Dropped(corpus.name, OTHER_DOMAIN, 0, str(value))
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
    split = shard.split or ("validation" if digest < settings.validation_share * 2.0**64 else "train")
    return Document(domain, split, text, data, digest)


def _plain(value: Any) -> Any:
    """TFDS and Parquet have text as bytes at times, and numbers as NumPy's."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def name(shard: Shard, settings: Any) -> str:
    """A name for what a pass makes of a shard: another one when a file or a setting has changed."""
    files = []
    for piece in shard.pieces:
        stat = epath.Path(piece.path).stat() if shard.format not in ("tfds", "mde") else None
        files.append([piece.path, piece.start, piece.stop, stat and stat.length, stat and stat.mtime])
    corpus = dataclasses.asdict(shard.corpus)
    content = json.dumps([files, corpus, shard.split, shard.format, settings], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()


def done(folder: Path) -> dict[str, Any] | None:
    """What a pass said of a shard, if it came to its end."""
    about = folder / "about.json"
    return json.loads(about.read_text()) if about.exists() else None


def _finish(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    aside = folder / "about.json.partial"
    aside.write_text(json.dumps(about))
    aside.replace(folder / "about.json")
    return dict(about)


def survey(shard: Shard, settings: Settings, folder: Path) -> dict[str, Any]:
    """The first pass: fingerprints of the documents, a sample for the tokenizer, what is wrong with the files.

    Leaves `documents.npz` (domain, split, digest, bytes; in the shard's order), `signatures.npy` [n, PERMUTATIONS],
    `grams.npz` (runs of words of the validation documents, and how many each has) and `sample.json`.
    """
    if (about := done(folder)) is not None:
        return about
    folder.mkdir(parents=True, exist_ok=True)
    corpus, signer = shard.corpus, hygiene.Signer()
    samples = {each: vocabulary.Sample(settings.sample_bytes, settings.seed) for each in corpus.names}
    dropped: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    problems: list[Problem] = []
    rows, signatures, grams = [], [], []
    for found in documents(shard, settings):
        if isinstance(found, Problem):
            dropped[corpus.name, found.reason] += 1
            problems += [found] if len(problems) < _TOLD else []
            continue
        if isinstance(found, Dropped):
            dropped[found.domain, found.reason] += 1
            sizes[found.domain, found.reason] += found.size
            others.update([found.value] if found.value else [])
            continue
        split = SPLITS.index(found.split)
        rows.append((corpus.names.index(found.domain), split, found.digest, len(found.data)))
        if not corpus.registered and settings.near_duplicates:
            signatures.append(signer(found.text))
        if found.split == "train" and settings.sample_bytes:
            samples[found.domain].add(found.text)
        elif found.split == "validation" and settings.overlap_words:
            grams.append(hygiene.grams(found.text, settings.overlap_words))
        _advance(len(found.data))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 4
    types = (np.uint16, np.uint8, np.uint64, np.int64)
    domain, split_, digest, size = (np.array(c, t) for c, t in zip(columns, types, strict=True))
    np.savez(folder / "documents.npz", domain=domain, split=split_, digest=digest, bytes=size)
    np.save(folder / "signatures.npy", np.array(signatures, np.uint32).reshape(-1, hygiene.PERMUTATIONS))
    together = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
    np.savez(folder / "grams.npz", grams=together, counts=np.array([len(g) for g in grams], np.int64))
    (folder / "sample.json").write_text(json.dumps({each: sample.chunks() for each, sample in samples.items()}))
    counts = [[*key, count, sizes[key]] for key, count in sorted(dropped.items())]
    about = {"documents": len(rows), "dropped": counts, "problems": problems, "others": others.most_common(_VALUES)}
    return _finish(folder, about)


def tokenize(
    shard: Shard, settings: Settings, folder: Path, keep: Path, runs: Path, tokenizer_dir: epath.PathLike
) -> dict[str, Any]:
    """The second pass: the tokens of the documents that stay.

    Leaves for each domain and split `DOMAIN.SPLIT.tokens` (START, tokens, end-of-text of every document, one after the
    other, as the tokenizer's type), and in `documents.npz` their numbers of tokens and bytes, and their digests.

    Args:
        shard: what to read.
        settings: as in the survey.
        folder: where to.
        keep: a file [n] bool of the shard's documents.
        runs: a file of the runs of words of all evaluation text (`hygiene.index`).
        tokenizer_dir: where the study's tokenizer is.
    """
    if (about := done(folder)) is not None:
        return about
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.load(tokenizer_dir)
    check = settings.overlap_words and not shard.corpus.registered
    overlap = _overlap(str(runs), settings.overlap_words) if check else None
    kept = np.load(keep)
    writer = _Writer(folder, tokenizer)
    overlapping: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    index = 0
    for found in documents(shard, settings):
        if not isinstance(found, Document):
            continue
        index += 1
        if index > len(kept):
            break
        if not kept[index - 1]:
            continue
        if overlap and found.split == "train" and overlap(found.text):
            overlapping[found.domain] += 1
            sizes[found.domain] += len(found.data)
            continue
        writer.add(found)
    if index != len(kept):
        raise UserError(f"{shard.pieces[0].path}: changed while it was read; run `mde prepare` again")
    stored = writer.finish()
    counts = [[domain, count, sizes[domain]] for domain, count in sorted(overlapping.items())]
    return _finish(folder, {"stored": stored, "overlap": counts})


class _Writer:
    """Tokenizes documents in batches and appends them to the files of their domains and splits."""

    def __init__(self, folder: Path, tokenizer: tokenizers.Tokenizer):
        self._folder, self._tokenizer = folder, tokenizer
        self._waiting: list[Document] = []
        self._size = 0
        self._files: dict[str, Any] = {}
        self._about: dict[str, list[tuple[int, int, int]]] = {}

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        self._size += len(document.data)
        if self._size >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        encoded = self._tokenizer.encode_batch([document.text for document in self._waiting])
        start = np.array([self._tokenizer.start])
        for document, tokens in zip(self._waiting, encoded, strict=True):
            key = f"{document.domain}.{document.split}"
            if key not in self._files:
                self._files[key] = (self._folder / f"{key}.tokens").open("wb")
                self._about[key] = []
            np.concatenate([start, tokens]).astype(token_type(self._tokenizer.vocab_size)).tofile(self._files[key])
            self._about[key].append((len(tokens) + 1, len(document.data), document.digest))
        _advance(self._size, sum(map(len, encoded)))
        self._waiting, self._size = [], 0

    def finish(self) -> list[str]:
        self._flush()
        for file in self._files.values():
            file.close()
        arrays = {}
        for key, rows in self._about.items():
            tokens, sizes, digests = zip(*rows, strict=True)
            arrays[f"{key}.tokens"], arrays[f"{key}.bytes"] = np.array(tokens, np.int64), np.array(sizes, np.int64)
            arrays[f"{key}.digest"] = np.array(digests, np.uint64)
        np.savez(self._folder / "documents.npz", **arrays)  # type: ignore[arg-type]
        return sorted(self._files)


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest type that holds every token."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _overlap(runs: str, words: int) -> hygiene.Overlap:
    grams = np.load(f"{runs}.grams.npy", mmap_mode="r")  # the processes share its pages
    return hygiene.Overlap(grams, np.load(f"{runs}.owners.npy", mmap_mode="r"), words)


def blocks(
    folders: Sequence[Path], domain: str, split: str, dtype: type[np.unsignedinteger], by_digest: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `tokenize` left of a domain's split in the folders of its shards: tokens, and documents' tokens and bytes.

    Validation text comes in the order of its digests if `by_digest`, so that its beginning is a fair sample of it.
    """
    key = f"{domain}.{split}"
    found = [folder for folder in folders if (folder / f"{key}.tokens").exists()]
    stored = [np.load(folder / "documents.npz") for folder in found]
    if split == "validation" and by_digest and found:
        parts = [np.fromfile(folder / f"{key}.tokens", dtype) for folder in found]
        lengths, sizes, digests = (
            np.concatenate([each[f"{key}.{what}"] for each in stored]) for what in ("tokens", "bytes", "digest")
        )
        documents = np.split(np.concatenate(parts), np.cumsum(lengths)[:-1])
        order = np.argsort(digests, kind="stable")
        yield np.concatenate([documents[i] for i in order]), lengths[order], sizes[order]
        return
    for folder, each in zip(found, stored, strict=True):
        values = np.memmap(folder / f"{key}.tokens", dtype, mode="r")
        yield values[:0], each[f"{key}.tokens"], each[f"{key}.bytes"]
        none = np.zeros(0, np.int64)
        for start in range(0, len(values), _BLOCK_TOKENS):
            yield values[start : start + _BLOCK_TOKENS], none, none


# Bytes and tokens of this pass so far, over all processes; and whether they shall stop.
_counters: tuple[Any, Any, Any] | None = None


class _StoppedError(Exception):
    """Another shard has failed."""


def _set_up(counters: tuple[Any, Any, Any]) -> None:
    global _counters
    _counters = counters
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough


def _advance(size: int, tokens: int = 0) -> None:
    if _counters is not None:
        for counter, amount in zip(_counters, (size, tokens), strict=False):
            with counter.get_lock():
                counter.value += amount
        if _counters[2].value:
            raise _StoppedError


def over(
    work: Callable[..., dict[str, Any]], jobs: Sequence[tuple[Any, ...]], processes: int, label: str
) -> list[dict[str, Any]]:
    """`work(*job)` of every job, in their order, by several processes, with the speed in MB and tokens a second.

    Jobs of registered domains are done in this process, where TensorFlow is already.

    Raises:
        UserError: of any job; or a process was killed, which is what happens where memory does not suffice.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of JAX and TensorFlow
    counters = context.Value("q", 0), context.Value("q", 0), context.Value("q", 0)
    results: dict[int, dict[str, Any]] = {}
    here = [i for i, job in enumerate(jobs) if job[0].corpus.registered or processes == 1]
    there = [i for i in range(len(jobs)) if i not in set(here)]
    _set_up(counters)
    with _Bar(label, len(jobs), counters) as bar:
        for i in here:
            results[i] = work(*jobs[i])
            bar.refresh(len(results))
        if there:
            pool = concurrent.futures.ProcessPoolExecutor(
                min(processes, len(there)), mp_context=context, initializer=_set_up, initargs=(counters,)
            )
            try:
                waiting = {pool.submit(work, *jobs[i]): i for i in there}
                while waiting:
                    ready, _ = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED)
                    for future in ready:
                        results[waiting.pop(future)] = future.result()
                    bar.refresh(len(results))
            except concurrent.futures.process.BrokenProcessPool as error:
                raise UserError(
                    "a process was killed, which happens where memory does not suffice; "
                    "bind a smaller prepare.processes; the same command goes on from here"
                ) from error
            finally:
                counters[2].value = 1  # nothing is left to do, or it failed
                pool.shutdown(cancel_futures=True)
    return [results[i] for i in range(len(jobs))]


class _Bar:
    """Shards done, and what the counters say of the speed."""

    def __init__(self, label: str, total: int, counters: tuple[Any, Any, Any]):
        self._bar = tqdm(total=total, desc=label, unit="shard", disable=None)
        self._counters, self._started = counters, time.perf_counter()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def refresh(self, shards_done: int) -> None:
        seconds = time.perf_counter() - self._started
        size, tokens, _ = (counter.value for counter in self._counters)
        speed = {"MB/s": f"{size / 1e6 / seconds:.1f}", **({"tokens/s": f"{tokens / seconds:,.0f}"} if tokens else {})}
        self._bar.set_postfix(speed, refresh=False)
        self._bar.update(shards_done - self._bar.n)
