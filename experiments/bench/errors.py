"""Mistakes of the user: their one line is all that is printed."""


class UsageError(Exception):
    """What was asked for cannot be done; one line that names the option and what was expected."""


class ResultsError(Exception):
    """A results file that cannot be read; one line that names the file, the line and the field."""
