"""The documents of every domain: fair, clean, divided, and the same in every process."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from mde.domains import sources
from mde.domains.harvest import PART, cut, harvest
from mde.errors import UserError

CAP = 300_000  # bytes: enough to meet every kind of unit, and a second or two a domain


@pytest.fixture(scope="session", params=sources.SOURCES)
def harvested(request):
    return harvest(request.param, CAP)


def fingerprint(documents) -> str:
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()


def test_no_document_twice(harvested):
    texts = [document.text for document in harvested.documents]
    assert len(set(texts)) == len(texts) > 0
    ids = [document.id for document in harvested.documents]
    assert len(set(ids)) == len(ids)


def test_nothing_is_on_both_sides(harvested):
    sides = {}
    for document in harvested.documents:
        sides.setdefault(document.text, set()).add(document.split)
    assert all(len(side) == 1 for side in sides.values())
    # Under this small cap a domain of long documents may have none for validation or test yet.
    held_out = {"validation", "test"}
    allowed = held_out if harvested.provenance["domain"] == "news" else {"train", *held_out}
    assert {document.split for document in harvested.documents} <= allowed


def test_texts_are_clean(harvested):
    for document in harvested.documents:
        assert sources.SHORTEST <= len(document.text) <= sources.LONGEST
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", document.text)
        document.text.encode()  # no lone surrogates
        assert not document.id.startswith("/")
        assert sys.prefix not in document.id


def test_cap_and_counts(harvested):
    record = harvested.provenance
    documents = record["documents"]
    assert documents["kept"] + sum(documents["dropped"].values()) == documents["harvested"]
    assert documents["kept"] <= sum(split["parts"] for split in record["splits"].values()) == len(harvested.documents)
    total = sum(split["bytes"] for split in record["splits"].values())
    assert total == sum(len(document.text.encode()) for document in harvested.documents)
    assert total < CAP + sources.LONGEST
    assert record["versions"]["python"]
    assert json.loads(json.dumps(record)) == record


def test_parts_are_short_and_stay_on_their_documents_side(harvested):
    sides = {}
    for document in harvested.documents:
        assert len(document.text) <= 1.25 * PART + 1
        name, _, number = document.id.rpartition("@")
        sides.setdefault(name if number.isdigit() else document.id, set()).add(document.split)
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("line", ["", "word " * 3 + "\n", "x" * 70 + "\n", "ü" * 999 + "\n"])
@pytest.mark.parametrize("times", [1, 7, 500])
def test_parts_of_a_text_are_the_text_and_end_with_lines(line, times):
    text = line * times + "the end"
    parts = cut(text, 300)
    assert "".join(parts) == text
    assert all(200 <= len(part) <= 1.25 * 300 + 1 for part in parts) or len(text) < 200
    if len(line) < 75:
        assert all(part.endswith("\n") for part in parts[:-1])


def test_about_a_tenth_is_validation():
    documents = harvest("bible").documents
    share = sum(document.split == "validation" for document in documents) / len(documents)
    assert 0.07 < share < 0.13  # of 1,151 chapters three standard deviations are .027, and parts follow their chapters


@pytest.mark.slow
def test_another_process_with_another_hash_seed_harvests_the_same():
    names = list(sources.SOURCES)
    code = (
        "import hashlib, json\nfrom mde.domains.harvest import harvest\n"
        f"for name in {names}:\n    documents = harvest(name, 100_000).documents\n"
        "    print(name, hashlib.sha256(json.dumps(documents).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    here = [f"{name} {fingerprint(harvest(name, 100_000).documents)}" for name in names]
    assert done.stdout.split("\n")[:-1] == here


def test_near_duplicates_and_short_texts_are_dropped_and_counted(monkeypatch):
    words = [f"word{i}" for i in range(200)]
    texts = {
        "a": " ".join(words),
        "b": " ".join(words),
        "c": " ".join([*words[:-1], "changed"]),
        "d": "short",
        "e": "x" * (sources.LONGEST + 1),
        "f": " ".join(reversed(words)),
    }
    units = [sources.Unit(name, lambda name=name: [(name, texts[name])]) for name in texts]
    monkeypatch.setitem(sources.SOURCES, "made_up", sources.Source(lambda: iter(units), (), "made up"))
    made = harvest("made_up")
    assert made.provenance["documents"] == {
        "harvested": 6,
        "kept": 2,
        "dropped": {"too_short": 1, "too_long": 1, "exact_duplicates": 1, "near_duplicates": 1},
    }
    monkeypatch.setitem(sources.SOURCES, "made_up", sources.Source(lambda: reversed(units), (), "made up"))
    assert harvest("made_up").documents == made.documents


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(sources, "_installed", dict)
    with pytest.raises(UserError, match=r"gensim.*pip install"):
        harvest("wiki")


def test_unknown_domain():
    with pytest.raises(UserError, match="did you mean 'bible'"):
        harvest("bibel")
