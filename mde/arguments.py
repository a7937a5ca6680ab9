"""What a command takes, read off its signature: one list for flags, gin bindings and keyword arguments.

Arguments that belong together are one object. A parameter annotated with a dataclass stands for its fields: `optimize`
takes `constraints: Constraints`, so there are `--constraints.max` and `optimize.constraints.max`. `Annotated[T, FLAT]`
leaves out the prefix (`--steps`); `Annotated[Mapping[str, Any] | None, Changed(T)]` is a mapping of fields of T to
change, all optional.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

FLAT = "its fields are arguments of their own"
NO_CHANGE = None  # the default of a field in a mapping of changes
MISSING = inspect.Parameter.empty


class Argument(NamedTuple):
    """One argument of a command.

    Attributes:
      parameter: of the function, which it is or is a field of.
      field: of the parameter's dataclass; "" for a plain parameter.
      annotation: its type.
      default: its default, `MISSING` where there is none.
      text: what it means.
    """

    parameter: str
    field: str
    annotation: Any
    default: Any
    text: str


class Changed(NamedTuple):
    """Marks a mapping of fields of a dataclass to change.

    Attributes:
      of: the dataclass.
      without: fields that cannot be changed.
    """

    of: type
    without: tuple[str, ...] = ()


def arguments(function: Callable[..., Any]) -> dict[str, Argument]:
    """By name, all arguments of a command but the study; those in objects are `object.field`, or `field` if flat."""
    texts = described(inspect.getdoc(function) or "", "Args")
    found: dict[str, Argument] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name == "study":
            continue
        expanded = _fields(name, parameter) or {
            name: Argument(name, "", parameter.annotation, parameter.default, texts.get(name, ""))
        }
        found |= expanded
    return found


def keywords(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a call: the values of all arguments, with objects made of their fields."""
    plain: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, argument in arguments(function).items():
        if argument.field:
            parts.setdefault(argument.parameter, {})[argument.field] = values[name]
        else:
            plain[argument.parameter] = values[name]
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if name in parts:
            of, marks = _unwrapped(parameter.annotation)
            changed = any(isinstance(mark, Changed) for mark in marks)
            fields = {key: value for key, value in parts[name].items() if value is not NO_CHANGE}
            plain[name] = fields if changed else of(**parts[name])
    return plain


def flattened(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with objects, and mappings that stand for them, taken apart: `constraints={"max": ...}`."""
    known = arguments(function)
    prefixes: dict[str, dict[str, str]] = {}
    for name, argument in known.items():
        if argument.field:
            prefixes.setdefault(argument.parameter, {})[argument.field] = name
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in prefixes or name in known:
            found[name] = value
            continue
        fields = _given_fields(value)
        # An unknown field keeps its name, for the error that names the nearest right one.
        found |= {prefixes[name].get(field, f"{name}.{field}"): inner for field, inner in fields.items()}
    return found


def described(doc: str, section: str) -> dict[str, str]:
    """By name, the entries of a section of a docstring, such as `Args` or `Attributes`."""
    body = re.search(rf"^{section}:\n((?:  .*\n?|\n)*)", doc, re.MULTILINE)
    entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", body[1] if body else "", re.MULTILINE)
    return {name: " ".join(lines.split()) for name, lines in entries}


def _given_fields(value: Any) -> Mapping[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value or {}


def _fields(name: str, parameter: inspect.Parameter) -> dict[str, Argument]:
    """The arguments that a parameter stands for; none where it is a plain one."""
    of, marks = _unwrapped(parameter.annotation)
    changed = next((mark for mark in marks if isinstance(mark, Changed)), None)
    if changed:
        of = changed.of
    if not dataclasses.is_dataclass(of):
        return {}
    texts = described(inspect.getdoc(of) or "", "Attributes")
    hints, prefix = typing.get_type_hints(of), "" if FLAT in marks else f"{name}."
    own = parameter.default if dataclasses.is_dataclass(parameter.default) else None
    found = {}
    for field in dataclasses.fields(typing.cast(Any, of)):
        if changed and field.name in changed.without:
            continue
        annotation, default = hints[field.name], _default(field) if own is None else getattr(own, field.name)
        if changed:
            annotation, default = annotation | None, NO_CHANGE
        found[prefix + field.name] = Argument(name, field.name, annotation, default, texts.get(field.name, ""))
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def _unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its marks, and these."""
    if typing.get_origin(annotation) is Annotated:
        of, *marks = typing.get_args(annotation)
        return of, tuple(marks)
    return annotation, ()
