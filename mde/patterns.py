"""Names that users give with wildcards, as a shell has them: `minerva_*`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from mde.errors import unknown


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a name; a name means itself, whatever is in it."""
    return name == pattern or fnmatchcase(name, pattern)


def matching(kind: str, patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that any of the patterns means, in their own order.

    Args:
      kind: what is looked for, for messages.
      patterns: what users gave.
      names: those that there are.

    Raises:
      UserError: a pattern that means none of them.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise unknown(kind, pattern, names)
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]
