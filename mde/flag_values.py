"""Words on the command line as values of an annotated type.

A number, a word, or several of them, separated by spaces or commas: `--taus 0 .1`, `--regressors ridge,auto`. Mappings
are `name=value` words: `--constraints.max web=.3 code=.2`; their values are numbers, lists (`--constraints.groups
text=web,books`) or ratios (`--constraints.ratios old=web:.6,code:.4`). A mixture in a list is one word, which may begin
with a name of its own: `--baselines uniform web=.7,code=.3 human=web:.6,code:.4`. Python's notation, as gin files have
it, works as well.
"""

import ast
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mde.errors import UserError
from mde.values import described, fits


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def parse(flag: str, words: Sequence[str], hint: Any) -> Any:
    """The value of a flag.

    Args:
      flag: its name, for messages.
      words: that follow it.
      hint: the type of its argument.

    Raises:
      UserError: words that are no value of this type.
    """
    known = options(hint)
    for option in sorted(known, key=_last):
        try:
            value = _parsed(words, option)
        except (ValueError, SyntaxError):
            continue
        if fits(value, option):
            return value
    raise UserError(f"{flag}={' '.join(words)}: expected {described(hint)}")


def _last(option: Any) -> int:
    """Mappings are tried first, then numbers, then lists, and text, which everything is, at the end."""
    order = {Mapping: 0, Sequence: 2}
    return order.get(typing.get_origin(option), 3 if option is str else 1)


def _parsed(words: Sequence[str], option: Any) -> Any:
    """Words as a value of a type that is no union; ValueError or SyntaxError where they are none."""
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin in (Mapping, Sequence) and len(words) == 1 and words[0].startswith(("{", "[", "(")):
        value = ast.literal_eval(words[0])
        return [value] if origin is Sequence and isinstance(value, Mapping) else value
    if origin is Mapping:
        return _mapping(words, inner[1])
    if origin is Sequence:
        if any(typing.get_origin(member) is Mapping for member in options(inner[0])):
            return [_mixture(part) for word in words for part in ([word] if "=" in word else word.split(","))]
        return [_parsed([part.strip()], inner[0]) for word in words for part in word.split(",") if part.strip()]
    if len(words) != 1:
        raise ValueError("one value")
    if option is str:
        return words[0]
    if option is types.NoneType:
        if words[0] != "None":
            raise ValueError("not None")
        return None
    return ast.literal_eval(words[0].strip().title() if option is bool else words[0].strip())


def _mixture(word: str) -> Any:
    """The name of a mixture, its weights, or these under a name of its own."""
    if "=" not in word:
        return word
    return _mapping([word], Mapping[str, float] if ":" in word else float)


def _mapping(words: Sequence[str], value: Any) -> dict[str, Any]:
    """`a=1 b=2`, and where values are single numbers `a=1,b=2`; `a=x,y` and `a=x:1,y:2` for lists and mappings."""
    single = typing.get_origin(value) not in (Sequence, Mapping)
    pairs = [part for word in words for part in (word.split(",") if single else [word]) if part]
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name in found:
            raise ValueError(pair)
        if typing.get_origin(value) is Mapping:
            inner = [part.partition(":") for part in text.split(",")]
            found[name] = {key: _number(number) for key, _, number in inner}
        elif typing.get_origin(value) is Sequence:
            found[name] = _parsed([text], value)
        else:
            found[name] = text if value is Any else _number(text)
    return found


def _number(text: str) -> int | float:
    return ast.literal_eval(text.strip())
