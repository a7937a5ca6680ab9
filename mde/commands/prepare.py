"""`mde prepare`: text into tokens."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from etils import epath

from mde import buckets, hosts
from mde.arguments import FLAT
from mde.data import tokens
from mde.errors import UserError, check_positive, unknown
from mde.results import added_domains
from mde.results.task_stores import NEXT, TaskStores
from mde.study import FORMAT, Study, digest

_TABLE, _PROBLEMS = "corpus.csv", "problems.csv"
_KEPT = 10_000  # problems that are kept one by one
_SMALL = 32 << 20  # bytes of files that are read here sooner than other processes have started


@dataclasses.dataclass(frozen=True)
class _Given:
    """A tokenizer that need not be trained."""

    kind: str
    content: bytes
    start_token: str | None
    end_token: str | None


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What text is encoded with.

    Attributes:
      tokenizer: `train` (SentencePiece, on a sample of all training domains), `bytes`, or the path of a
        SentencePiece model or of a Hugging Face `tokenizer.json`.
      vocab_size: pieces of the tokenizer, if it is trained.
      start_token: what begins a document, for a `tokenizer.json` where it is not one of the usual names.
      end_token: what ends a document, likewise.
    """

    tokenizer: str = "train"
    vocab_size: int = 8192
    start_token: str | None = None
    end_token: str | None = None

    def __post_init__(self) -> None:
        check_positive(vocab_size=self.vocab_size)

    def given(self) -> _Given | None:
        """The tokenizer at a path, opened once to see that it is one; None if it is to be trained."""
        from mde.domains import tokenizers

        if self.tokenizer == "train":
            return None
        if self.tokenizer == tokenizers.BYTES:
            return _Given("bytes", b"", None, None)
        path = epath.Path(self.tokenizer).expanduser()
        if not path.is_file():
            raise UserError(f"prepare.tokenizer: no file {self.tokenizer!r}; expected 'train', 'bytes' or a path")
        kind = "huggingface" if self.tokenizer.endswith(".json") else "sentencepiece"
        given = _Given(kind, path.read_bytes(), self.start_token, self.end_token)
        tokenizers.make(kind, given.content, self.tokenizer, self.start_token, self.end_token)
        return given


@dataclasses.dataclass(frozen=True)
class Tasks:
    """End tasks, which are evaluated on by their answers.

    Attributes:
      tasks: end tasks, which are evaluated on by their answers; by name the place of examples with a `question`,
        `choices` and the `answer`, or a mapping with its `files` and their layout (see `configs/tasks/`).
      continuations: domains out of whose held-out text such tasks are made, NAME-next: which of four texts goes on.
      continuation_examples: the most of each.
      task_root: the same for the tasks' places.
    """

    tasks: Mapping[str, Any] | None = None
    continuations: Sequence[str] = ()
    continuation_examples: int = 500
    task_root: str | None = None

    def __post_init__(self) -> None:
        check_positive(continuation_examples=self.continuation_examples)


@dataclasses.dataclass(frozen=True)
class Text:
    """How text is read, cleaned and held out.

    Attributes:
      root: the folder or bucket where relative places begin; where the command is run if None.
      text_field: what holds the text of a JSON line, a row or an example; may be nested, as `content.text`.
      validation_share: fraction of the documents that is validation text, chosen by hash, where no validation text is
        given; as many again are test text, which only validation runs and full models are scored on.
      validation_bytes: UTF-8 bytes of the longest validation and test split; what was held out beyond is not used.
      shortest: characters of the shortest document.
      near_duplicates: Jaccard similarity of 5-word shingles from which a later document is dropped; 0 for never.
      overlap_words: training documents are dropped that repeat evaluation text in runs of so many words; 0 for none.
      max_document_bytes: of the longest line, text file and text.
      on_error: `skip` counts what cannot be read and goes on, `fail` stops there.
    """

    root: str | None = None
    text_field: str = "text"
    validation_share: float = 0.05
    validation_bytes: int = 16_000_000
    shortest: int = 100
    near_duplicates: float = 0.7
    overlap_words: int = 13
    max_document_bytes: int = 20_000_000
    on_error: str = "skip"

    def __post_init__(self) -> None:
        check_positive(validation_bytes=self.validation_bytes, max_document_bytes=self.max_document_bytes)
        for name, most in (("validation_share", 0.5), ("near_duplicates", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)!r} must be between 0 and {most:g}")
        if min(self.shortest, self.overlap_words) < 0:
            raise UserError(f"shortest={self.shortest} and overlap_words={self.overlap_words} must not be negative")
        if self.on_error not in ("skip", "fail"):
            raise unknown("value of on_error", self.on_error, ["skip", "fail"])


def prepare(
    study: Study,
    training_domains: Sequence[str] | Mapping[str, Any],
    evaluation_domains: Sequence[str] | Mapping[str, Any] = (),
    tasks: Annotated[Tasks, FLAT] = Tasks(),
    tokenizer: Annotated[Tokenizer, FLAT] = Tokenizer(),
    text: Annotated[Text, FLAT] = Text(),
    processes: int | None = None,
    seed: int = 0,
) -> None:
    """Cleans the domains' text, makes or takes a tokenizer, and keeps every domain's tokens once.

    Text is read as a stream, by several processes, and what they have done is kept if they are killed. Registered
    domains divide and clean their text themselves, so the settings from `text_field` to `on_error` pass them by.

    A study that holds runs grows: named again with all that it had, further domains join it. Its tokenizer and tokens
    stay as they are, and of the new text goes what repeats theirs.

    Args:
      study: where to.
      training_domains: names of registered domains; or by name the place of a domain's text (a file, a folder, a
        pattern, `tfds:name/config:split`, `mde:registered`), or a mapping with its `files` and, if need be,
        `validation`, `test`, `text_field`, `format`; and `domain_field` and `domains` (name by value) for several in
        one.
      evaluation_domains: further domains, in the same forms, that are evaluated on and never trained on.
      tasks: end tasks, and how they are made.
      tokenizer: that text is encoded with.
      text: how text is read, cleaned and held out.
      processes: that read and tokenize; one a core if None.
      seed: of the sample that the tokenizer is trained on.

    Raises:
      UserError: an unknown domain, setting or field, one named twice, fewer than two to train on, no file at a place, a
        domain or task without a document; a study that holds runs, and whose domains are not all named again, or have
        other text, settings, tokenizer or tasks.
    """
    from mde.domains import corpora, end_tasks
    from mde.domains.documents import Settings

    check_positive(processes=1 if processes is None else processes)
    found = corpora.parse(training_domains, text.root, text.text_field, trained=True)
    found += corpora.parse(evaluation_domains, text.root, text.text_field, trained=False)
    training = [name for corpus in found if corpus.trained for name in corpus.names]
    domains = [name for corpus in found for name in corpus.names]
    for name in tasks.continuations:
        if name not in domains:
            raise unknown("domain in continuations", name, domains)
    asked = end_tasks.parse(tasks.tasks or {}, tasks.task_root)
    everything = domains + [task.name for task in asked] + [name + NEXT for name in tasks.continuations]
    if len(training) < 2 or len(set(everything)) < len(everything):
        raise UserError(
            f"prepare needs at least two training domains and each domain once, got {', '.join(everything)}"
        )
    parts = added_domains.parts(study, found)
    first = [name for corpus in parts[0] if corpus.trained for name in corpus.names]
    settings = Settings(
        corpus_dir=str(_on_disk(study) / "corpus"),
        validation_share=text.validation_share,
        validation_bytes=text.validation_bytes,
        shortest=text.shortest,
        near_duplicates=text.near_duplicates,
        overlap_words=text.overlap_words,
        max_document_bytes=text.max_document_bytes,
        on_error=text.on_error,
        sample_bytes=0 if tokenizer.tokenizer != "train" else _sample_bytes(len(first)),
        seed=seed,
    )
    made = TaskStores(study, asked, tasks.continuations, tasks.continuation_examples, settings)
    _Preparation(study, found, parts, made, settings, tokenizer, processes or hosts.cores()).run()


def inputs(study: Study, arguments: Mapping[str, Any]) -> list[Any]:
    """The files of text and tasks with their sizes and times; registered domains and TFDS data sets are their names."""
    from mde.domains import corpora, end_tasks

    found = [end_tasks.corpus(task) for task in end_tasks.parse(arguments["tasks"] or {}, arguments["task_root"])]
    for name in ("training_domains", "evaluation_domains"):
        trained = name == "training_domains"
        found += corpora.parse(arguments[name], arguments["root"], arguments["text_field"], trained)
    shards = [shard for each in found if not each.files.startswith(("mde:", "tfds:")) for shard in corpora.shards(each)]
    return [piece for shard in shards for piece in shard.pieces]


def _sample_bytes(domains: int) -> int:
    from mde.domains.vocabulary import SAMPLE_BYTES

    return SAMPLE_BYTES // domains


class _Preparation:
    """The steps of one `mde prepare`."""

    def __init__(
        self,
        study: Study,
        found: Sequence[Any],
        parts: Sequence[Sequence[Any]],
        tasks: TaskStores,
        settings: Any,
        tokenizer: Tokenizer,
        processes: int,
    ):
        self.study, self.found, self.tasks, self.settings = study, found, tasks, settings
        self.parts = parts  # of what was found, by when it joined the study
        self.given, self.vocab_size, self.processes = tokenizer.given(), tokenizer.vocab_size, processes
        self.directory = study.root / "tokenizer"

    def run(self) -> None:
        """All of it; what is there already is not made again."""
        from mde.domains import corpora, decisions, passes, tables, workers

        shards = [shard for corpus in self.found for shard in corpora.shards(corpus)]
        names = [passes.name(shard, _facts(self.settings)) for shard in shards]
        self.sources = self._sources(shards, names)
        self.recipe = self._recipe()
        tally = tables.Tally()
        problems = self.tasks.read(tally)
        said = [_facts(self.settings), *self.tasks.digests]
        self.digests = added_domains.digests(self.parts, self.sources, self.recipe, said)
        added_domains.check(self.study, self.parts, self.sources, self.recipe, self.digests)
        if sum(shard.size for shard in shards) < _SMALL:
            self.processes = 1
        scratch = _scratch(self.study)
        jobs = [(shard, self.settings, scratch / name) for shard, name in zip(shards, names, strict=True)]
        abouts = workers.over(passes.survey, jobs, self.processes, "read")
        times = {corpus.name: number for number, part in enumerate(self.parts) for corpus in part}
        surveyed = [
            decisions.Surveyed(shard, about, scratch / name, times[shard.corpus.name])
            for shard, about, name in zip(shards, abouts, names, strict=True)
        ]
        problems = decisions.surveys(surveyed, tally) + problems
        keep = decisions.decide(surveyed, self.settings, tally)
        if self.parts[1:] and self.settings.overlap_words:
            keep = self._without_repeated(surveyed, keep, names, scratch, tally)
        decisions.check(surveyed, keep, tally)
        self.study.changed = True
        self._make_tokenizer(surveyed)
        outputs = self._tokenize(surveyed, keep, names, scratch, tally)
        stores = self._assemble(surveyed, outputs)
        stores |= self.tasks.write(self.tokenizer, self.recipe, stores)
        self.sources |= self.tasks.sources
        table = self._table(stores, tally)
        self.study.write_table(_TABLE, table)
        columns = ["file", "line", "reason", "detail"]
        self.study.write_table(_PROBLEMS, pd.DataFrame(problems[:_KEPT], columns=columns).set_index("file"))
        self._describe(stores)
        epath.Path(scratch).rmtree()
        print(tables.printed(table, problems, tally, self.study.root / _PROBLEMS))

    def _sources(self, shards: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        """By domain, where its text comes from."""
        from mde.domains import registry

        sources: dict[str, Any] = {}
        for corpus in self.found:
            mine = [(shard, name) for shard, name in zip(shards, names, strict=True) if shard.corpus is corpus]
            if corpus.registered:
                record = registry.provenance(corpus.registered, self.settings.corpus_dir)
            else:
                about = {k: v for k, v in dataclasses.asdict(corpus).items() if v not in (None, {}) and k != "name"}
                size = sum(shard.size for shard, _ in mine)
                record = {"description": f"text of {corpus.name}", "source": corpus.files, **about}
                record |= {"shards": len(mine), "bytes": size, "digest": digest([name for _, name in mine])}
            sources |= dict.fromkeys(corpus.names, record)
        return sources

    def _recipe(self) -> str:
        """Names the tokenizer: everything that decides about it; it stays when domains join those of the first time."""
        training = [name for corpus in self.parts[0] if corpus.trained for name in corpus.names]
        if self.given is not None:
            given = [self.given.kind, self.given.content.hex(), self.given.start_token, self.given.end_token]
            return digest([training, given, [self.sources[name] for name in training]])
        return digest([training, self.vocab_size, self.settings.seed, [self.sources[name] for name in training]])

    def _without_repeated(
        self, surveyed: Sequence[Any], keep: Sequence[np.ndarray], names: Sequence[str], scratch: Path, tally: Any
    ) -> list[np.ndarray]:
        """Takes out evaluation text that joined after training text which repeats it: that stays."""
        from mde.domains import decisions, passes, workers

        runs = scratch / "joined"
        places = decisions.index_joined(surveyed, keep, runs)
        last, shards, jobs = len(self.parts) - 1, [], []
        for i, each in enumerate(surveyed):
            corpus, kept = each.shard.corpus, each.folder / "keep.npy"
            if each.joined < last and corpus.trained and not corpus.registered and each.shard.split in (None, "train"):
                np.save(kept, keep[i])
                shards.append(each)
                folder = scratch / f"{names[i]}-repeated-{digest(list(names))}"
                jobs.append((each.shard, self.settings, folder, kept, runs))
        found = set()
        for each, about in zip(shards, workers.over(passes.repeat, jobs, self.processes, "compare"), strict=True):
            found |= {places[n] for n in about["documents"] if surveyed[places[n][0]].joined > each.joined}
        return decisions.drop_repeated(surveyed, keep, sorted(found), tally)

    def _make_tokenizer(self, surveyed: Sequence[Any]) -> None:
        """Trains it or copies it, unless it is there."""
        from mde.domains import decisions, tokenizers, vocabulary

        if not tokenizers.is_kept(self.directory, self.recipe):
            if self.given is None:
                first = [each for each in surveyed if not each.joined]
                samples = decisions.samples(first, self.settings.sample_bytes, self.settings.seed)
                content = vocabulary.train_sentencepiece(samples, self.vocab_size)
                tokenizers.keep(self.directory, self.recipe, "sentencepiece", content)
            else:
                kind, content, start, end = dataclasses.astuple(self.given)
                tokenizers.keep(self.directory, self.recipe, kind, content, start, end)
        self.tokenizer = tokenizers.load(self.directory)

    def _tokenize(
        self, surveyed: Sequence[Any], keep: Sequence[np.ndarray], names: Sequence[str], scratch: Path, tally: Any
    ) -> list[Path]:
        """Runs the second pass; returns the shards' folders. Of text that joined earlier the tokens may be there."""
        from mde.domains import decisions, passes, tables, workers

        everything = digest([self.recipe, list(names), *self.tasks.digests])
        folders = [scratch / f"{name}-{everything}" for name in names]
        there = {corpus.name for part in self.parts[:-1] for corpus in part if self._is_kept(corpus)}
        wanted = [i for i, each in enumerate(surveyed) if each.shard.corpus.name not in there]
        runs = {number: scratch / f"runs-{number}" for number in {surveyed[i].joined for i in wanted}}
        for number, where in runs.items():
            known = [i for i, each in enumerate(surveyed) if each.joined <= number]
            decisions.index_runs([surveyed[i] for i in known], [keep[i] for i in known], where, self.tasks.runs())
        jobs = []
        for i in wanted:
            each, kept = surveyed[i], surveyed[i].folder / "keep.npy"
            np.save(kept, keep[i])
            jobs.append((each.shard, self.settings, folders[i], kept, runs[each.joined], str(self.directory)))
        for about in workers.over(passes.tokenize, jobs, self.processes, "tokenize"):
            for domain, count, size in about["overlap"]:
                tally.add(domain, tables.OVERLAP, count, size)
        return folders

    def _is_kept(self, corpus: Any) -> bool:
        """Whether all tokens of a corpus are there."""
        places = [f"{name}/{split}" for _, split, name in added_domains.stores([corpus])]
        return all(_is_store(self.study.root / "tokens" / place, self.digests[place]) for place in places)

    def _table(self, stores: Mapping[str, Any], tally: Any) -> pd.DataFrame:
        """What became of the documents; of those that joined earlier, what was said then."""
        from mde.domains import tables

        table = tables.table(stores, tally, self.found, self.tasks.names)
        earlier = {row for part in self.parts[:-1] for corpus in part for row in (corpus.name, *corpus.names)}
        if earlier:
            before = self.study.read_table(_TABLE, "prepare", table.columns)
            rows = [row for row in table.index if row in earlier and row in before.index]
            table.loc[rows] = before.loc[rows]
        return table

    def _assemble(self, surveyed: Sequence[Any], outputs: Sequence[Path]) -> dict[str, Any]:
        """Writes the token stores, and says what is in them."""
        from mde.domains import passes

        dtype = passes.token_type(self.tokenizer.vocab_size)
        stores: dict[str, Any] = {}
        for corpus in self.found:
            folders = [out for each, out in zip(surveyed, outputs, strict=True) if each.shard.corpus is corpus]
            for _, split, domain in added_domains.stores([corpus]):
                wanted = self.digests[f"{domain}/{split}"]
                directory = self.study.root / "tokens" / domain / split
                if not _is_store(directory, wanted):
                    blocks = passes.blocks(folders, domain, split, dtype, not corpus.registered, corpus.halved)
                    tokens.write_blocks(directory, blocks, wanted, dtype)
                store = tokens.TokenStore(directory)
                if not store.n_documents and split == "test":
                    print(
                        f"warning: domain {domain!r}: too few held-out documents for a test split; validation runs and "
                        "full models will be scored on validation text",
                        file=sys.stderr,
                    )
                    continue
                if not store.n_documents:
                    raise UserError(f"domain {domain!r} is empty: all its documents repeat evaluation text")
                stores[f"{domain}/{split}"] = {
                    "tokens": store.n_tokens,
                    "documents": store.n_documents,
                    "bytes": store.n_bytes,
                    "digest": wanted,
                }
        return stores

    def _describe(self, stores: Mapping[str, Any]) -> None:
        """Writes `study.json`, the last of all."""
        added_domains.set_aside(self.study, self.parts)
        self.study.describe(
            {
                "format": FORMAT,
                **({"joined": [added_domains.names(part) for part in self.parts[1:]]} if self.parts[1:] else {}),
                "training_domains": [name for corpus in self.found if corpus.trained for name in corpus.names],
                "evaluation_domains": [*(name for corpus in self.found for name in corpus.names), *self.tasks.names],
                **({"tasks": self.tasks.names} if self.tasks.names else {}),
                "vocab_size": self.tokenizer.vocab_size,
                "start": self.tokenizer.start,
                "end": self.tokenizer.end,
                "tokenizer": self.recipe,
                "stores": stores,
                "sources": self.sources,
            }
        )


def _is_store(directory: epath.Path, wanted: str) -> bool:
    """Whether a store of this digest is there, and whole."""
    try:
        return (directory / "store.json").exists() and tokens.TokenStore(directory).digest == wanted
    except UserError:
        return False


def _facts(settings: Any) -> dict[str, Any]:
    """The settings that what is made depends on, and the splits that text is divided into."""
    from mde.domains.corpora import SPLITS

    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("corpus_dir", "on_error")} | {
        "splits": SPLITS
    }


def _scratch(study: Study) -> Path:
    """Where shards are kept until all is done."""
    return _on_disk(study) / "corpus" / "parts"


def _on_disk(study: Study) -> Path:
    """The study, or if it is in a bucket, a folder of its own on this machine's disk."""
    if buckets.is_bucket(study.root):
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return home / "mde" / digest(str(study.root))
    return Path(study.root)
