"""One build of the domains, and one tokenizer, for all tests of this folder."""

import pytest

from mde.domains import registry, vocabulary


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tokenizer_path(data_dir):
    path = data_dir / "tokenizer.model"
    texts = {name: registry.texts(name, "train", data_dir) for name in ("bible", "licenses")}
    vocabulary.train_sentencepiece(texts, path, 512, sample_bytes=400_000)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    return vocabulary.load(tokenizer_path)
