"""Duplicates and overlap against their definitions, on random and on hand-made documents."""

import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mde.domains import hygiene


def prose(seed: int, words: int = 300) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.randrange(5000)}" for _ in range(words)]


def text(seed: int, changed: int = 0) -> str:
    words = prose(seed)
    for i in range(changed):
        words[i * 300 // max(changed, 1)] = f"x{i}"
    return " ".join(words)


def first_of_similar(texts, threshold=0.7, parts=1):
    signer = hygiene.Signer()
    signatures = np.array([signer(each) for each in texts], np.uint32).reshape(-1, hygiene.PERMUTATIONS)
    opened = [functools.partial(np.asarray, part) for part in np.array_split(signatures, parts)]
    return hygiene.first_of_similar(opened, np.arange(len(texts)), threshold).tolist()


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_first_of_equals(digests):
    expected = [digest not in digests[:i] for i, digest in enumerate(digests)]
    assert hygiene.first_of_equals(np.array(digests, np.uint64)).tolist() == expected


def test_digests_of_equal_texts_are_equal():
    assert hygiene.digest(b"a") == hygiene.digest(b"a") != hygiene.digest(b"b")
    assert 0 <= hygiene.digest(b"a") < 2**64


@pytest.mark.parametrize("parts", [1, 3])
def test_the_first_of_nearly_equal_documents(parts):
    # Each changed word is in 5 of 296 shingles on either side: 4 words leave a similarity of .87, 40 of about .2.
    texts = [text(0), text(1), text(0, 4), text(2), text(1, 40), text(1, 2), text(2).upper(), "", ""]
    expected = [True, True, False, True, True, False, False, True, False]
    assert first_of_similar(texts, parts=parts) == expected


def test_few_documents():
    assert first_of_similar([]) == []
    assert first_of_similar([text(0)]) == [True]


def test_the_order_decides_who_is_first():
    signer = hygiene.Signer()
    signatures = np.array([signer(each) for each in (text(0), text(1), text(0, 3))])
    found = hygiene.first_of_similar([lambda: signatures], np.array([2, 1, 0]), 0.7)
    assert found.tolist() == [True, True, False]  # by row: 2, 1, 0
    assert hygiene.first_of_similar([lambda: signatures], np.array([1, 0]), 0.7).tolist() == [True, True]


def test_groups_are_those_of_all_pairs():
    """Against comparing every pair: what shares no band and is over the threshold would show here."""
    texts = [text(seed, changed) for seed in range(12) for changed in (0, 1, 3, 80)]
    signer = hygiene.Signer()
    signatures = np.array([signer(each) for each in texts])
    group = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if (signatures[i] == signatures[j]).mean() >= 0.7:
            group = [group[i] if each == group[j] else each for each in group]
    assert first_of_similar(texts) == [group.index(each) == i for i, each in enumerate(group)]


def test_a_signature_estimates_the_similarity():
    signer = hygiene.Signer()
    for changed in (0, 2, 6, 15, 40):
        one, other = (set(hygiene.grams(each, 5).tolist()) for each in (text(3), text(3, changed)))
        jaccard = len(one & other) / len(one | other)
        estimate = (signer(text(3)) == signer(text(3, changed))).mean()
        # 64 permutations: a standard deviation of at most .0625; 3.5 of them.
        assert abs(estimate - jaccard) < 0.22


@given(st.lists(st.sampled_from(["a", "B", "é", "x_1", "longer"]), max_size=12), st.integers(1, 5))
def test_runs_of_words_are_told_apart_as_words_are(words, length):
    padded = [word.lower() for word in words] + [""] * (length - len(words))
    runs = {tuple(padded[i : i + length]) for i in range(len(padded) - length + 1)}
    found = hygiene.grams(" , ".join(words) + ".", length)
    assert len(found) == len(runs)
    assert (np.diff(found.astype(object)) > 0).all()
    assert found.tolist() == hygiene.grams("\n".join(words).upper(), length).tolist()


def test_overlap_is_half_of_either():
    evaluation = [text(0), text(1)]
    index = hygiene.index([hygiene.grams(each, 13) for each in evaluation])
    overlap = hygiene.Overlap(*index, 13)
    assert overlap(text(0))
    assert overlap(" ".join(prose(0)[:200]))  # a part of it: all of its own runs
    assert overlap(" ".join(prose(7, 5000) + prose(0)[:200] + prose(8)))  # half of a document's, in a long one
    assert not overlap(" ".join(prose(7, 5000) + prose(0)[:100] + prose(8)))  # a third
    assert not overlap(" ".join(prose(0)[i] for i in range(0, 300, 2)))  # the same words, no run
    assert not overlap(text(5))
    assert not overlap("")
    assert not hygiene.Overlap(*hygiene.index([]), 13)(text(0))


def test_a_run_of_several_documents_is_the_firsts():
    values, owners = hygiene.index([np.array([3, 9], np.uint64), np.array([3, 4], np.uint64)])
    assert values.tolist() == [3, 4, 9]
    assert owners.tolist() == [0, 1, 0]
