"""Near duplicates are found, unlike documents are not, and the answer is always the same."""

import random

import pytest

from mde.domains.dedup import NearDuplicates


def prose(seed: int, words: int = 400) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.randrange(5000)}" for _ in range(words)]


def test_a_copy_with_a_few_words_changed_is_not_new():
    near, words = NearDuplicates(), prose(0)
    assert near.is_new(" ".join(words))
    changed = list(words)
    changed[10], changed[200] = "another", "other"  # 10 of 396 shingles differ on each side: similarity .95
    assert not near.is_new(" ".join(changed))
    assert not near.is_new("  ".join(words).upper())


def test_half_the_words_in_common_is_new():
    near = NearDuplicates()
    first, second = prose(0), prose(1)
    assert near.is_new(" ".join(first))
    assert near.is_new(" ".join(first[:200] + second[:200]))  # similarity about a third
    assert near.is_new(" ".join(second))


def test_the_order_of_words_counts():
    near, words = NearDuplicates(), prose(0)
    assert near.is_new(" ".join(words))
    assert near.is_new(" ".join(reversed(words)))


@pytest.mark.parametrize("text", ["", "one", "one two three four"])
def test_texts_shorter_than_a_shingle(text):
    near = NearDuplicates()
    assert near.is_new(text)
    assert not near.is_new(text)
    assert near.is_new("five words that are different")


def test_the_same_answers_every_time():
    texts = [" ".join(prose(seed % 30, 50 + seed)) for seed in range(60)]
    first, second = NearDuplicates(), NearDuplicates()
    answers = [first.is_new(text) for text in texts]
    assert answers == [second.is_new(text) for text in texts]
    assert set(answers) == {True, False}
