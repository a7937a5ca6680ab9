"""Corpora as seqio knows them: each of their domains a data source, and with `registry.task` a seqio task."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mde.domains import corpora, registry
from mde.domains.corpora import Corpus
from mde.domains.documents import Document, Settings, documents

if TYPE_CHECKING:
    import seqio


def domain(corpus: Corpus, name: str, settings: Settings) -> registry.Domain:
    """One of a corpus's domains, to be given to `registry.register`.

    Its documents are streamed from the files, divided as `mde prepare` divides them, and not yet compared with each
    other: duplicates are in it.
    """
    return registry.Domain(
        name=name,
        source=lambda _: _source(corpus, name, settings),
        description=f"{name}: text of {corpus.files}",
        splits=corpus.read_splits,
    )


def texts(corpus: Corpus, name: str, split: str, settings: Settings) -> Iterator[str]:
    """The texts of a domain's split, in the order of the files."""
    for shard in corpora.shards(corpus):
        if shard.split in (None, split):
            for found in documents(shard, settings):
                if isinstance(found, Document) and (found.domain, found.split) == (name, split):
                    yield found.text


def _source(corpus: Corpus, name: str, settings: Settings) -> "seqio.DataSource":
    registry.quietly_import_tensorflow()
    import seqio
    import tensorflow as tf

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # one order, that of the files
        read = functools.partial(texts, corpus, name, split, settings)
        signature = {"text": tf.TensorSpec((), tf.string)}
        return tf.data.Dataset.from_generator(lambda: ({"text": text} for text in read()), output_signature=signature)

    return seqio.FunctionDataSource(dataset, splits=corpus.splits)
