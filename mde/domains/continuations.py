"""Multiple-choice tasks out of plain text: which of four goes on from here."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from mde.domains.end_tasks import Example

# Characters of contexts and choices, about. Choices are a word or two: what a context says of them is in their
# beginning, and how much they differ without any context grows with their length.
CONTEXT, ANSWER = 120, 6
LONGEST = 30  # characters of a choice
WRONG = 3


def continuations(texts: Sequence[str], count: int, seed: int) -> list[Example]:
    """Multiple-choice examples out of plain text: which of four goes on from here.

    A stretch of a text is cut in two between words; its end, and the ends of three stretches of other texts, are the
    choices. A text gives as many stretches, one after the other, as `count` needs.

    Args:
        texts: held-out documents of one domain.
        count: the most examples.
        seed: of the choice of wrong answers.
    """
    pieces = [(owner, *piece) for owner, text in enumerate(texts) for piece in _stretches(text)]
    rng = np.random.default_rng(seed)
    pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    made = []
    for owner, context, answer in pieces[:count]:
        others = list(dict.fromkeys(end for other, _, end in pieces if other != owner and end != answer))
        if len(others) < WRONG:
            break
        wrong = [others[i] for i in rng.choice(len(others), WRONG, replace=False)]
        at = int(rng.integers(WRONG + 1))
        choices = (*wrong[:at], answer, *wrong[at:])
        made.append(Example(context, choices, tuple(i == at for i in range(WRONG + 1)), ""))
    return made


def _stretches(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of a context and what follows it, which begins with the white space between them."""
    words = re.findall(r"\s*\S+", text)
    start = 0
    while start < len(words):
        middle = _after(words, start, CONTEXT)
        stop = _after(words, middle, ANSWER)
        if stop > len(words) or middle >= stop:
            return
        context, answer = "".join(words[start:middle]).lstrip(), "".join(words[middle:stop])
        if context and len(answer) <= LONGEST and len(context) <= 2 * CONTEXT:
            yield context, answer
        start = stop


def _after(words: Sequence[str], start: int, size: int) -> int:
    """The first position by which `size` characters of words have come; past the end if they do not."""
    total = 0
    for position in range(start, len(words)):
        total += len(words[position])
        if total >= size:
            return position + 1
    return len(words) + 1
