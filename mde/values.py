"""Whether what users give is of the type that is annotated where it goes."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as arguments go: numbers, text, None, sequences and mappings."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in inner)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def described(hint: Any) -> str:
    """A type as a reader knows it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", "")
