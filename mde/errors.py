"""What the user got wrong, said in one line.

Every command catches `UserError`, prints its message and exits with status 2, and so it does where the system says
that a place is closed, full or out of reach (`mde.buckets`); anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: names the culprit (file, run, domain, value) and what was expected."""


def check_positive(**counts: float) -> None:
    """Raises UserError at the first of the named numbers that is not positive."""
    for name, value in counts.items():
        if not value > 0:
            raise UserError(f"{name}={value!r} must be positive")


def reason(error: BaseException) -> str:
    """The first line of what an error says, for a line of ours; of a long one both ends, for the cause comes last."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].split(" [tensorstore_spec=")[0]
    return line if len(line) <= 200 else f"{line[:100]} … {line[-100:]}"


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """An error for a name that does not exist, with the nearest right one."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known are {', '.join(known) or 'none'}")
