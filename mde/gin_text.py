"""Arguments of a command, written as gin reads them."""

from collections.abc import Mapping
from typing import Any


def binding(command: str, name: str, value: Any) -> str:
    """One binding; values are numbers, text, None, and lists, tuples and mappings of these."""
    return f"{command}.{name} = {value!r}"


def record(command: str, resolved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The file that runs a command again with all its arguments: those that were given, then the defaults it ran with.

    Args:
      command: its name.
      resolved: all arguments.
      given: those that were bound.
    """
    bound = [binding(command, name, resolved[name]) for name in resolved if name in given]
    defaults = [binding(command, name, resolved[name]) for name in resolved if name not in given]
    sections = {"Bound:": bound, "Defaults:": defaults}
    lines = [f"# mde {command} --study=DIR --gin_file=THIS_FILE"]
    for title, bindings in sections.items():
        lines += ["", f"# {title}", *bindings] if bindings else []
    return "\n".join(lines) + "\n"
