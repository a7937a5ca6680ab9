"""What is said of a type that was expected."""

from collections.abc import Mapping, Sequence

import pytest

from mde.values import described


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number"),
        (Sequence[str], "a list of text"),
        (Mapping[str, float] | None, "a number by name, such as {'code': .3}"),
        (str | Mapping[str, float], "text or a number by name, such as {'code': .3}"),
        (Mapping[str, Sequence[str]], "a list of text by name, such as {'code': ['web', 'books']}"),
    ],
)
def test_types_are_described_in_words(hint, words):
    assert described(hint) == words
