"""A bar that moves while methods are cross-validated, within a method as well."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def of_methods(what: str, methods: int) -> Iterator[Callable[[float], None]]:
    """A bar over so many methods, and what is to be told which part of one was done since."""
    with tqdm(desc=what, total=methods, unit="method", unit_scale=True) as bar:

        def advance(part: float) -> None:
            bar.update(min(part, methods - bar.n))  # parts sum to one but for rounding

        yield advance
