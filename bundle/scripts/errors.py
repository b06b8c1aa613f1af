"""The error of this package whose message is written for the person who runs it."""


class BundleError(ValueError):
    """What someone gave, a setting, a file or data, cannot be worked with.

    The message names it, the rule, the value and a remedy, so that commands end with it alone; all other errors keep
    their traceback.
    """
