"""The one exception that a person at the keyboard is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend: one line saying what is wrong, which value, and what to do.

    The command line prints its message without a traceback and exits with status 2.
    """


def reason_of(error: BaseException, longest: int = 300) -> str:
    """What an error says, in one line of at most `longest` characters; the name of its type if it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


class Unscored(UserError):
    """A scorer that stopped while texts were scored: its server is away or refuses, or its limit is reached. What was done before is kept."""
