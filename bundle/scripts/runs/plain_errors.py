"""End a command with the message of the error that matters, not with the tracebacks around it."""

import errno
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from ..errors import BundleError
from .devices import memory_sentence

logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted; complete stages, finished epochs, images and slides are kept: repeat the command to resume."
EVALUATION_ADVICE = "halve --eval_batch_size (16), the number of images per forward pass"
REMEDIES = {  # for errors of the file system
    errno.ENOSPC: "free some space and repeat the command: finished work is kept",
    errno.EDQUOT: "free some space and repeat the command: finished work is kept",
    errno.EROFS: "write elsewhere, for instance with another --output_dir",
    errno.EACCES: "fix its permissions, or write elsewhere, for instance with another --output_dir",
}


def install() -> None:
    """From now on, report errors that users can fix as plain sentences; all others keep their traceback.

    Characters that the terminal lacks are escaped, instead of an error.
    """
    sys.excepthook = report
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and its chain of causes: MONAI wraps an error once for each level of a config."""
    while error is not None:
        yield error
        error = error.__cause__


def plain_cause(error: BaseException) -> BaseException | None:
    """The error whose message is meant for the user; ``None`` if there is none.

    That is the first ``BundleError``, which may explain a library's error; without one, the root cause of ``error`` if
    it is an ``OSError``.
    """
    *_, root = causes(error)
    own = (cause for cause in causes(error) if isinstance(cause, BundleError))
    return next(own, root if isinstance(root, OSError) else None)


@contextmanager
def plainly() -> Iterator[None]:
    """Within this context, raise the error that matters without those that MONAI wraps around it."""
    try:
        yield
    except Exception as error:
        plain = plain_cause(error)
        if plain is None or plain is error:
            raise
        raise plain from plain.__cause__


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the error to stderr (and in full to ``run.log``, if any); used as ``sys.excepthook``."""
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"\nStopped: {INTERRUPTED}\n")
        return
    plain = plain_cause(error)
    if plain is None:
        full = next((cause for cause in causes(error) if isinstance(cause, torch.OutOfMemoryError)), None)
        plain = full and memory_sentence(full, EVALUATION_ADVICE)
    if plain is None:
        sys.__excepthook__(kind, error, trace)
        return
    logger.debug("The error in full:", exc_info=(kind, error, trace))
    remedy = REMEDIES.get(plain.errno) if isinstance(plain, OSError) else None
    words = str(plain).rpartition(f"{BundleError.__module__}.{BundleError.__name__}: ")[
        2
    ]  # without the traceback that a DataLoader worker adds
    sys.stderr.write(f"\nStopped: {words}{f'; {remedy}.' if remedy else ''}\n")
