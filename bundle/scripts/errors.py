"""What is addressed to the user: the error whose message is, and the commands that messages name."""

from pathlib import Path


class BundleError(ValueError):
    """A setting, a file or data from the user is invalid.

    The message names the input, the rule, the value and a remedy, so commands print the message alone; all other errors
    keep their traceback.
    """


def command_here(words: str) -> str:
    """A command that works in the current folder.

    Args:
        words: the command and its options, as after ``python -m scripts``.

    Returns:
        the command of the bundle whose folder this is, or else of the installed package.
    """
    return f"python -m scripts {words}" if Path("scripts/__main__.py").is_file() else f"weakhisto {words}"
