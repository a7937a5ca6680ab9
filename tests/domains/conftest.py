"""One build of the domains, and one tokenizer, for all tests of this folder."""

import pytest

from mde.domains import registry, vocabulary


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tokenizer_path(data_dir):
    path = data_dir / "tokenizer.model"
    samples = {name: vocabulary.Sample(200_000, seed=0) for name in ("bible", "licenses")}
    for name, sample in samples.items():
        for text in registry.texts(name, "train", data_dir):
            sample.add(text)
    chunks = {name: sample.chunks() for name, sample in samples.items()}
    path.write_bytes(vocabulary.train_sentencepiece(chunks, 512))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path):
    import seqio

    return seqio.SentencePieceVocabulary(str(tokenizer_path))
