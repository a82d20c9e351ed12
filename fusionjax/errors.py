"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """An input is wrong: the message names the thing, its value and the remedy, on one line.

    The command lines show it as `error: …` without a traceback.
    """
