"""Places in buckets, `gs://` and `s3://`, and on disks: whether they can be reached, said before any work is done.

What comes between later, such as a disk that is full or a login that has ended, is told apart from what is wrong with
the files themselves, and both are one line.

All paths go through `etils.epath`, which leaves buckets to fsspec (`mde/__init__.py` sees to that), arrays through
TensorStore, checkpoints through Orbax. A bucket has no folders and no locks, and only single objects are renamed.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from mde.errors import UserError, reason, unknown

# By scheme, the package that fsspec needs for it, which is also the extra to install, and how one logs in.
SCHEMES = {
    "gs": ("gcsfs", "gcs", "gcloud auth application-default login"),
    "s3": ("s3fs", "s3", "aws configure"),
}

# Whose errors say that there are no credentials, no bucket or no network; those of the system are OSError.
LIBRARIES = ("gcsfs", "google", "aiohttp", "s3fs", "aiobotocore", "botocore")

# What TensorStore's errors begin with that are not about what is stored; the last one ends all its tries.
STATES = (
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"),
    "ABORTED",
)


def is_bucket(place: epath.PathLike) -> bool:
    """Whether a place is in a bucket."""
    return "://" in os.fspath(place)


def extra(place: epath.PathLike) -> str | None:
    """The extra of `mde` that reaches a place; None for a disk.

    Raises:
      UserError: a scheme that is not known.
    """
    if not is_bucket(place):
        return None
    scheme = os.fspath(place).split("://")[0]
    if scheme not in SCHEMES:
        raise unknown(f"kind of bucket in {os.fspath(place)}", f"{scheme}://", [f"{known}://" for known in SCHEMES])
    return SCHEMES[scheme][1]


def path(place: epath.PathLike) -> epath.Path:
    """The path of a place; raises UserError at a kind of bucket that is not known."""
    extra(place)
    return epath.Path(place).expanduser()


def study(place: epath.PathLike) -> epath.Path:
    """The path of a study; raises UserError where none can be: checkpoints have only been seen to work in `gs://`."""
    found = path(place)
    if is_bucket(found) and not os.fspath(found).startswith("gs://"):
        raise UserError(f"{found}: a study is on a disk or in gs://; corpora may be in s3:// as well")
    return found


def check_writable(place: epath.PathLike) -> None:
    """Raises UserError if a place on a disk, or the nearest there is above it, is no folder that can be written to."""
    if is_bucket(place):
        return
    path = Path(place).absolute()
    there = next(above for above in (path, *path.parents) if os.path.exists(above))
    if not there.is_dir():
        raise UserError(f"{place}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{place}: no permission to write to {there}")


def check(place: epath.PathLike) -> None:
    """Raises UserError if a place is in a bucket that cannot be reached; a place with nothing there yet is fine."""
    named = extra(place)
    if named is None:
        return
    text = os.fspath(place)
    package, _, login = SCHEMES[text.split("://")[0]]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{text}: buckets of this kind need {package}: pip install 'mde[{named}]'")
    try:
        epath.Path(text).exists()
    except Exception as error:
        if not _is_of_a_library(error):
            raise
        raise UserError(
            f"{text}: cannot be reached ({reason(error)}); is it there, and are you logged in (`{login}`)?"
        ) from error


@contextlib.contextmanager
def alone(directory: epath.Path) -> Iterator[None]:
    """Keeps other processes out of a directory on a disk, if it is there; the kernel lifts the lock however this ends.

    Raises:
      UserError: another process has it.
    """
    if is_bucket(directory) or not directory.is_dir():
        yield
        return
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(held)
        raise UserError(f"{directory}: another command is at work on this study; wait until it has ended") from e
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def writing(place: epath.Path) -> Iterator[None]:
    """Says in one line that a disk is full or a place closed to us; what was being written counts for nothing."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not any(map(_is_of_the_place, _chain(e))):
            raise
        raise UserError(f"{place}: cannot write ({reason(e)}); the same command goes on when it can be written") from e


def write_aside(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file beside its place and renames it, so that what is there is whole; makes its folder."""
    path = epath.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / f"{path.name}.partial"
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        aside.replace(path)


@contextlib.contextmanager
def reading(place: epath.Path) -> Iterator[None]:
    """Says in one line that a place cannot be read just now, or not by a machine with so little memory.

    What is wrong with what lies there is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if not is_in_the_way(e):
            raise
        raise UserError(
            f"{place}: cannot be read ({reason(e)}); nothing was deleted, the same command goes on when it can be"
        ) from e


def is_in_the_way(error: BaseException) -> bool:
    """Whether an error, or what it comes from, says that a place is closed, full or out of reach, or memory at its end.

    What says that there is nothing, or nothing of the kind that was expected, does not.
    """
    return any(_is_of_the_place(each) and not _says_nothing_there(each) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _is_of_the_place(error: BaseException) -> bool:
    """Whether an error is the system's, a bucket's or one of memory that has run out."""
    if isinstance(error, ValueError | RuntimeError):  # TensorStore has no error class of its own; JAX's is the second
        return "[os_error_code=" in str(error) or str(error).startswith(STATES)
    return isinstance(error, MemoryError) or _is_of_a_library(error)


def _is_of_a_library(error: BaseException) -> bool:
    """Whether an error is the system's or that of a bucket's library, and not one of a program."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in LIBRARIES


def _says_nothing_there(error: BaseException) -> bool:
    """Whether the system says that a file is missing, or is a directory, or has one for a part of its path."""
    if isinstance(error, OSError):
        code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else None)
    else:
        found = re.search(r"\[os_error_code='(\d+)'\]", str(error))
        code = int(found[1]) if found else None
    return code in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
