"""Running other programs' commands, or printing them. No shell reads them here: what a binding holds stays one word."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence

from mde.errors import UserError

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
            print(self.redact(f"$ {shlex.join(argv)}"), flush=True)
        if self.dry_run:
            return 0, ""
        errors = subprocess.STDOUT if show else subprocess.PIPE
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
            )
        except FileNotFoundError as error:
            raise UserError(f"{argv[0]} is not installed: it is not on the PATH") from error
        if not show:
            output, warnings = process.communicate()
            return process.returncode, self.redact(output + warnings if process.returncode else output)
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(self.redact(line.rstrip("\n")))
            show(lines[-1])
        return process.wait(), "\n".join(lines)

    def redact(self, text: str) -> str:
        """The text with stars for the values of secrets, and without colours."""
        text = _COLOURS.sub("", text)
        for value in self._values:
            text = text.replace(value, "***")
        return text


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
