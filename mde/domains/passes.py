"""Two passes over corpora, shard by shard in several processes: `survey` looks, `tokenize` writes tokens.

In between it is decided which documents stay (`mde.domains.decisions`). Each shard leaves a folder of its own, whose
`about.json` is written last: what was done when a process was killed is not done again. Texts are read twice, which
costs a tenth of what tokenizing does, so that nothing has to be held.
"""

import dataclasses
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath

from mde.buckets import write_aside, writing
from mde.domains import hygiene, tokenizers, vocabulary
from mde.domains.corpora import SPLITS, Shard
from mde.domains.documents import Document, Dropped, Settings, documents, refused
from mde.domains.reading import Problem
from mde.domains.workers import advance
from mde.errors import UserError

_TOLD = 100  # problems of a shard that are told one by one; all are counted
_VALUES = 50  # values of a domain field that no domain has, which are told
_BLOCK_TOKENS = 1 << 20  # that are copied at a time
_BATCH_BYTES = 1 << 20  # text that is tokenized at a time


def name(shard: Shard, settings: Mapping[str, Any]) -> str:
    """A name for what a pass makes of a shard: another one when a file or a setting has changed."""
    content = json.dumps([dataclasses.asdict(shard), settings], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()


def done(folder: Path) -> dict[str, Any] | None:
    """What a pass said of a shard, if it came to its end."""
    about = folder / "about.json"
    return json.loads(about.read_text()) if about.exists() else None


def _finish(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    write_aside(folder / "about.json", json.dumps(about))
    return dict(about)


def survey(shard: Shard, settings: Settings, folder: Path) -> dict[str, Any]:
    """The first pass: fingerprints of the documents, a sample for the tokenizer, what is wrong with the files.

    Leaves `documents.npz` (domain, split, digest, bytes; in the shard's order; how many runs of words each held-out
    document has), `signatures.bin` ([n, PERMUTATIONS] uint32), `runs.bin` (uint64) and `sample.json`.

    Raises:
        UserError: the first problem, if `on_error` is "fail"; also one that a survey that skipped it has told.
    """
    if (about := done(folder)) is not None:
        if about["problems"] and settings.on_error == "fail":
            raise refused(Problem(*about["problems"][0]), shard)
        return about
    folder.mkdir(parents=True, exist_ok=True)
    corpus, signer = shard.corpus, hygiene.Signer()
    samples = {each: vocabulary.Sample(settings.sample_bytes, settings.seed) for each in corpus.names}
    # Typed arrays, and files for what is long: a shard may have millions of documents.
    columns = {"domain": array("H"), "split": array("B"), "digest": array("Q"), "bytes": array("q"), "runs": array("q")}
    dropped: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    problems: list[Problem] = []
    with (folder / "signatures.bin").open("wb") as signatures, (folder / "runs.bin").open("wb") as runs:
        for found in documents(shard, settings):
            if isinstance(found, Problem):
                dropped[corpus.name, found.reason] += 1
                problems += [found] if len(problems) < _TOLD else []
                continue
            if isinstance(found, Dropped):
                dropped[found.domain, found.reason] += 1
                sizes[found.domain, found.reason] += found.size
                if found.value and (found.value in others or len(others) < _VALUES):
                    others[found.value] += 1
                continue
            if not corpus.registered and settings.near_duplicates:
                _append(signatures, signer(found.text))
            if found.split == "train" and settings.sample_bytes:
                samples[found.domain].add(found.text)
            elif found.split != "train" and settings.overlap_words:
                own = hygiene.grams(found.text, settings.overlap_words)
                _append(runs, own)
                columns["runs"].append(len(own))
            row = (corpus.names.index(found.domain), SPLITS.index(found.split), found.digest, len(found.data))
            for column, value in zip(columns.values(), row, strict=False):
                column.append(value)
            advance(len(found.data))
    arrays: dict[str, Any] = {key: np.array(values) for key, values in columns.items()}
    np.savez(folder / "documents.npz", **arrays)
    (folder / "sample.json").write_text(json.dumps({each: sample.chunks() for each, sample in samples.items()}))
    counts = [[*key, count, sizes[key]] for key, count in sorted(dropped.items())]
    return _finish(folder, {"dropped": counts, "problems": problems, "others": others.most_common()})


def _append(file: IO[bytes], values: np.ndarray) -> None:
    with writing(Path(file.name)):  # NumPy itself names no file, and no reason
        values.tofile(file)


def signatures(folder: Path) -> np.ndarray:
    """[n, PERMUTATIONS] uint32, on disk: the signatures that `survey` left."""
    return _mapped(folder / "signatures.bin", np.uint32).reshape(-1, hygiene.PERMUTATIONS)


def runs(folder: Path) -> Iterator[np.ndarray]:
    """The runs of words of each held-out document of a shard, on disk."""
    together, start = _mapped(folder / "runs.bin", np.uint64), 0
    for count in np.load(folder / "documents.npz")["runs"]:
        yield together[start : start + count]
        start += count


def _mapped(path: Path, dtype: type[np.unsignedinteger]) -> np.ndarray:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


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
    writer = _Writer(folder, tokenizer)
    overlapping: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for found in _staying(shard, settings, keep):
        if overlap and found.split == "train" and overlap(found.text):
            overlapping[found.domain] += 1
            sizes[found.domain] += len(found.data)
            continue
        writer.add(found)
    stored = writer.finish()
    counts = [[domain, count, sizes[domain]] for domain, count in sorted(overlapping.items())]
    return _finish(folder, {"stored": stored, "overlap": counts})


def repeat(shard: Shard, settings: Settings, folder: Path, keep: Path, runs: Path) -> dict[str, Any]:
    """A look at training text that was there before some evaluation text: what of it is repeated there.

    Args:
        shard: what to read.
        settings: as in the survey.
        folder: where to.
        keep: a file [n] bool of the shard's documents.
        runs: a file of the runs of words of the evaluation text (`hygiene.index`).

    Returns:
        `documents`: numbers of evaluation documents that a training document which stays has half of.
    """
    if (about := done(folder)) is not None:
        return about
    folder.mkdir(parents=True, exist_ok=True)
    overlap = _overlap(str(runs), settings.overlap_words)
    found: set[int] = set()
    for document in _staying(shard, settings, keep):
        if document.split == "train":
            found.update(overlap.documents(document.text).tolist())
            advance(len(document.data))
    return _finish(folder, {"documents": sorted(found)})


def _staying(shard: Shard, settings: Settings, keep: Path) -> Iterator[Document]:
    """The documents of a shard that stay."""
    kept, index = np.load(keep), 0
    for found in documents(shard, settings):
        if isinstance(found, Document):
            index += 1
            if index > len(kept):
                break
            if kept[index - 1]:
                yield found
    if index != len(kept):
        raise UserError(f"{shard.pieces[0].path}: changed while it was read; run `mde prepare` again")


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
            stored = np.concatenate([start, tokens]).astype(token_type(self._tokenizer.vocab_size))
            _append(self._files[key], stored)
            self._about[key].append((len(tokens) + 1, len(document.data), document.digest))
        advance(self._size, sum(map(len, encoded)))
        self._waiting, self._size = [], 0

    def finish(self) -> list[str]:
        self._flush()
        for file in self._files.values():
            file.close()
        arrays: dict[str, Any] = {}
        for key, rows in self._about.items():
            tokens, sizes, digests = zip(*rows, strict=True)
            arrays[f"{key}.tokens"], arrays[f"{key}.bytes"] = np.array(tokens, np.int64), np.array(sizes, np.int64)
            arrays[f"{key}.digest"] = np.array(digests, np.uint64)
        np.savez(self._folder / "documents.npz", **arrays)
        return sorted(self._files)


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest type that holds every token."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _overlap(runs: str, words: int) -> hygiene.Overlap:
    grams = np.load(f"{runs}.grams.npy", mmap_mode="r")  # the processes share its pages
    return hygiene.Overlap(grams, np.load(f"{runs}.owners.npy", mmap_mode="r"), words)


def blocks(
    folders: Sequence[Path], domain: str, split: str, dtype: type[np.unsignedinteger], by_digest: bool, halved: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `tokenize` left of a domain's split in the folders of its shards: tokens, and documents' tokens and bytes.

    Held-out text comes in the order of its digests if `by_digest`, so that its beginning is a fair sample of it. If it
    is `halved`, what was stored as validation text is divided by another bit of the digests, even ones for validation,
    odd ones for test text; where that leaves either empty, every second document is test text.
    """
    held_out = split != "train"
    key = f"{domain}.validation" if held_out and halved else f"{domain}.{split}"
    found = [folder for folder in folders if (folder / f"{key}.tokens").exists()]
    stored = [np.load(folder / "documents.npz") for folder in found]
    if held_out and (by_digest or halved) and found:
        parts = [np.fromfile(folder / f"{key}.tokens", dtype) for folder in found]
        lengths, sizes, digests = (
            np.concatenate([each[f"{key}.{what}"] for each in stored]) for what in ("tokens", "bytes", "digest")
        )
        documents = np.split(np.concatenate(parts), np.cumsum(lengths)[:-1])
        order = np.argsort(digests, kind="stable") if by_digest else np.arange(len(digests))
        if halved:
            is_test = digests[order] % 2 == 1
            if is_test.all() or not is_test.any():
                is_test = np.arange(len(order)) % 2 == 1
            order = order[is_test == (split == "test")]
        if not len(order):
            return
        yield np.concatenate([documents[i] for i in order]), lengths[order], sizes[order]
        return
    for folder, each in zip(found, stored, strict=True):
        values = np.memmap(folder / f"{key}.tokens", dtype, mode="r")
        yield values[:0], each[f"{key}.tokens"], each[f"{key}.bytes"]
        none = np.zeros(0, np.int64)
        for start in range(0, len(values), _BLOCK_TOKENS):
            yield values[start : start + _BLOCK_TOKENS], none, none
