"""A lock for the one job that may write to a folder."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ..errors import BundleError
from .atomic import atomic_path, remove_leftovers_of

try:
    import fcntl
except ImportError:  # on Windows
    import msvcrt

logger = logging.getLogger(__name__)

LOCK = ".in_use"
LOCKED_BYTE = 1 << 30  # beyond the text, which Windows would not let others read if it were locked
TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: set[Path] = set()  # POSIX locks do not exclude the process that holds them


@contextmanager
def only_job(output: str | os.PathLike, beside: bool = False, option: str = "output_dir") -> Iterator[None]:
    """Hold a lock on ``output`` within this context; the operating system frees it when the process ends, however.

    The lock file says who holds it, and disappears at the end. Where the file system has no locks, a warning is logged
    and nothing is locked.

    Args:
        output: the job's output folder; it is created if needed, and removed again if it stays empty.
        beside: put the lock file beside ``output``, which then need not be a folder and is not created.
        option: the option that names ``output``, for the message.

    Raises:
        BundleError: if another job holds the lock; the message says which.
    """
    output = Path(output).resolve()
    path = output.with_name(f".{output.name}{LOCK}") if beside else output / LOCK
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquired(path, output, option)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        if os.name == "nt":  # an open file cannot be removed there
            os.close(descriptor)
        with suppress(OSError):  # on Windows, if the next job has already opened it
            path.unlink()
        if os.name != "nt":
            os.close(descriptor)
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


@contextmanager
def new_folder(output: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that becomes the folder ``output`` (see ``atomic_path``), to the only job on it.

    What killed jobs left is removed once the lock is held: before, it may be another job's work.
    """
    with only_job(output, beside=True, option="output"):
        remove_leftovers_of(output)
        with atomic_path(output) as folder:
            yield folder


def _acquired(path: Path, output: Path, option: str) -> int:
    """The descriptor of the locked file ``path``."""
    while True:
        if path in _held:  # its file must not be read: closing it would free the lock
            raise _in_use("this process", output, option)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            same = os.name == "nt" or os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:  # the job that held it ended and removed it after we had opened it
            same = False
        except OSError as error:
            if error.errno in TAKEN:
                os.close(descriptor)
                raise _in_use(_holder(path), output, option) from error
            logger.warning(f"{path} cannot be locked ({error.strerror}): make sure that no other job writes there.")
            return descriptor
        if same:
            holder = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}"
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file, or raise an ``OSError``."""
    if os.name == "nt":
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_BYTE)


def _holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        return path.read_text(encoding="utf-8") or "it has just begun"
    except OSError:
        return "it has just begun"


def _in_use(holder: str, output: Path, option: str) -> BundleError:
    return BundleError(
        f"`{option}` must not be in use by another job, but {output} is ({holder}); wait until that job ends, or "
        f"choose another {option}."
    )
