"""The domains by name, and what `prepare` asks of one: its texts, and where they came from.

To add a domain, `register` a `Domain` whose `source` gives a `seqio.DataSource` with a text feature: a
`seqio.TfdsDataSource`, `seqio.FunctionDataSource`, or one's own. TensorFlow is imported only once a source is opened;
names and descriptions can be listed without it.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mde.errors import UserError, unknown

if TYPE_CHECKING:
    import seqio

PathLike = str | os.PathLike


@dataclass(frozen=True)
class Domain:
    """A domain of text.

    Attributes:
        name: letters, digits, `_`, `.`, and `:`, as seqio wants names to be.
        source: opens the domain's data, which may be kept below the given directory.
        description: one line on what the text is.
        splits: the splits the source has; without `train`, a domain is for evaluation only; without `test`, half
            of the documents of `validation` are test text.
        text_feature: the feature of the source's examples that holds the text.
    """

    name: str
    source: Callable[[PathLike], "seqio.DataSource"]
    description: str
    splits: tuple[str, ...] = ("train", "validation")
    text_feature: str = "text"


_DOMAINS: dict[str, Domain] = {}


def register(domain: Domain) -> Domain:
    """Make a domain known by its name.

    Raises:
        UserError: the name is taken.
    """
    if domain.name in _DOMAINS:
        raise UserError(f"domain {domain.name!r} is registered already ({_DOMAINS[domain.name].description})")
    _DOMAINS[domain.name] = domain
    return domain


def get(name: str) -> Domain:
    """The domain of that name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in _DOMAINS:
        raise unknown("domain", name, _DOMAINS)
    return _DOMAINS[name]


def names() -> list[str]:
    """The names of all domains, in the order they were registered."""
    return list(_DOMAINS)


def texts(domain: str, split: str, data_dir: PathLike) -> Iterator[str]:
    """The documents' texts in the source's order.

    Raises:
        UserError: unknown domain, or a split that it does not have.
    """
    found = _with_split(domain, split)
    dataset = found.source(data_dir).get_dataset(split, shuffle=False)
    for example in dataset.as_numpy_iterator():
        yield example[found.text_feature].decode()


def provenance(domain: str, data_dir: PathLike) -> dict:
    """Where the domain's text came from, for a record in JSON.

    For a TFDS data set its full name, the documents in each split and the data set's own metadata; for `installed_text`
    these are the packages' versions, and the documents harvested, dropped (and why) and kept.
    """
    seqio = _seqio()
    found = get(domain)
    source = found.source(data_dir)
    record: dict = {"domain": found.name, "description": found.description, "source": type(source).__name__}
    if isinstance(source, seqio.TfdsDataSource):
        info = source.tfds_dataset.info
        record["source"] = info.full_name
        record["documents"] = {split: info.splits[split].num_examples for split in found.splits}
        record["metadata"] = dict(info.metadata or {})
    return record


def quietly_import_tensorflow() -> None:
    """TensorFlow greets from C++ whatever its log level is."""
    with _without_stderr():
        import tensorflow  # noqa: F401


def _seqio() -> Any:
    """The module, and TensorFlow with it, which greets from C++ whatever its log level is."""
    with _without_stderr():
        import seqio
    return seqio


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Sends what C++ writes to standard error nowhere; exceptions are Python's and come through."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _with_split(name: str, split: str) -> Domain:
    domain = get(name)
    if split not in domain.splits:
        raise unknown("split", f"{name}/{split}", [f"{name}/{known}" for known in domain.splits])
    return domain


def installed_text(name: str, data_dir: PathLike) -> "seqio.DataSource":
    """A domain of the `installed_text` data set, harvested into `data_dir` on first use."""
    seqio = _seqio()
    from mde.domains.installed_text import build

    builder = build(name, data_dir)
    # Opened by its directory and read only: by its name, seqio would first ask Google's bucket for a copy.
    return seqio.TfdsDataSource(
        tfds_data_dir=os.fspath(builder.data_path), splits=tuple(builder.info.splits), read_only=True
    )


def _register_installed_text() -> None:
    from mde.domains.sources import SOURCES

    for name, source in SOURCES.items():
        register(Domain(name, functools.partial(installed_text, name), source.description, source.splits))


_register_installed_text()
