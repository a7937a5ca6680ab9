"""One command at a time writes to a study: the kernel's lock on a file in it, which it lifts when the process ends.

However the process ends, that is. Commands that only read do not ask for it; buckets have no locks.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

from etils import epath

from mde import buckets, hosts
from mde.errors import UserError
from mde.study import STAGES

FILE = ".writer"


@contextlib.contextmanager
def writing(root: epath.Path, command: str) -> Iterator[None]:
    """Keeps other commands from writing to a study; of several processes of one command the first holds the lock.

    A study that cannot be written to has no writer, nor has one that is not there, unless `mde prepare` is to make it.

    Raises:
      UserError: another command is at work; names it, its process and its host.
    """
    if command == STAGES[0] and not buckets.is_bucket(root) and not root.is_dir():
        buckets.check_writable(root)
        root.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        other = ""
        there = not buckets.is_bucket(root) and root.is_dir() and os.access(root, os.W_OK | os.X_OK)
        if hosts.is_first() and there:
            other = _taken(stack, root / FILE, f"mde {command}, process {os.getpid()} on {socket.gethostname()}")
        if hosts.gathered([bool(other)]).any():
            holder = other or "another command"
            raise UserError(f"study {root}: {holder} is writing to it; wait until it ends, or stop it")
        yield


def _taken(stack: contextlib.ExitStack, path: epath.Path, name: str) -> str:
    """Holds the lock, with the holder's name in its file, until the stack ends; who holds it already, or nothing."""
    file = stack.enter_context(open(path, "a+"))  # noqa: SIM115 - the stack closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().strip() or "another command"
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        print(f"warning: {path} cannot be locked there: let one command at a time write", file=sys.stderr)
        return ""
    if not _is_at(file, path):  # the last holder deleted it after it was opened here
        return _taken(stack, path, name)
    stack.callback(path.unlink, missing_ok=True)
    file.truncate(0)
    print(name, file=file, flush=True)
    return ""


def _is_at(file: TextIO, path: epath.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
