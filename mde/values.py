"""Whether what users give is of the type that is annotated where it goes."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False", Any: "a value"}
_EXAMPLES = {int: "3", float: ".3", str: "'text'", Sequence[str]: "['web', 'books']", Sequence[float]: "[.1, .3]"}


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
    """A type in words, with an example where it has to be written in Python's notation."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(described(option) for option in inner if option is not types.NoneType)
    if origin is Sequence:
        return f"a list of {described(inner[0])}"
    if origin is Mapping and typing.get_origin(inner[1]) is Mapping:
        return "a number by name for each name, such as {'all': {'code': .3}}"
    if origin is Mapping:
        return f"{described(inner[1])} by name, such as {{'code': {_EXAMPLES.get(inner[1], '...')}}}"
    return _WORDS.get(hint) or str(hint)
