"""What can come between: a signal to stop."""

import signal
import threading


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
