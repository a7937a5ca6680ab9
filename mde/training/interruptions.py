"""What can come between: a signal to stop, a disk that is full, a bucket that is out of reach."""

import contextlib
import errno
import re
import signal
import threading
from collections.abc import Iterator

from etils import epath

from mde import buckets
from mde.errors import UserError, reason

# What TensorStore's errors begin with that are not about what is stored.
BUCKET_STATES = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


class Termination:
    """Takes note of SIGTERM instead of dying of it, where signals can be handled (in the main thread).

    Attributes:
      asked: whether we have been asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Termination":
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self.asked = True


@contextlib.contextmanager
def writing(directory: epath.Path) -> Iterator[None]:
    """Says in one line that a disk is full or a directory closed to us; what was being written counts for nothing."""
    try:
        yield
    except Exception as e:
        if not any(map(_is_of_the_place, _chain(e))):
            raise
        raise UserError(f"{directory}: cannot write ({reason(e)}); the same command goes on from the last state") from e


@contextlib.contextmanager
def reading(place: epath.Path) -> Iterator[None]:
    """Says in one line that a place cannot be read just now, or not by a machine with so little memory.

    What is wrong with what lies there is passed on.
    """
    try:
        yield
    except Exception as e:
        if not any(_is_of_the_place(each) and not _says_nothing_there(each) for each in _chain(e)):
            raise
        raise UserError(
            f"{place}: cannot be read ({reason(e)}); nothing was deleted, the same command goes on when it can be"
        ) from e


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _is_of_the_place(error: BaseException) -> bool:
    """Whether an error is the system's, a bucket's or one of memory that has run out."""
    if isinstance(error, ValueError | RuntimeError):  # TensorStore has no error class of its own; JAX's is the second
        return "[os_error_code=" in str(error) or str(error).startswith(BUCKET_STATES)
    return isinstance(error, MemoryError) or buckets.is_of_a_place(error)


def _says_nothing_there(error: BaseException) -> bool:
    """Whether the system says that a file is missing, or is a directory, or has one for a part of its path."""
    if isinstance(error, OSError):
        code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)
    else:
        found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        code = int(found[1]) if found else None
    return code in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
