"""The one exception that a person at the keyboard is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend: one line saying what is wrong, which value, and what to do.

    The command line prints its message without a traceback and exits with status 2.
    """
