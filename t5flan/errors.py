"""The errors a user can mend. The command line prints them as one line, never as a traceback."""


class UserError(ValueError):
    """Something given from outside is wrong: one line saying what was given, what was expected, which setting mends it."""


class UsageError(UserError):
    """The command line itself is wrong (unknown command, flag or setting): exit code 2."""
