"""End a command with the words of the error that matters, not with MONAI's tracebacks around it."""

import errno
import logging
import sys
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

PLAIN_ERRORS = (ValueError, FloatingPointError, RuntimeError, ModuleNotFoundError)  # those this package raises itself
REMEDIES = {  # for what a disk refuses
    errno.ENOSPC: "free some space and repeat the command: what is complete is kept",
    errno.EDQUOT: "free some space and repeat the command: what is complete is kept",
    errno.EROFS: "write elsewhere, for instance with another --output_dir",
    errno.EACCES: "give yourself the right to it, or write elsewhere, for instance with another --output_dir",
}


def install() -> None:
    """Report errors that a person can mend in plain words from now on; all others keep their traceback."""
    sys.excepthook = report


def root_cause(error: BaseException) -> BaseException:
    """The error that led to ``error``: MONAI wraps one in another for each level of a config."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def is_plain(error: BaseException) -> bool:
    """Whether an error's message is meant for the person at the keyboard: raised by this package, or about a file."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_here = trace is not None and Path(__file__).parent in Path(trace.tb_frame.f_code.co_filename).parents
    return isinstance(error, OSError) or (isinstance(error, PLAIN_ERRORS) and raised_here)


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the error to stderr (and in full to ``run.log``, if there is one); serves as ``sys.excepthook``."""
    root = root_cause(error)
    if not is_plain(root):
        sys.__excepthook__(kind, error, trace)
        return
    logger.debug("The error in full:", exc_info=(kind, error, trace))
    remedy = REMEDIES.get(root.errno) if isinstance(root, OSError) else None
    sys.stderr.write(f"\nStopped: {root}{f'; {remedy}.' if remedy else ''}\n")
