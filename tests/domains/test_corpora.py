"""Where text lies: what becomes a corpus, which files are in it, and how they are shared out."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from mde.domains import corpora
from mde.domains.corpora import Corpus
from mde.domains.reading import Record
from mde.errors import UserError


def parse(domains, root=None):
    return corpora.parse(domains, root, "text", trained=True)


def formats(place, **settings):
    made = corpora.shards(Corpus("a", str(place), validation=str(place), **settings))
    return [shard.format for shard in made if shard.split == "train"]


def texts(corpus, shard_bytes):
    return [
        record.value["text"] if isinstance(record.value, dict) else record.value
        for shard in corpora.shards(corpus, shard_bytes)
        for _, record in corpora.records(shard, 10_000)
        if isinstance(record, Record)
    ]


def test_the_forms_of_a_domain():
    named, placed, full = parse(["wiki"])[0], parse({"web": "web/*.jsonl"})[0], parse({"c": {"files": "c/"}}, "/r")[0]
    assert (named.name, named.files, named.registered) == ("wiki", "mde:wiki", "wiki")
    assert (placed.files, placed.names, placed.registered) == ("web/*.jsonl", ("web",), None)
    assert full.files == "/r/c"
    several = {"files": "x", "domain_field": "kind", "domains": {"A": "a", "B": "b", "C": "a"}}
    assert parse({"all": several})[0].names == ("a", "b")
    assert parse({"all": {**several, "domains": ["A", "B"]}})[0].domains == {"A": "A", "B": "B"}
    assert parse({"a": "gs://bucket/a/*.zst"}, "gs://other")[0].files == "gs://bucket/a/*.zst"
    assert parse({"a": "a/*.zst"}, "gs://other")[0].files == "gs://other/a/*.zst"


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (["wikki"], "unknown domain 'wikki': did you mean 'wiki'"),
        ({"a": {"file": "x"}}, "unknown setting of domain 'a' 'file': did you mean 'files'"),
        ({"a": {"text_field": "x"}}, "domain 'a': expected 'files'"),
        ({"a b": "x"}, "domain 'a b': a name has"),
        ({"a": {"files": "x", "format": "json"}}, "unknown format of domain 'a' 'json': did you mean 'jsonl'"),
        ({"a": {"files": "x", "domain_field": "kind"}}, "'domain_field' and 'domains'"),
        (
            {"a": ["x.txt", "y.txt"]},
            r"domain 'a': \['x.txt', 'y.txt'\], expected a place .a file, a folder or a pattern",
        ),
        ({"a": 5}, "domain 'a': 5, expected a place"),
        ({"a": {"files": ["x"]}}, r"domain 'a': files = \['x'\], expected text"),
        ({"a": {"files": "x", "validation": ["y"]}}, r"domain 'a': validation = \['y'\], expected text"),
        (
            {"a": {"files": "x", "domain_field": "kind", "domains": {"v": 3}}},
            "domain 'a': domains = {'v': 3}, expected",
        ),
        ({"a": {"files": "x", "text_field": 3}}, "domain 'a': text_field = 3, expected text"),
    ],
)
def test_what_is_no_domain(domains, expected):
    with pytest.raises(UserError, match=expected):
        parse(domains)


def test_files_folders_and_patterns(tmp_path):
    for name in ("a.py", "sub/b.txt", "sub/deep/c.json", ".git/config", "d.jsonl.gz", "e.parquet", "f.json.zst"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (walked,) = ({piece.path for shard in corpora.shards(Corpus("a", str(tmp_path))) for piece in shard.pieces},)
    assert walked == {str(p) for p in tmp_path.rglob("*") if p.is_file() and ".git" not in str(p)}
    assert formats(tmp_path / "sub") == ["text"]  # a plain .json within a folder too
    assert formats(tmp_path / "sub/deep/*.json") == ["jsonl"]
    assert formats(tmp_path / "*.json.zst") == formats(tmp_path / "d.jsonl.gz") == ["jsonl"]
    assert formats(tmp_path / "e.parquet") == ["parquet"]
    assert formats(tmp_path / "a.py") == ["parts"]  # the one text that there is
    assert formats(tmp_path / "*.py") == ["text"]
    assert formats(tmp_path / "s*") == ["text"]  # the folders that match, with what is in them
    assert formats(tmp_path / "**") == formats(tmp_path / "**/*")
    assert formats(tmp_path / "sub/deep/*", format="text") == ["text"]
    with pytest.raises(UserError, match=r"domain 'a': no file matches '.*nowhere/\*\.zst'"):
        corpora.shards(Corpus("a", f"{tmp_path}/nowhere/*.zst"))


@pytest.mark.parametrize("shard_bytes", [50, 300, 1 << 20])
def test_however_files_are_shared_out_each_document_is_read_once_and_in_order(tmp_path, shard_bytes):
    lines = [json.dumps({"text": f"{i}", "pad": "x" * (i % 40)}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:30]))
    for i in range(30, 45):
        (tmp_path / f"b{i}.jsonl").write_text(lines[i])
    rows = [json.loads(line) for line in lines[45:]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=4)
    corpus = Corpus("a", str(tmp_path / "*"))
    assert texts(corpus, shard_bytes) == [f"{i}" for i in range(60)]
    shards = corpora.shards(corpus, shard_bytes)
    assert shards == corpora.shards(corpus, shard_bytes)
    assert len(shards) > 10 or shard_bytes > 50
    assert len(shards) < 60 or shard_bytes == 50


def test_given_validation_text_is_a_split_of_its_own(tmp_path):
    for name in ("train.jsonl", "held.jsonl"):
        (tmp_path / name).write_text("{}")
    corpus = Corpus("a", str(tmp_path / "train.jsonl"), validation=str(tmp_path / "held.jsonl"))
    assert [shard.split for shard in corpora.shards(corpus)] == ["train", "validation"]
    assert [shard.split for shard in corpora.shards(Corpus("a", corpus.files, trained=False))] == ["validation"]
    assert [shard.split for shard in corpora.shards(Corpus("a", corpus.files))] == [None]


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A prepared TFDS data set with nested features, 40 examples."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    texts = tf.data.Dataset.from_tensor_slices({"content": {"text": [f"é {i}" for i in range(40)]}})
    folder = tmp_path_factory.mktemp("tfds")
    inner = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="made_up",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"content": inner}),
        split_datasets={"train": texts},
        data_dir=folder,
        disable_shuffling=True,
    )
    return builder.data_path


@pytest.mark.parametrize("shard_bytes", [100, 1 << 20])
def test_tfds(tfds_folder, shard_bytes):
    corpus = Corpus("a", f"tfds:{tfds_folder}:train", text_field="content.text")
    shards = corpora.shards(corpus, shard_bytes)
    assert (len(shards) > 3) == (shard_bytes == 100)
    found = [record.value["content"]["text"].decode() for s in shards for _, record in corpora.records(s, 100)]
    assert found == [f"é {i}" for i in range(40)]
    part = corpora.shards(Corpus("a", f"tfds:{tfds_folder}:train[:25%]"), shard_bytes)
    assert sum(1 for shard in part for _ in corpora.records(shard, 100)) == 10


def test_tfds_names_that_are_none(tfds_folder):
    with pytest.raises(UserError, match=r"unknown split of tfds:.* 'trian': did you mean 'train'"):
        corpora.shards(Corpus("a", f"tfds:{tfds_folder}:trian"))
    with pytest.raises(UserError, match="expected tfds:name/config:split, found 'tfds:wikipedia'"):
        corpora.shards(Corpus("a", "tfds:wikipedia"))
    with pytest.raises(UserError, match="TFDS does not have 'no_such_thing'"):
        corpora.shards(Corpus("a", "tfds:no_such_thing:train"))
