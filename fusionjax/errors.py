"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """An input is wrong: the message names the thing, its value and the remedy, on one line.

    The command lines show it as `error: …` without a traceback.
    """


class NotFiniteWarning(UserWarning):
    """A picture that a number type could not hold: decoded again, or left out."""


def at_least(minimum: float, **values: float) -> None:
    """Checks arguments.

    Args:
        minimum: What none of them may be below.
        **values: By name; `__` stands for a dot.

    Raises:
        UserError: For the first that is smaller, or NaN.
    """
    for name, value in values.items():
        if not value >= minimum:
            raise UserError(f"{name.replace('__', '.')} is {value}; it must be at least {minimum}")


def a_share(**values: float) -> None:
    """Checks arguments.

    Args:
        **values: By name; `__` stands for a dot.

    Raises:
        UserError: For the first that is not in [0, 1].
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name.replace('__', '.')} is {value}; it must be in [0, 1]")
