"""What can come between: a signal to stop, a disk that is full."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from etils import epath

from mde.errors import UserError


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
    except (OSError, ValueError) as e:  # TensorStore has no error class of its own
        if isinstance(e, OSError) or "No space left" in str(e):
            reason = str(e).strip().split("\n")[0][:200]
            raise UserError(
                f"{directory}: cannot write ({reason}); the same command goes on from the last state"
            ) from e
        raise
