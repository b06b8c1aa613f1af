"""End a command with the words of the error that matters, not with the tracebacks around it."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from ..errors import BundleError
from .devices import memory_sentence

logger = logging.getLogger(__name__)

INTERRUPTED = (
    "interrupted; complete stages, whole epochs and finished images and slides are kept: repeat the command to go on."
)
EVALUATION_ADVICE = "halve --eval_batch_size (16), the images that go through the network together"
REMEDIES = {  # for what a disk refuses
    errno.ENOSPC: "free some space and repeat the command: what is complete is kept",
    errno.EDQUOT: "free some space and repeat the command: what is complete is kept",
    errno.EROFS: "write elsewhere, for instance with another --output_dir",
    errno.EACCES: "give yourself the right to it, or write elsewhere, for instance with another --output_dir",
}


def install() -> None:
    """Report errors that a person can mend in plain words from now on; all others keep their traceback."""
    sys.excepthook = report


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what led to it, and so on: MONAI wraps one in another for each level of a config."""
    while error is not None:
        yield error
        error = error.__cause__


def plain_cause(error: BaseException) -> BaseException | None:
    """The error whose message is meant for the person at the keyboard; ``None`` if there is none.

    That is the first ``BundleError``, which may say in words what a library's error was; without one, what led to
    ``error`` if it is about a file.
    """
    *_, root = causes(error)
    own = (cause for cause in causes(error) if isinstance(cause, BundleError))
    return next(own, root if isinstance(root, OSError) else None)


@contextmanager
def plainly() -> Iterator[None]:
    """Let the error that matters come out of what is done within, without those that MONAI puts around it."""
    try:
        yield
    except Exception as error:
        plain = plain_cause(error)
        if plain is None or plain is error:
            raise
        raise plain from plain.__cause__


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the error to stderr (and in full to ``run.log``, if there is one); serves as ``sys.excepthook``."""
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
    ]  # of a loader's process, alone
    sys.stderr.write(f"\nStopped: {words}{f'; {remedy}.' if remedy else ''}\n")
