"""What is told to `logging`, by the logger "relu_ops".

Nothing is printed, and nothing imported: a program that has not imported logging has nobody to
tell. What a user must know whether or not he logs is a warning (`warnings.warn`) or an error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

NAME = "relu_ops"


def logger() -> logging.Logger | None:
    """The logger; None where the program does not use logging."""
    if "logging" not in sys.modules:
        return None
    import logging  # and not from sys.modules: another thread may be in the middle of importing it

    found = logging.getLogger(NAME)
    if not found.handlers:
        found.addHandler(logging.NullHandler())  # else Python writes warnings to stderr
    return found


def hears(level: str) -> bool:
    """True where somebody listens: for what is costly to find out."""
    found = logger()
    return found is not None and found.isEnabledFor(getattr(sys.modules["logging"], level))


def say(level: str, message: str, *values: object) -> None:
    """Log a message.

    Args:
        level: The level's name in logging, for example "DEBUG".
        message: The message, with a place (%s) for each value.
        *values: The values.
    """
    if (found := logger()) is not None:
        number = getattr(sys.modules["logging"], level)
        found.log(number, message, *values, stacklevel=2)
