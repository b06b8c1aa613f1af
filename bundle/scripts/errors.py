"""The error whose message is addressed to the user."""


class BundleError(ValueError):
    """A setting, a file or data from the user is invalid.

    The message names the input, the rule, the value and a remedy, so commands print the message alone; all other errors
    keep their traceback.
    """
