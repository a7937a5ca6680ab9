"""Words on the command line become values of the arguments' types."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mde import flag_values
from mde.errors import UserError

Weights = Mapping[str, float] | None
Named = str | Mapping[str, float] | None
Mixtures = Sequence[str | Mapping[str, Any]]


@pytest.mark.parametrize(
    ("words", "hint", "value"),
    [
        (["3"], int, 3),
        (["1e9"], float, 1e9),
        (["None"], int | None, None),
        (["true"], bool, True),
        (["none"], float | str | None, "none"),
        ([".5"], float | str | None, 0.5),
        (["web=.3", "code=.2"], Weights, {"web": 0.3, "code": 0.2}),
        (["web=.3,code=.2"], Weights, {"web": 0.3, "code": 0.2}),
        (["{'web': .3}"], Weights, {"web": 0.3}),
        (["avg-all"], Named, "avg-all"),
        (["math=2", "code=1"], Named, {"math": 2, "code": 1}),
        (["4"], float | Mapping[str, float] | None, 4),
        (["web=4"], float | Mapping[str, float] | None, {"web": 4}),
        (["text=web,books", "code=cpp"], Mapping[str, Sequence[str]], {"text": ["web", "books"], "code": ["cpp"]}),
        (["text=.2,.5"], Mapping[str, Sequence[float]], {"text": [0.2, 0.5]}),
        (["old=web:.6,code:.4"], Mapping[str, Mapping[str, float]], {"old": {"web": 0.6, "code": 0.4}}),
        (["0", ".1"], Sequence[float], [0, 0.1]),
        (["0,.1"], Sequence[float], [0, 0.1]),
        ([""], Sequence[int] | None, []),
        (["ridge,auto", "gp"], Sequence[str], ["ridge", "auto", "gp"]),
        (["{'web': .7, 'code': .3}"], Mixtures, [{"web": 0.7, "code": 0.3}]),
        (["uniform,best observed"], Mixtures, ["uniform", "best observed"]),
        (
            ["uniform", "web=.7,code=.3", "human=web:.6,code:.4"],
            Mixtures,
            ["uniform", {"web": 0.7, "code": 0.3}, {"human": {"web": 0.6, "code": 0.4}}],
        ),
    ],
)
def test_words_are_values(words, hint, value):
    assert flag_values.parse("--flag", words, hint) == value


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["1.5"], int),
        (["many"], int),
        (["1", "2"], int),
        (["web"], Weights),
        (["web=x"], Weights),
        (["web=.3", "web=.2"], Weights),
        (["{'web': 'x'}"], Weights),
        (["old=web"], Mapping[str, Mapping[str, float]]),
        (["a"], Sequence[float]),
    ],
)
def test_words_that_are_no_value_are_named_with_what_was_expected(words, hint):
    with pytest.raises(UserError, match=r"^--flag=.*: expected "):
        flag_values.parse("--flag", words, hint)
