"""Running other programs' commands, or printing them. No shell reads them here: what a binding holds stays one word."""

import io
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from mde.errors import UserError

ANSWERS = 5  # times in a row that a service is asked how things are before it counts as out of reach
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Shell:
    """Runs commands.

    Attributes:
      dry_run: print them instead.
    """

    def __init__(self, dry_run: bool = False, secrets: Sequence[str] = ()):
        self.dry_run = dry_run
        self._values = [os.environ[name] for name in secrets if os.environ.get(name)]

    def run(self, argv: Sequence[str], show: Callable[[str], None] | None = None) -> tuple[int, str]:
        """Runs a command to its end.

        Args:
          argv: the program and its arguments.
          show: called with each line as it comes, warnings and errors too; the command itself is printed then.

        Returns:
          Its exit status and what it printed, without secrets; what went to standard error only if it was shown or the
          command failed, for an answer is not to be taken for one because there was a warning.

        Raises:
          UserError: no such program.
        """
        if self.dry_run or show:
            self._print(argv)
        if self.dry_run:
            return 0, ""
        errors = subprocess.STDOUT if show else subprocess.PIPE
        process = _started(argv, stderr=errors, text=True, errors="replace")
        if not show:
            output, warnings = process.communicate()
            return process.returncode, self.redact(output + warnings if process.returncode else output)
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(self.redact(line.rstrip("\n")))
            show(lines[-1])
        return process.wait(), "\n".join(lines)

    def ask(self, argv: Sequence[str], poll: float, answers: Sequence[str] = ()) -> tuple[int, str]:
        """Runs a command that says how things are, again if it fails: a service that does not answer ends nothing.

        Args:
          argv: the program and its arguments.
          poll: seconds between the tries.
          answers: what it may fail with that is an answer.

        Returns:
          The last exit status, and what was printed then.

        Raises:
          UserError: no such program.
        """
        for _ in range(ANSWERS - 1):
            status, output = self.run(argv)
            if not status or any(answer in output for answer in answers):
                return status, output
            time.sleep(poll)
        return self.run(argv)

    def follow(self, argv: Sequence[str], show: Callable[[str], None]) -> tuple[int, int]:
        """Runs a command to its end, and shows what it prints; the command itself is printed too.

        Args:
          argv: the program and its arguments.
          show: called with each line of its standard output as it comes, without secrets; a progress bar's are lines.

        Returns:
          Its exit status, and how many bytes it has printed; what goes to standard error is none of them.

        Raises:
          UserError: no such program.
        """
        self._print(argv)
        process, printed = _started(argv, stderr=None), 0
        assert process.stdout is not None
        for line in io.TextIOWrapper(process.stdout, "utf-8", "surrogateescape", newline=""):
            raw = line.encode(errors="surrogateescape")
            printed += len(raw)
            show(self.redact(raw.decode(errors="replace").rstrip("\r\n")))
        return process.wait(), printed

    def _print(self, argv: Sequence[str]) -> None:
        print(self.redact(f"$ {shlex.join(argv)}"), flush=True)

    def redact(self, text: str) -> str:
        """The text with stars for the values of secrets, and without colours."""
        text = _COLOURS.sub("", text)
        for value in self._values:
            text = text.replace(value, "***")
        return text


def _started(argv: Sequence[str], **options: Any) -> subprocess.Popen:
    """A process whose standard output is read."""
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options)
    except FileNotFoundError as error:
        raise UserError(f"{argv[0]} is not installed: it is not on the PATH") from error


def error_in(output: str) -> str:
    """The line of a program's output that says what went wrong: the first error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")


def last_error(log: str) -> str:
    """The last error in a log; progress bars may come after it."""
    return next((line.strip() for line in reversed(log.splitlines()) if "error: " in line.lower()), "lost")


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)
